// The picture of a part with its overlays, and the keys of the review queue.
"use strict";

const by = (id) => document.getElementById(id);
const blend = by("blend"), plane = by("plane"), pictures = by("pictures"), beside = by("beside"), loupe = by("loupe"), panel = by("panel");
let viewer = null, other = null, part = null, layers = {}, marks = null, drawing = null, shownAt = 0, asked = 0, ahead = [];
// What tests and benchmarks look at: the part whose overlay is drawn, and how long that took after the click or key.
window.review = { seq: 0, overlayMs: null };

function tiles(values) {
  return {
    width: values.width, height: values.height, tileSize: values.tile, tileOverlap: 0, minLevel: 0, maxLevel: values.levels,
    getTileUrl: (level, x, y) => `/pictures/${values.seq}/tile/${level}/${x}_${y}`,
  };
}

// OpenSeadragon would put a style element into the page, which the page's policy forbids, unless it finds one there. Any
// element of this name will do; page.css has the rule.
const styled = document.createElementNS("urn:defectlens", "style");
styled.setAttribute("data-openseadragon-mobile-css", "true");
document.documentElement.append(styled);

function makeViewer(element) {
  const made = OpenSeadragon({
    element, drawer: "canvas", showNavigationControl: false, animationTime: 0.25, immediateRender: true, blendTime: 0, alwaysBlend: false,
    maxZoomPixelRatio: 12, visibilityRatio: 0.6, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, preload: true,
    imageLoaderLimit: 8, crossOriginPolicy: false, opacity: 1, keyboardNavEnabled: false, drawerOptions: {},
  });
  made.innerTracker.keyDownHandler = null;
  made.innerTracker.keyHandler = null;
  made.canvas.removeAttribute("tabindex");
  return made;
}

// -- one part ---------------------------------------------------------------------------------------------------------

function openPart() {
  const data = by("part-data");
  const values = JSON.parse(data.dataset.part);
  shownAt = performance.now();
  ahead = JSON.parse(data.dataset.ahead ?? "[]");
  if (part && values && part.seq === values.seq && part.hidden === values.hidden) { part = values; showMarks(); return; }
  part = values;
  layers = {};
  window.review = { seq: 0, overlayMs: null };
  stopDrawing();
  closeBeside();
  loupeOff();
  by("nothing").hidden = part !== null;
  by("nothing").textContent = data.dataset.problem ?? "";
  viewer ??= makeViewer(by("viewer"));
  viewer.clearOverlays();
  viewer.close();
  marks = null; drawing = null;
  if (!part) { pictures.classList.add("off"); showTools(); return; }
  fillPlanes();
  showTools();
  const specs = [{ tileSource: tiles(part), width: 1 }];
  const opacity = opacities();
  for (const [name, url] of [["heat", part.heat], ["saliency", part.saliency[plane.value]]]) {
    if (url) specs.push({ tileSource: { type: "image", url, buildPyramid: false }, width: 1, opacity: opacity[name], name });
  }
  const seq = part.seq;
  viewer.addOnceHandler("open", () => {
    specs.forEach((spec, index) => { if (spec.name) layers[spec.name] = viewer.world.getItemAt(index); });
    viewer.viewport.goHome(true);
    putMarks();
    drawn(seq);
  });
  viewer.open(specs.map(({ name, ...spec }) => spec));
}

// When frame and overlay are on the screen; the pictures of the next part are fetched after that.
function drawn(seq) {
  const items = [...Array(viewer.world.getItemCount()).keys()].map((index) => viewer.world.getItemAt(index)).filter((item) => item.getOpacity() > 0);
  const check = () => {
    if (!part || part.seq !== seq || window.review.seq === seq) return;
    if (!items.every((item) => item.getFullyLoaded())) return;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      if (!part || part.seq !== seq || window.review.seq === seq) return;
      window.review = { seq, overlayMs: performance.now() - (asked || shownAt) };
      asked = 0;
      prefetch();
    }));
  };
  for (const item of items) item.addHandler("fully-loaded-change", check);
  check();
}

// Of the part after next too: a large frame takes longer than a quick verdict.
function prefetch() { ahead.forEach(fetchAhead); }

