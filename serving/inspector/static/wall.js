// The line wall: changes what changed, in place, once a frame, so that nothing flickers.
"use strict";

const KEYS = ["pass", "reject", "review", "none"];
const cameras = new Map();
const list = document.getElementById("cameras");
const link = document.getElementById("link");
const server = document.getElementById("server");
// What tests look at: results that came over the wire since the page opened.
window.wall = { results: 0, head: 0, wholes: 0 };
let drift = {};
let waiting = false;

function text(element, value) { if (element.textContent !== value) element.textContent = value; }

function makeCard(name) {
  const card = document.getElementById("camera").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = name || "no camera";
  const find = (selector) => card.querySelector(selector);
  const entry = {
    card, state: null, shown: null, drift: find(".drift"), latest: find(".latest"), image: find("img"), use: find(".latest use"),
    shape: find(".latest .shape"), word: find(".word"), detail: find(".detail"), rate: find(".rate"), latency: find(".latency"), loading: 0,
  };
  for (const key of [...KEYS, "all"]) entry[`count-${key}`] = find(`[data-count="${key}"]`);
  // Cards stay in the order of their names: a place that moves cannot be watched.
  const after = [...cameras.keys()].sort().find((other) => other > name);
  list.insertBefore(card, after === undefined ? null : cameras.get(after).card);
  cameras.set(name, entry);
  return entry;
}

function show(entry) {
  const state = entry.state;
  for (const key of KEYS) text(entry[`count-${key}`], String(state.counts[key]));
  text(entry["count-all"], String(state.total));
  text(entry.rate, `${state.rate >= 1 ? state.rate.toFixed(1) + " parts/s" : (state.rate * 60).toFixed(0) + " parts/min"}`);
  text(entry.latency, state.p50_ms === null ? "" : `${state.p50_ms.toFixed(0)} ms`);
  const latest = state.latest;
  if (latest && entry.shown !== latest.seq) {
    entry.shown = latest.seq;
    entry.card.className = `camera ${latest.verdict}`;
    entry.shape.setAttribute("class", `shape ${latest.verdict}`);
    entry.use.setAttribute("href", `#v-${latest.verdict}`);
    text(entry.word, latest.word);
    text(entry.detail, [latest.verdict === "pass" ? "" : latest.predicted, latest.part, `score ${latest.score}`].filter(Boolean).join(" · "));
    entry.latest.href = `/part/${latest.seq}`;
    entry.latest.setAttribute("aria-label", `${entry.card.querySelector("h2").textContent}: ${latest.word}, part ${latest.part}`);
    if (latest.has_frame) picture(entry, latest.seq);
  }
}

// One picture of a camera is on its way at a time; the old one stays until the new one is there.
async function picture(entry, seq) {
  if (entry.loading) { entry.next = seq; return; }
  entry.loading = seq;
  const fresh = new Image();
  fresh.src = `/pictures/${seq}/thumbnail.jpg`;
  try { await fresh.decode(); entry.image.src = fresh.src; } catch { /* pruned in the meantime: the old one stays */ }
  entry.loading = 0;
  if (entry.next && entry.next !== seq) { const next = entry.next; entry.next = 0; picture(entry, next); }
}

function showAll() {
  waiting = false;
  const totals = { pass: 0, reject: 0, review: 0, none: 0, all: 0 };
  for (const [name, entry] of cameras) {
    if (entry.dirty) { entry.dirty = false; show(entry); }
    for (const key of KEYS) totals[key] += entry.state.counts[key];
    totals.all += entry.state.total;
    const known = drift[name];
    text(entry.drift, known ? known.state : "");
    entry.drift.classList.toggle("alarm", Boolean(known?.alarm));
    entry.drift.title = known?.why ?? "";
  }
  for (const [key, value] of Object.entries(totals)) text(document.querySelector(`[data-total="${key}"]`), String(value));
  document.getElementById("no-cameras").hidden = cameras.size > 0;
}

function take(event) {
  window.wall.results += event.results.length;
  window.wall.head = event.head;
  if (event.whole) window.wall.wholes += 1;
  for (const state of event.cameras) {
    const entry = cameras.get(state.camera) ?? makeCard(state.camera);
    entry.state = state;
    entry.dirty = true;
  }
  if (event.server && "reachable" in event.server) {
    drift = event.server.cameras;
    const stopped = event.server.stations.map((one) => `Station ${one.station} is stopped: ${one.reason}.`).join(" ");
    server.hidden = event.server.reachable && !stopped;
    text(server, event.server.reachable ? stopped : `Drift is not known: ${event.server.problem}`);
  }
  if (!waiting) { waiting = true; requestAnimationFrame(showAll); }
}

const source = new EventSource("/wall/events");
source.onmessage = (message) => take(JSON.parse(message.data));
source.onopen = () => { link.className = "state"; text(link, "live"); };
source.onerror = () => {
  link.className = "state lost";
  text(link, "no connection: what you see is old");
  // The browser tries again by itself, unless it was refused: then somebody has to sign in.
  if (source.readyState === EventSource.CLOSED) location.reload();
};
