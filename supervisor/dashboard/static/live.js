// Keeps what the supervisor tells: a snapshot, then changes, over one connection that is made anew whenever it breaks.

import { setClock } from "./words.js";

const SILENT = 12; // seconds without a word (one comes every 5) after which the connection is taken for dead
const KEPT = 3000;

export const store = {
  head: null,
  slots: new Map(),
  figures: new Map(),
  traffic: {},
  points: {},
  events: [],
  drill: { allowed: false, playing: null, text: "" },
  heard: 0,
  state: "waiting",
};

const listeners = { snapshot: [], change: [], events: [], state: [], drill: [], traffic: [], points: [] };

/** Be called at: snapshot, change(slots), events(added), state, drill, traffic, points. */
export const on = (what, call) => listeners[what].push(call);
const tell = (what, value) => listeners[what].forEach((call) => call(value));

let source = null;
let last = 0;

export function connect() {
  source?.close();
  source = new EventSource("/api/live");
  const hear = (kind, take) =>
    source.addEventListener(kind, (message) => {
      last = performance.now();
      store.heard = Date.now() / 1000;
      take(JSON.parse(message.data));
      setState("live");
    });
  hear("snapshot", onSnapshot);
  hear("change", onChange);
  hear("event", (event) => addEvents([event]));
  hear("drill", (drill) => {
    store.drill = drill;
    tell("drill");
  });
  hear("points", (points) => addPoints(points));
  hear("beat", setClock);
  source.onerror = () => {
    setState(store.head ? "stale" : "waiting");
    // A refusal closes it for good; a break is tried again by the browser itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

setInterval(() => {
  if (store.state === "live" && performance.now() - last > SILENT * 1000) {
    setState("stale");
    connect();
  }
}, 1000);

function setState(state) {
  if (store.state === state) return;
  store.state = state;
  tell("state");
}

function onSnapshot(told) {
  setClock(told.now);
  store.head = told.head;
  store.slots = new Map(Object.entries(told.slots));
  store.figures = new Map(Object.entries(told.figures));
  store.traffic = told.traffic || {};
  store.drill = told.drill;
  if (told.anew) store.events = [];
  tell("snapshot");
  addEvents(told.events, true);
  tell("drill");
  if (told.points) addPoints(told.points, true);
}

function onChange(told) {
  const touched = new Set([...Object.keys(told.slots || {}), ...Object.keys(told.figures || {})]);
  for (const [name, slot] of Object.entries(told.slots || {})) store.slots.set(name, slot);
  for (const [name, row] of Object.entries(told.figures || {})) store.figures.set(name, row);
  for (const name of told.gone || []) {
    store.slots.delete(name);
    store.figures.delete(name);
  }
  if (told.head) store.head = told.head;
  if (told.traffic) {
    store.traffic = told.traffic;
    tell("traffic");
  }
  if (touched.size || told.head || told.gone) tell("change", { touched, head: Boolean(told.head), shape: Boolean(told.gone) || Object.keys(told.slots || {}).length > 0 });
}

/** Add events that are new to us; also older ones, asked for. */
export function addEvents(events, anew = false) {
  const newest = store.events.length ? store.events[store.events.length - 1].seq : 0;
  const inOrder = events.every((event, at) => event.seq > (at ? events[at - 1].seq : newest));
  const known = inOrder ? null : new Set(store.events.map((event) => event.seq));
  const added = inOrder ? events : events.filter((event) => !known.has(event.seq));
  if (!added.length && !anew) return;
  store.events.push(...added);
  if (!inOrder) store.events.sort((a, b) => a.seq - b.seq);
  if (store.events.length > KEPT) store.events.splice(0, store.events.length - KEPT);
  tell("events", { added, anew: anew || !inOrder });
}

function addPoints(points, anew = false) {
  if (anew) store.points = {};
  for (const [model, more] of Object.entries(points)) {
    const had = store.points[model] || [];
    store.points[model] = had.filter((point) => point.at < more[0]?.at).concat(more).slice(-180);
  }
  tell("points");
}
