// Puts the page together: what the supervisor tells is drawn once a frame at most, and clocks go on once a second.

import { openSlot, refreshSlot, setFilter, setUpActions } from "./actions.js";
import { setUpDrills, showDrill } from "./drills.js";
import { connect, on, store } from "./live.js";
import { setUpRequest } from "./request.js";
import { refreshTiles, showStage, showTraffic, tickTiles } from "./stage.js";
import { filterSlot, marks, setUpTimeline, takeEvents } from "./timeline.js";
import { setUpTraffic, showPlots } from "./traffic.js";
import { showVerdict } from "./verdict.js";
import { moment, put } from "./words.js";

let touched = new Set();
let whole = false;
let head = false;
let drawing = false;

/** Draw with the next frame; all that comes until then is drawn together. */
function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (whole) showStage(openSlot);
    else if (head) showStage(openSlot);
    else refreshTiles(touched);
    if (whole || head || touched.size) {
      showVerdict(openSlot);
      refreshSlot();
    }
    touched = new Set();
    whole = head = false;
  });
}

function showState() {
  const node = document.getElementById("live");
  node.dataset.state = store.state;
  document.body.dataset.state = store.state;
  const texts = { live: "Live", waiting: "Connecting", stale: `No connection: as it was at ${moment(store.heard)}` };
  put(node, texts[store.state]);
}

on("snapshot", () => {
  put(document.getElementById("cluster"), store.head.cluster);
  put(document.getElementById("where"), `on ${store.head.host}`);
  whole = true;
  drawSoon();
});
on("change", (told) => {
  for (const name of told.touched) touched.add(name);
  whole ||= told.shape;
  head ||= told.head;
  drawSoon();
});
on("events", (told) => {
  takeEvents(told);
  head = true;
  drawSoon();
});
on("state", showState);
on("drill", showDrill);
on("traffic", showTraffic);
on("points", showPlots);

setInterval(() => {
  tickTiles();
  if (store.head) showVerdict(openSlot);
  refreshSlot();
  if (store.drill?.playing) showDrill();
}, 1000);

setUpActions();
setUpTimeline(openSlot);
setUpTraffic(marks);
setUpRequest();
setUpDrills();
setFilter(filterSlot);
connect();
