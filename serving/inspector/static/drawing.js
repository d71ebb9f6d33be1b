// Drawing on the frame: brush, polygon and rubber, by pointer or by keys. Everything is in frame pixels.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svgElement(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

class Drawing {
  // marks: the SVG over the frame; size: its width and height; changed: called when there is something new to keep.
  constructor(marks, size, changed) {
    this.marks = marks; this.size = size; this.changed = changed;
    this.shapes = []; this.tool = "brush"; this.width = 20; this.active = false; this.polygon = null; this.stroke = null;
    this.cross = { x: size.width / 2, y: size.height / 2 };
    this.layer = svgElement("g", {}, marks);
    this.crossLayer = svgElement("g", {}, marks);
    marks.addEventListener("pointerdown", (event) => this.down(event));
    marks.addEventListener("pointermove", (event) => this.move(event));
    marks.addEventListener("pointerup", () => this.up());
    marks.addEventListener("dblclick", () => this.close());
  }

  set(active) {
    this.active = active;
    this.marks.classList.toggle("active", active);
    if (!active) this.close();
    this.show();
  }

  at(event) {
    const box = this.marks.getBoundingClientRect();
    const clip = (value, most) => Math.min(Math.max(value, 0), most);
    return [clip((event.clientX - box.left) / box.width * this.size.width, this.size.width),
      clip((event.clientY - box.top) / box.height * this.size.height, this.size.height)];
  }

  down(event) {
    if (!this.active || event.button) return;
    event.stopPropagation();
    const [x, y] = this.at(event);
    this.cross = { x, y };
    if (this.tool === "polygon") { this.corner(x, y); return; }
    this.marks.setPointerCapture(event.pointerId);
    this.stroke = { kind: this.tool, width: this.width, points: [x, y] };
    this.shapes.push(this.stroke);
    this.show();
  }

  move(event) {
    if (!this.stroke) return;
    this.stroke.points.push(...this.at(event).map((value) => Math.round(value * 10) / 10));
    this.show();
  }

  up() { if (this.stroke) { this.stroke = null; this.changed(); } }

  corner(x, y) {
    if (!this.polygon) this.polygon = { kind: "polygon", points: [] };
    this.polygon.points.push(Math.round(x * 10) / 10, Math.round(y * 10) / 10);
    this.show();
  }

  close() {
    if (!this.polygon) return;
    if (this.polygon.points.length >= 6) this.shapes.push(this.polygon);
    this.polygon = null;
    this.show(); this.changed();
  }

  back() {
    if (this.polygon) { this.polygon.points.splice(-2); if (!this.polygon.points.length) this.polygon = null; } else this.shapes.pop();
    this.show(); this.changed();
  }

  clear() { this.shapes = []; this.polygon = null; this.show(); this.changed(); }

  add(outlines) {
    for (const points of outlines) if (points.length >= 6) this.shapes.push({ kind: "polygon", points });
    this.show(); this.changed();
  }

  // Keys while drawing; true where the key was one of these.
  key(event) {
    const step = (event.shiftKey ? 0.05 : 0.01) * Math.max(this.size.width, this.size.height);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      this.cross.x = Math.min(Math.max(this.cross.x + moves[event.key][0], 0), this.size.width);
      this.cross.y = Math.min(Math.max(this.cross.y + moves[event.key][1], 0), this.size.height);
      this.show();
    } else if (event.key === " ") {
      if (this.tool === "polygon") this.corner(this.cross.x, this.cross.y);
      else { this.shapes.push({ kind: this.tool, width: this.width, points: [this.cross.x, this.cross.y] }); this.show(); this.changed(); }
    } else if (event.key === "Enter") this.close();
    else return false;
    return true;
  }

  show() {
    this.layer.replaceChildren(); this.crossLayer.replaceChildren();
    const pairs = (points) => points.map((value, index) => (index % 2 ? `${value} ` : `${value},`)).join("");
    for (const shape of this.polygon ? [...this.shapes, this.polygon] : this.shapes) {
      if (shape.kind === "polygon") { svgElement(shape === this.polygon ? "polyline" : "polygon", { class: "area", points: pairs(shape.points) }, this.layer); continue; }
      const points = shape.points.length === 2 ? [...shape.points, shape.points[0] + 0.01, shape.points[1]] : shape.points;
      svgElement("polyline", { class: shape.kind === "erase" ? "rubber" : "stroke", points: pairs(points), "stroke-width": shape.width }, this.layer);
    }
    if (!this.active) return;
    const { x, y } = this.cross, reach = 0.02 * Math.max(this.size.width, this.size.height);
    svgElement("path", { class: "cross", d: `M${x - reach} ${y}h${2 * reach}M${x} ${y - reach}v${2 * reach}` }, this.crossLayer);
  }
}
