// The timeline: what happened, newest first; a death and what followed is one coloured span that opens its details.

import { addEvents, store } from "./live.js";
import { lastLines, logOf } from "./actions.js";
import { KINDS, STAGES, Stories, stagesOf } from "./spans.js";
import { capital, clock, h, many, moment, put, span } from "./words.js";

const SHOWN = 150; // entries at once; older ones come when asked for
const PAGE = 300;
const WORDS = { lapsed: "is silent: its lease is over", heard: "is heard again" };

let stories = new Stories();
let most = SHOWN;
const entries = new Map();
const off = new Set();
let wantedSlot = "";
let openSlot = () => {};

export function setUpTimeline(open) {
  openSlot = open;
  const chips = document.getElementById("filter-kinds");
  for (const [kind, word] of Object.entries(KINDS)) {
    const box = h("input", { type: "checkbox", checked: true, onchange: () => (box.checked ? off.delete(kind) : off.add(kind), showAll()) });
    chips.append(h("label", { class: "chip", data: { kind } }, box, word));
  }
  document.getElementById("filter-slot").addEventListener("input", (event) => filterSlot(event.target.value));
  document.getElementById("older").addEventListener("click", older);
}

/** Show one slot's stories alone; all of them for an empty name. */
export function filterSlot(name) {
  const field = document.getElementById("filter-slot");
  if (field.value !== name) field.value = name;
  wantedSlot = name.trim();
  showAll();
}

/** Take in events: those added, or all of them where the order is another one. */
export function takeEvents({ added, anew }) {
  if (anew) {
    stories = new Stories();
    stories.take(store.events);
    entries.clear();
    showAll();
    return;
  }
  for (const story of stories.take(added)) show(story);
  trim();
}

/** All stories that marks on the plots are made of: deaths, closed gates and drills, as {at, end, kind, of}. */
export const marks = () => stories.all.filter((story) => story.kind === "recovery" || story.kind === "drill" || (story.kind === "gate" && story.closed));

function wanted(story) {
  return !off.has(story.kind) && (!wantedSlot || story.of.includes(wantedSlot) || story.events.some((event) => event.of.includes(wantedSlot)));
}

function showAll() {
  const list = document.getElementById("entries");
  const fitting = stories.all.filter(wanted);
  const shown = fitting.slice(-most).reverse();
  entries.clear();
  list.replaceChildren(...shown.map(entry));
  put(document.getElementById("timeline-count"), fitting.length ? many(fitting.length, "entry", "entries") : "nothing has happened");
  document.getElementById("older").hidden = !store.events.length || store.events[0].seq <= 1;
}

function show(story) {
  const there = entries.get(story.first);
  if (there) {
    fill(there, story);
    return;
  }
  if (!wanted(story)) return;
  document.getElementById("entries").prepend(entry(story));
}

function trim() {
  const list = document.getElementById("entries");
  while (list.children.length > most) {
    entries.delete(Number(list.lastChild.dataset.first));
    list.lastChild.remove();
  }
  put(document.getElementById("timeline-count"), many(stories.all.filter(wanted).length, "entry", "entries"));
}

async function older() {
  most += SHOWN;
  const first = store.events[0]?.seq;
  if (stories.all.length < most && first > 1) {
    const answer = await fetch(`/api/events?before=${first}&limit=${PAGE}`);
    if (answer.ok) {
      const { events } = await answer.json();
      if (!events.length) document.getElementById("older").hidden = true;
      addEvents(events);
    }
  }
  showAll();
}

function entry(story) {
  const parts = { time: h("time"), of: h("button", { type: "button", class: "link", onclick: () => openSlot(story.of) }), text: h("span", { class: "text" }), bar: h("span", { class: "bar-of-stages", "aria-hidden": "true" }), why: h("span", { class: "why" }) };
  parts.details = h("details", { ontoggle: () => parts.details.open && fillDetails(parts, story) }, h("summary", {}, "details"));
  const item = h("li", { class: "entry", data: { kind: story.kind, first: story.first } }, parts.time, h("div", { class: "body" }, h("div", {}, parts.of, " ", parts.text), parts.bar, parts.why, parts.details));
  parts.root = item;
  entries.set(story.first, parts);
  fill(parts, story);
  return item;
}

function fill(parts, story) {
  put(parts.time, moment(story.at));
  parts.time.dateTime = new Date(story.at * 1000).toISOString();
  put(parts.of, story.of);
  parts.root.dataset.kind = story.kind;
  parts.root.dataset.level = level(story);
  put(parts.text, say(story));
  const why = story.kind === "planned" && !story.order ? "" : story.reason;
  put(parts.why, !why ? "" : story.kind === "gate" ? `Missing: ${why}` : capital(why));
  const stages = story.kind === "recovery" || story.kind === "start" ? stagesOf(story) : [];
  const total = stages.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (total > 0 && parts.bar.dataset.of !== String(story.last)) {
    parts.bar.dataset.of = String(story.last);
    parts.bar.replaceChildren(...stages.filter(([, seconds]) => seconds / total > 0.005).map(([name, seconds]) => {
      const part = h("i", { class: `stage-${name}`, title: `${name.replace("_", " ")} ${span(seconds)}` });
      part.style.flexGrow = String(seconds / total);
      return part;
    }));
  }
  if (parts.details.open) fillDetails(parts, story);
}