function fetchAhead(ahead) {
  const box = by("viewer").getBoundingClientRect();
  const dots = Math.max(box.width / ahead.width, box.height / ahead.height) * devicePixelRatio;
  let level = ahead.levels;
  while (level > 0 && 2 ** (level - 1 - ahead.levels) >= dots) level -= 1;
  const across = Math.ceil(ahead.width / 2 ** (ahead.levels - level) / ahead.tile), down = Math.ceil(ahead.height / 2 ** (ahead.levels - level) / ahead.tile);
  const urls = [ahead.heat, ahead.saliency[ahead.predicted]].filter(Boolean);
  for (let x = 0; x < across; x += 1) for (let y = 0; y < down; y += 1) urls.push(tiles(ahead).getTileUrl(level, x, y));
  for (const url of urls.slice(0, 40)) { const image = new Image(); image.src = url; }
}

function fillPlanes() {
  const names = Object.keys(part.saliency);
  const before = plane.value;
  plane.replaceChildren(...names.map((name) => new Option(name, name)));
  // An inspector who looks at one class goes on with it only where the model did not name another.
  plane.value = names.includes(part.predicted) ? part.predicted : names.includes(before) ? before : names[0] ?? "";
}

function showTools() {
  const has = part && !part.hidden;
  blend.disabled = !has || !(part.heat || Object.keys(part.saliency).length);
  by("legend").hidden = !(has && part.scale);
  if (has && part.scale) {
    const [low, high, mark] = part.scale;
    by("legend-low").textContent = low.toPrecision(3);
    by("legend-high").textContent = `≥ ${high.toPrecision(3)}`;
    by("legend-mark").hidden = mark === null;
    by("legend").title = mark === null ? "anomaly score (raw)" : `anomaly score (raw); regions begin at ${mark.toPrecision(3)}`;
  }
  showBlend();
}

// -- overlays ---------------------------------------------------------------------------------------------------------

function opacities() {
  const value = Number(blend.value);
  return { heat: value <= 1 ? value : 2 - value, saliency: Math.max(0, value - 1) };
}

function showBlend() {
  const value = Number(blend.value), shown = opacities();
  for (const [name, item] of Object.entries(layers)) item?.setOpacity(shown[name]);
  for (const button of document.querySelectorAll("[data-blend]")) button.classList.toggle("on", Math.abs(Number(button.dataset.blend) - value) < 0.3);
  const names = ["frame", "anomaly map", `saliency of ${plane.value}`];
  blend.setAttribute("aria-valuetext", Number.isInteger(value) ? names[value] : `between ${names[Math.floor(value)]} and ${names[Math.ceil(value)]}`);
}

function changePlane() {
  if (!part) return;
  const old = layers.saliency;
  if (old) viewer.world.removeItem(old);
  delete layers.saliency;
  const url = part.saliency[plane.value];
  const seq = part.seq;
  if (url) {
    viewer.addTiledImage({ tileSource: { type: "image", url, buildPyramid: false }, width: 1, opacity: opacities().saliency,
      success: (event) => { if (part?.seq === seq) { layers.saliency = event.item; showBlend(); } } });
  }
  showBlend();
}

