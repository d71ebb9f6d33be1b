// The model room: dialogs, and the what-if curve to drag.
"use strict";

const NAMES = ["overkill_rate", "escape_rate", "review_rate"];
// The plot's left and right edge in the chart's own units, as vision/charts.py draws it.
const LEFT = 62, RIGHT = 562, TOP = 44, BOTTOM = 328;

function percent(value) { return value === null ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`; }

function prepare(box) {
  const points = JSON.parse(box.dataset.points);
  const drag = box.querySelector(".drag");
  const svg = box.querySelector("svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "moving");
  svg.append(line);
  const now = Number(box.dataset.now);
  const low = Math.min(now, points[0].threshold), high = Math.max(now, points.at(-1).threshold);
  const show = () => {
    const point = points[Number(drag.value)];
    const x = LEFT + (RIGHT - LEFT) * (point.threshold - low) / ((high - low) || 1);
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", TOP], ["y2", BOTTOM]]) line.setAttribute(name, value);
    box.querySelector('[data-rate="threshold"]').textContent = point.threshold.toPrecision(4);
    drag.setAttribute("aria-valuetext", `review from ${point.threshold.toPrecision(4)}`);
    for (const name of NAMES) {
      const rate = point[name];
      box.querySelector(`[data-rate="${name}"]`).textContent =
        rate ? `${percent(rate[0])} (${rate[3]} of ${rate[4]}; ${percent(rate[1])} to ${percent(rate[2])})` : "not known: nobody judged such parts";
    }
  };
  const nearest = points.findIndex((point) => point.threshold >= now);
  drag.value = nearest < 0 ? points.length - 1 : nearest;
  drag.addEventListener("input", show);
  svg.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    const box_ = svg.getBoundingClientRect();
    const share = ((event.clientX - box_.left) / box_.width * svg.viewBox.baseVal.width - LEFT) / (RIGHT - LEFT);
    const wanted = low + share * (high - low);
    const index = points.findIndex((point) => point.threshold >= wanted);
    drag.value = index < 0 ? points.length - 1 : index;
    show();
  });
  show();
}

function ready(root) { for (const box of root.querySelectorAll(".whatif")) prepare(box); }

document.addEventListener("click", (event) => {
  const open = event.target.closest("[data-dialog]");
  if (open) document.getElementById(open.dataset.dialog).showModal();
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
});
document.addEventListener("htmx:afterSwap", (event) => ready(event.target));
ready(document);