function level(story) {
  if (story.kind === "recovery") return story.result === "gave up" ? "bad" : story.going ? "warn" : "mended";
  if (story.kind === "gate") return story.going ? (story.closed ? "bad" : "warn") : "mended";
  return story.kind === "start" ? "good" : "calm";
}

/** One sentence for one story. */
function say(story) {
  const life = story.generation ? `#${story.generation} ` : "";
  const lasted = span(story.end - story.at);
  const tries = story.deaths > 1 ? ` ${story.deaths} times` : "";
  switch (story.kind) {
    case "recovery": {
      if (story.result === "gave up") return `${life}died${tries}; given up`;
      if (story.going) return `${life}died${tries}; ${now(story)}`;
      const outage = story.ready?.detail?.outage ?? story.end - story.at;
      return `${life}died${tries}, ready again as #${story.ready?.generation} after ${span(outage)}${shortly(story)}`;
    }
    case "start":
      if (!story.ready) return `${life}is starting`;
      return story.end - story.at < 0.05 && !story.ready.detail?.seconds ? `${life}is ready` : `${life}ready after ${span(story.ready.detail?.seconds ?? story.end - story.at)}`;
    case "planned": {
      const what = story.order ? { drain: "drain", restart: "restart", "restart-now": "restart at once", "take-out": "take out" }[story.order] || story.order : "drained";
      if (story.result === "refused") return `${what} was refused`;
      if (story.result === "ready") return `${life}restarted, ready again after ${lasted}`;
      if (story.result === "stopped") return `${life}stopped as asked`;
      return `${life}${story.order ? `${what} asked for` : "drains"}`;
    }
    case "gate": {
      if (!story.closed && story.what === "changed") return story.going ? "gate not open yet" : `gate opened after ${lasted}`;
      const how = story.closed ? "gate closed" : "gate degraded";
      if (!story.going && story.what === "opened") return "gate opened";
      return story.going ? how : `${how} for ${lasted}, ${story.result}`;
    }
    case "drill":
      if (story.what === "asked") return "drill asked for";
      return story.going ? `drill: ${story.result}` : `drill ${story.result} after ${lasted}`;
    default:
      return `${life}${WORDS[story.what] || story.what.replace("_", " ")}${story.events.length > 1 ? ` (${story.events.length} times)` : ""}`;
  }
}

function now(story) {
  const last = story.events[story.events.length - 1];
  if (last.what === "started") return "is starting again";
  const due = last.detail?.delay === undefined ? 0 : last.at + last.detail.delay - clock();
  return due > 0.5 ? `starts again in ${span(due)}` : "starting again";
}

/** The stages worth naming: the slowest two. */
function shortly(story) {
  const told = stagesOf(story).filter(([, seconds]) => seconds >= 0.01).sort((a, b) => b[1] - a[1]).slice(0, 2);
  return told.length ? ` (${told.map(([name, seconds]) => `${name.replace("_", " ")} ${span(seconds)}`).join(", ")})` : "";
}

function fillDetails(parts, story) {
  const filled = `${story.last}`;
  if (parts.details.dataset.of === filled) return;
  parts.details.dataset.of = filled;
  const stages = stagesOf(story);
  const table = stages.length ? h("dl", { class: "stages" }, stages.map(([name, seconds]) => h("div", {}, h("dt", {}, STAGES.includes(name) ? h("i", { class: `stage-${name}` }) : "", name.replace("_", " ")), h("dd", {}, span(seconds))))) : "";
  const rows = story.events.map((event) => {
    const more = typeof event.detail?.last_lines === "number" && event.detail.last_lines ? h("button", { type: "button", class: "link", onclick: (click) => lastLines(event, click.currentTarget.parentElement) }, many(event.detail.last_lines, "last line")) : "";
    return h("li", {}, h("time", {}, moment(event.at)), ` ${event.topic === "gate" ? "gate " : ""}${event.what.replace("_", " ")}${event.generation ? ` #${event.generation}` : ""}${event.reason ? `: ${event.reason}` : ""} `, more);
  });
  const slot = store.slots.get(story.of);
  const log = slot && slot.spawn !== "external" ? h("button", { type: "button", class: "quiet", onclick: () => logOf(story.of, Math.max(0, (slot.generation || 0) - story.generation)) }, `Log of #${story.generation}`) : "";
  parts.details.replaceChildren(parts.details.firstChild, table, h("ol", { class: "events" }, rows.slice(-60)), log);
}