function putMarks() {
  marks = svgElement("svg", { class: "marks", viewBox: `0 0 ${part.width} ${part.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svgElement("g", { id: "contour-layer" }, marks);
  viewer.addOverlay({ element: marks, location: new OpenSeadragon.Rect(0, 0, 1, part.height / part.width) });
  drawing = new Drawing(marks, part, keepDrawing);
  showMarks();
}

function showMarks() {
  const layer = marks?.querySelector("#contour-layer");
  if (!layer) return;
  layer.replaceChildren();
  if (by("contours").getAttribute("aria-pressed") === "true" && !part.hidden) {
    for (const kind of ["around", "contour"]) for (const region of part.regions) svgElement("polygon", { class: kind, points: region.points.join(" ") }, layer);
  }
  for (const points of part.drawn ?? []) svgElement("polygon", { class: "drawn", points: points.join(" ") }, layer);
}

function toggle(button, on) { button.setAttribute("aria-pressed", String(on)); }
function pressed(button) { return button.getAttribute("aria-pressed") === "true"; }

// -- drawing ----------------------------------------------------------------------------------------------------------

function keepDrawing() {
  const field = by("shapes");
  if (field) field.value = drawing?.shapes.length ? JSON.stringify(drawing.shapes) : "";
  const note = by("drawn-note");
  if (note) note.hidden = !drawing?.shapes.length;
}

function startDrawing() {
  if (!drawing || !by("draw")) return;
  toggle(by("draw"), true);
  by("drawing").hidden = false;
  by("stage").classList.add("drawing");
  viewer.setMouseNavEnabled(false);
  drawing.width = Number(by("width").value) / 400 * Math.max(part.width, part.height);
  drawing.set(true);
  by("viewer").focus();
}

function stopDrawing() {
  if (by("draw")) toggle(by("draw"), false);
  by("drawing").hidden = true;
  by("stage").classList.remove("drawing");
  viewer?.setMouseNavEnabled(true);
  drawing?.set(false);
}

function choose(tool) {
  drawing.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) toggle(button, button.dataset.tool === tool);
}

// -- beside a good part, loupe ----------------------------------------------------------------------------------------

async function openBeside() {
  if (!part) return;
  const reply = await fetch(`/part/${part.seq}/alike`);
  if (!reply.ok) { say(await reply.text()); return; }
  const values = await reply.json();
  toggle(by("side"), true);
  beside.hidden = false;
  wholeOther = new Image();
  wholeOther.src = `/pictures/${values.seq}/whole.png`;
  by("other-caption").textContent = `passed: ${values.part || `record ${values.seq}`}`;
  other ??= makeViewer(by("other"));
  other.addOnceHandler("open", fit);
  other.open([{ tileSource: tiles(values), width: 1 }]);
}

function closeBeside() {
  if (beside.hidden) return;
  toggle(by("side"), false);
  beside.hidden = true;
  fit();
}

// The panes have another size now: the viewers learn of that with the next frame.
function fit() { requestAnimationFrame(() => requestAnimationFrame(() => { if (viewer.isOpen()) viewer.viewport.goHome(true); follow(); })); }
function follow() { if (!beside.hidden && other?.isOpen() && viewer?.isOpen()) other.viewport.fitBounds(viewer.viewport.getBounds(true), true); }

let whole = null, wholeOther = null, spot = null;

function loupeOn() {
  if (!part) return;
  toggle(by("loupe-on"), true);
  whole = new Image();
  whole.src = `/pictures/${part.seq}/whole.png`;
  const box = pictures.getBoundingClientRect();
  spot ??= { x: box.width / 2, y: box.height / 2 };
  loupe.hidden = false;
  whole.decode().then(showLoupe).catch(() => say("The frame cannot be read."));
  by("viewer").focus();
}

function loupeOff() { toggle(by("loupe-on"), false); loupe.hidden = true; whole = null; }

function showLoupe() {
  if (loupe.hidden || !whole?.complete || !viewer.isOpen()) return;
  // Over the good part beside, its own pixels at that place.
  const edge = beside.hidden ? Infinity : beside.offsetLeft, isOther = spot.x >= edge;
  const from = isOther ? other : viewer, image = isOther ? wholeOther : whole;
  if (!from.isOpen() || !image?.complete) return;
  // A frame is one wide in the viewport's own units.
  const point = from.viewport.pointFromPixel(new OpenSeadragon.Point(isOther ? spot.x - edge : spot.x, spot.y), true).times(image.naturalWidth);
  const zoom = from.viewport.getZoom(true) * from.viewport.getContainerSize().x / image.naturalWidth;
  // At least four times what is seen, and never less than the camera's own pixels.
  const scale = Math.max(4 * zoom, 1), side = loupe.width / scale;
  const paper = loupe.getContext("2d");
  paper.imageSmoothingEnabled = scale < 3;
  paper.fillStyle = "#000";
  paper.fillRect(0, 0, loupe.width, loupe.height);
  paper.drawImage(image, point.x - side / 2, point.y - side / 2, side, side, 0, 0, loupe.width, loupe.height);
  loupe.style.left = `${spot.x - loupe.width / 2}px`;
  loupe.style.top = `${spot.y - loupe.height / 2}px`;
}

pictures.addEventListener("pointermove", (event) => {
  if (loupe.hidden) return;
  const box = pictures.getBoundingClientRect();
  spot = { x: event.clientX - box.left, y: event.clientY - box.top };
  showLoupe();
});

// -- buttons and keys -------------------------------------------------------------------------------------------------

const actions = {
  c: () => { toggle(by("contours"), !pressed(by("contours"))); showMarks(); },
  l: () => (loupe.hidden ? loupeOn() : loupeOff()),
  s: () => (beside.hidden ? openBeside() : closeBeside()),
  m: () => (pressed(by("draw")) ? stopDrawing() : startDrawing()),
  n: () => { by("note")?.focus(); },
  o: () => { const box = by("another"); if (box) { box.open = true; by("label").focus(); } },
  "+": () => viewer?.viewport?.zoomBy(1.4), "-": () => viewer?.viewport?.zoomBy(1 / 1.4), 0: () => viewer?.viewport?.goHome(),
  "?": () => by("help").showModal(),
};
const drawingKeys = {
  1: () => choose("brush"), 2: () => choose("polygon"), 3: () => choose("erase"),
  k: () => drawing.add(part.regions.map((region) => region.points)), z: () => drawing.back(), m: stopDrawing, escape: stopDrawing,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("textarea, input:not([type=range]):not([type=checkbox]), select");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (typing) { if (key === "Escape") event.target.blur(); return; }
  const isButton = event.target.closest("button, a, summary");
  if (drawing?.active) {
    if ((key === " " || key === "Enter") && isButton) return;
    if (drawingKeys[key.toLowerCase()]) { drawingKeys[key.toLowerCase()](); event.preventDefault(); return; }
    if (drawing.key(event)) { event.preventDefault(); return; }
  }
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (arrows[key] && !loupe.hidden) {
    spot = { x: spot.x + 24 * arrows[key][0], y: spot.y + 24 * arrows[key][1] };
    showLoupe();
  } else if (arrows[key]?.[0] && event.target !== blend) {
    blend.value = Number(blend.value) + 0.25 * arrows[key][0];
    showBlend();
  } else if (actions[key]) actions[key]();
  else {
    const wanted = key === "=" ? null : panel.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!wanted || wanted.disabled) return;
    wanted.click();
  }
  event.preventDefault();
}

document.addEventListener("keydown", onKey);
for (const [id, key] of [["contours", "c"], ["loupe-on", "l"], ["side", "s"], ["draw", "m"], ["in", "+"], ["out", "-"], ["home", "0"], ["help-on", "?"]]) {
  by(id)?.addEventListener("click", () => actions[key]());
}
for (const button of document.querySelectorAll("[data-blend]")) button.addEventListener("click", () => { blend.value = button.dataset.blend; showBlend(); });
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool));
by("take-over").addEventListener("click", () => drawingKeys.k());
by("back").addEventListener("click", () => drawing.back());
by("clear").addEventListener("click", () => drawing.clear());
by("done").addEventListener("click", stopDrawing);
by("width").addEventListener("input", () => { if (drawing) drawing.width = Number(by("width").value) / 400 * Math.max(part.width, part.height); });
blend.addEventListener("input", showBlend);
plane.addEventListener("change", changePlane);

document.addEventListener("htmx:configRequest", (event) => {
  if (!event.target.closest("#panel")) return;
  asked = performance.now();
  if (event.detail.verb !== "post" || !("seconds" in event.detail.parameters)) return;
  event.detail.parameters.seconds = ((performance.now() - shownAt) / 1000).toFixed(1);
});
// A second press while the first one is under way would speak about a part that nobody has seen.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (!event.target.closest("#panel")) return;
  if (panel.dataset.busy) { event.preventDefault(); return; }
  panel.dataset.busy = "1";
});
document.addEventListener("htmx:afterRequest", () => { delete panel.dataset.busy; });
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target !== panel) return;
  openPart();
  keepDrawing();
  panel.scrollTop = 0;
});
document.addEventListener("DOMContentLoaded", () => {
  openPart();
  viewer?.addHandler("update-viewport", () => { follow(); showLoupe(); });
});
