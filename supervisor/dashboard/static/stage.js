// The stage: each model's gate, and below it a tile for every slot, grouped by role.

import { store } from "./live.js";
import { STATES, age, count, h, levelOf, moment, put, shortName, span, stateOf } from "./words.js";

const ROLES = ["processor", "encoder", "prefill", "decode", "publisher"];
const DENSE = 24; // slots of one role beyond which tiles become small
const STEPS = ["start", "download", "import", "weights", "kv_pool", "warm_up", "register"];

const tiles = new Map();
const gates = new Map();
let shape = "";

/** Lay the stage out anew if slots have come or gone, and refresh all tiles. */
export function showStage(open) {
  const slots = [...store.slots.values()];
  const wanted = slots.map((slot) => slot.slot).join(" ");
  if (wanted !== shape) {
    shape = wanted;
    layOut(slots, open);
  }
  for (const slot of slots) refresh(slot.slot);
  showGates();
}

/** Refresh what has changed. */
export function refreshTiles(touched) {
  for (const name of touched) refresh(name);
}

function layOut(slots, open) {
  const root = document.getElementById("stage");
  tiles.clear();
  gates.clear();
  const groups = new Map();
  for (const slot of slots) {
    const key = slot.model ? slot.alias : "";
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(slot);
  }
  const sections = [...groups].sort(([a], [b]) => Number(!a) - Number(!b)).map(([alias, members]) => section(alias, members, open));
  root.replaceChildren(...sections);
  const names = document.getElementById("slots");
  names.replaceChildren(...slots.map((slot) => h("option", { value: slot.slot })));
}

function section(alias, members, open) {
  const title = alias ? members[0].model : "Hosts";
  const head = h("div", { class: "head" }, h("h2", {}, title));
  const card = h("section", { class: "card model", "aria-label": title }, head);
  const roles = h("div", { class: "roles" });
  if (alias) {
    const gate = { pill: h("span", { class: "pill" }), since: h("span", { class: "soft" }), missing: h("p", { class: "missing" }), figures: h("dl", { class: "figures" }) };
    head.append(gate.pill, gate.since, gate.figures);
    card.append(gate.missing);
    gates.set(alias, gate);
  }
  for (const role of ROLES) {
    const mine = members.filter((slot) => slot.role === role);
    if (!mine.length) continue;
    const dense = mine.length > DENSE;
    const list = h("div", { class: dense ? "tiles dense" : "tiles" }, mine.map((slot) => tile(slot, open, dense)));
    const label = h("h3", {}, role, mine.length > 1 ? h("span", { class: "soft" }, ` ${mine.length}`) : "");
    const group = h("div", { class: "role" }, label, list);
    // Few slots take no row of their own.
    group.style.flexBasis = `min(100%, ${dense ? 9999 : mine.length * 245}px)`;
    group.style.flexGrow = String(mine.length);
    roles.append(group);
  }
  card.append(roles);
  return card;
}

function tile(slot, open, dense) {
  const parts = {
    name: h("span", { class: "name" }),
    state: h("span", { class: "state" }),
    place: h("span", { class: "place" }),
    flight: h("span", { class: "value" }),
    flightBar: h("i"),
    kv: h("span", { class: "value" }),
    kvBar: h("i"),
    loading: h("span", { class: "steps" }),
    reason: h("span", { class: "reason" }),
  };
  const meter = (word, value, bar) => h("span", { class: "meter" }, h("span", { class: "word" }, word), h("span", { class: "rail" }, bar), value);
  parts.flightMeter = meter("in flight", parts.flight, parts.flightBar);
  parts.kvMeter = meter("KV", parts.kv, parts.kvBar);
  parts.meters = h("span", { class: "meters" }, parts.flightMeter, parts.kvMeter);
  parts.root = h("button", { type: "button", class: "tile", onclick: () => open(slot.slot), data: { slot: slot.slot } }, h("span", { class: "top" }, parts.name, parts.state), dense ? null : parts.place, parts.meters, parts.loading, dense ? null : parts.reason);
  tiles.set(slot.slot, parts);
  return parts.root;
}

