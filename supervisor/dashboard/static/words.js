// What all parts of the page share: making elements (texts are texts, never markup) and putting times and counts in words.

/** Make an element: attributes, listeners (onclick: ...), and children (texts or elements). */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Set a text only where it is another one: the browser need not lay out what has not changed. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let skew = 0;

/** Take the server's clock for ours. */
export function setClock(now) {
  if (typeof now === "number") skew = now - Date.now() / 1000;
}

/** The moment by the server's clock, in seconds since 1970. */
export const clock = () => Date.now() / 1000 + skew;

/** A span of time in words: 40 ms, 3.1 s, 45 s, 12 min, 5 h, 3 days. */
export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 0.95) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 119.5) return `${Math.round(s)} s`;
  if (s < 7170) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** How long something has lasted, without the flicker of tenths. */
export function age(since) {
  const s = Math.max(0, clock() - since);
  return s < 1 ? "a moment" : span(Math.floor(s) || 1).replace(/\.0 s$/, " s");
}

const timeForm = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const dayForm = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** The time of day, with the day where it is another one. */
export function moment(at) {
  const date = new Date(at * 1000);
  const today = new Date();
  const time = timeForm.format(date);
  return date.toDateString() === today.toDateString() ? time : `${dayForm.format(date)}, ${time}`;
}

/** A number with as many places as help: 0.4, 12, 1,234, 56k. */
export function count(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 10) return String(Math.round(value * 10) / 10);
  if (value < 10000) return Math.round(value).toLocaleString("en");
  return value < 999500 ? `${Math.round(value / 1000)}k` : `${(value / 1e6).toFixed(1)}M`;
}

export const bytes = (value) => (value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${Math.round(value / 2 ** 20)} MiB`);
export const many = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** What each state means: a word, a sign and a level, so that colour is never alone. */
export const STATES = {
  ready: ["ready", "✓", "good"],
  standby: ["standby", "◑", "good"],
  waiting: ["waiting", "…", "warn"],
  starting: ["starting", "▷", "busy"],
  loading: ["loading", "▷", "busy"],
  registering: ["registering", "▷", "busy"],
  draining: ["draining", "▽", "calm"],
  killing: ["killing", "✕", "warn"],
  stopped: ["stopped", "■", "calm"],
  failed: ["failed", "✕", "bad"],
  silent: ["silent", "?", "warn"],
};

/** The state of a slot as people should see it: one that is ready, but not heard, is silent. */
export function stateOf(slot) {
  if (slot.state === "ready" && !slot.live && !slot.standby) return "silent";
  return slot.state;
}

export const levelOf = (state) => (STATES[state] || [state, "•", "calm"])[2];

/** A slot's name without its model's alias: the group says that already. */
export const shortName = (slot) => (slot.alias && slot.slot.startsWith(`${slot.alias}-`) ? slot.slot.slice(slot.alias.length + 1) : slot.slot);