function refresh(name) {
  const parts = tiles.get(name);
  const slot = store.slots.get(name);
  if (!parts || !slot) return;
  const state = stateOf(slot);
  const [word, sign] = STATES[state] || [state, "•"];
  if (parts.root.dataset.state !== state) {
    parts.root.dataset.state = state;
    parts.root.dataset.level = levelOf(state);
  }
  put(parts.name, `${shortName(slot)}${slot.generation ? `#${slot.generation}` : ""}`);
  put(parts.state, `${sign} ${word}`);
  const [flight = 0, queued = 0, used = 0, , , speed = 0] = store.figures.get(name) || [];
  const working = state === "ready" || state === "draining" || state === "silent";
  show(parts.meters, working && slot.role !== "publisher");
  if (working) {
    put(parts.flight, `${flight}${slot.capacity ? `/${slot.capacity}` : ""}${queued ? ` +${queued} queued` : ""}`);
    width(parts.flightBar, slot.capacity ? flight / slot.capacity : 0);
    show(parts.kvMeter, Boolean(slot.kv_total));
    if (slot.kv_total) {
      put(parts.kv, `${Math.round((100 * used) / slot.kv_total)} %`);
      width(parts.kvBar, used / slot.kv_total);
    }
  }
  const stage = state === "loading" || state === "starting" ? slot.stage || "start" : "";
  show(parts.loading, Boolean(stage));
  if (stage) showSteps(parts.loading, stage);
  const reason = slot.reason && !slot.planned ? slot.reason : "";
  put(parts.reason, [slot.restarts ? `${slot.restarts} restart${slot.restarts > 1 ? "s" : ""}` : "", reason].filter(Boolean).join(" · "));
  parts.reason.title = reason;
  parts.speed = working && speed ? `${count(speed)} tokens/s` : "";
  const gpus = slot.gpus?.length ? `GPU ${slot.gpus.join(", ")}` : "";
  parts.where = [slot.host, gpus, slot.spawn === "external" ? "external" : ""].filter(Boolean).join(" · ");
  tick(name, parts, slot);
}

/** Let what is counted in time go on. */
export function tickTiles() {
  for (const [name, parts] of tiles) tick(name, parts, store.slots.get(name));
  for (const gate of store.head?.gates || []) tickGate(gate);
}

function tick(name, parts, slot) {
  if (!slot) return;
  const lasts = age(slot.since);
  put(parts.place, [lasts, parts.speed, parts.where].filter(Boolean).join(" · "));
  const label = `${name}, ${stateOf(slot)} for ${lasts}${slot.reason ? `, ${slot.reason}` : ""}`;
  if (parts.root.getAttribute("aria-label") !== label) parts.root.setAttribute("aria-label", label);
  if (parts.root.title !== label) parts.root.title = label;
}

function showSteps(root, stage) {
  const at = STEPS.findIndex((step) => stage.startsWith(step));
  const text = stage.replace("_", " ");
  if (root.dataset.stage === stage) return;
  root.dataset.stage = stage;
  const percent = /(\d+(?:\.\d+)?) ?%/.exec(stage);
  const dots = STEPS.filter((step) => step !== "download" || stage.startsWith("download")).map((step) => h("i", { class: STEPS.indexOf(step) < at ? "done" : STEPS.indexOf(step) === at ? "now" : "" }));
  root.replaceChildren(h("span", { class: "dots" }, dots), h("span", {}, percent ? `${text}` : text));
}

function showGates() {
  const told = new Map((store.head?.gates || []).map((gate) => [gate.alias, gate]));
  for (const [alias, parts] of gates) {
    const gate = told.get(alias);
    const level = !gate ? "busy" : gate.open ? (gate.degraded ? "warn" : "good") : gate.opened ? "bad" : "busy";
    parts.pill.dataset.level = level;
    put(parts.pill, !gate ? "… gate unknown" : gate.open ? (gate.degraded ? "! gate open, degraded" : "✓ gate open") : "✕ gate closed");
    const missing = gate?.missing?.length ? `Missing: ${gate.missing.slice(0, 5).map((one) => `${one.what} (${one.why})`).join("; ")}${gate.missing.length > 5 ? `; and ${gate.missing.length - 5} more` : ""}` : "";
    put(parts.missing, missing);
    show(parts.missing, Boolean(missing));
    if (gate) tickGate(gate);
  }
  showTraffic();
}

function tickGate(gate) {
  const parts = gates.get(gate.alias);
  if (!parts) return;
  put(parts.since, `for ${age(gate.since)}`);
  const title = `since ${moment(gate.since)}, epoch ${gate.epoch}`;
  if (parts.since.title !== title) parts.since.title = title;
}

/** Each model's headline figures, beside its gate. */
export function showTraffic() {
  for (const [alias, parts] of gates) {
    const model = [...store.slots.values()].find((slot) => slot.alias === alias)?.model;
    const point = store.traffic[model];
    const rows = point ? [["requests/s", count(point.requests)], ["tokens/s", count(point.tokens)], ["first token p50", point.ttft_p50 === null || point.ttft_p50 === undefined ? "–" : span(point.ttft_p50)], ["queued", count(point.queued)]] : [];
    if (parts.figures.childElementCount !== rows.length) parts.figures.replaceChildren(...rows.map(([word]) => h("div", {}, h("dt", {}, word), h("dd"))));
    rows.forEach(([, value], at) => put(parts.figures.children[at].lastChild, value));
  }
}

function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

function width(bar, share) {
  // Scaled and not sized: the browser has nothing to lay out anew.
  const wanted = `scaleX(${Math.min(1, Math.max(0, share)).toFixed(2)})`;
  if (bar.style.transform !== wanted) bar.style.transform = wanted;
}

