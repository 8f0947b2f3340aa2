// The first thing to see: whether the service is well, and if not, which slot, since when, why, and what is being done.

import { store } from "./live.js";
import { age, capital, clock, h, many, put, span, stateOf } from "./words.js";

const MOST = 6;
const RANK = { bad: 0, warn: 1, busy: 2, calm: 3 };
const SIGN = { good: "✓", busy: "▷", warn: "!", bad: "✕", wait: "…" };

/** What is wrong with a slot, as {level, slot, since, why, doing}; null where nothing is. */
export function troubleOf(slot) {
  const state = stateOf(slot);
  const why = slot.reason && !slot.planned ? slot.reason : slot.planned ? "as asked" : "";
  const first = !slot.restarts && !why;
  const trouble = (level, doing) => ({ level, slot: slot.slot, since: slot.since, why, doing, state, restarts: slot.restarts || 0 });
  switch (state) {
    case "ready":
    case "standby":
      return null;
    case "failed":
      return trouble("bad", "given up: it needs a person");
    case "silent":
      return trouble("warn", "no heartbeat; its process is being looked at");
    case "killing":
      return trouble("warn", "being killed, then started again");
    case "waiting": {
      if (slot.spawn === "external") return trouble("warn", "its manager starts it");
      const due = dueOf(slot);
      const wait = due && due > clock() ? `starts again in ${span(due - clock())}` : "about to be started";
      return trouble(first ? "busy" : "warn", slot.stage || wait);
    }
    case "starting":
    case "loading":
    case "registering":
      return trouble(first || slot.planned ? "busy" : "warn", `${first ? "starting" : "starting again"}${slot.stage ? `: ${slot.stage.replace("_", " ")}` : ""}`);
    case "draining":
      return trouble("calm", "finishes what it has");
    case "stopped":
      return trouble(slot.planned ? "calm" : "warn", slot.planned ? "stays stopped until it is restarted" : "stays stopped");
    default:
      return trouble("warn", state);
  }
}

/** When a slot's back-off is over, by its last death; undefined where nobody has said. */
function dueOf(slot) {
  for (let at = store.events.length - 1; at >= 0 && at > store.events.length - 400; at--) {
    const event = store.events[at];
    if (event.of === slot.slot && event.what === "died") return event.detail?.delay === undefined ? undefined : event.at + event.detail.delay;
  }
  return undefined;
}

/** Judge the whole cluster: {level, title, note, lines}. */
export function judge() {
  const { head, slots } = store;
  if (!head) return { level: "wait", title: "Looking", note: "Waiting for the supervisor’s word.", lines: [] };
  const troubles = [...slots.values()].map(troubleOf).filter(Boolean);
  const gates = head.gates || [];
  const closed = gates.filter((gate) => !gate.open);
  const known = new Set(gates.map((gate) => gate.alias));
  const models = [...new Set([...slots.values()].filter((slot) => slot.model).map((slot) => slot.alias))];
  const unknown = models.filter((alias) => !known.has(alias)).length;
  const ready = [...slots.values()].filter((slot) => stateOf(slot) === "ready").length;
  const lines = troubles.sort((a, b) => RANK[a.level] - RANK[b.level] || a.since - b.since);
  const { playing } = store.drill;
  const standby = [...slots.values()].filter((slot) => slot.standby && stateOf(slot) === "standby").length;
  const more = [
    standby ? `${standby} on standby` : "",
    ...(head.rolling || []).filter((one) => one.state === "going").map((one) => `rolling restart of ${one.model}: ${one.done || 0} of ${one.total} done`),
    playing ? `the drill ${playing.drill} is being played` : "",
  ].filter(Boolean);
  const note = [`${ready} of ${many(slots.size - standby, "slot")} ready · ${gates.length - closed.length} of ${many(Math.max(models.length, gates.length), "gate")} open`, ...more].join(" · ");
  if (!head.nats_up) return { level: "bad", title: "The supervisor has lost NATS", note, lines };
  if (closed.length || unknown) {
    const neverOpen = unknown || closed.every((gate) => !gate.opened);
    const hurt = troubles.some((one) => one.level === "bad" || one.level === "warn");
    if (neverOpen && !hurt) return { level: "busy", title: "Starting", note, lines };
    const names = closed.map((gate) => gate.model).join(", ");
    return { level: "bad", title: names ? `Not serving ${names}` : "Not serving", note: `${note}. New requests wait at the gate.`, lines };
  }
  if (troubles.some((one) => one.level === "bad")) return { level: "bad", title: "Serving, but a slot has been given up", note, lines };
  if (troubles.some((one) => one.level === "warn")) return { level: "warn", title: "Serving, and being mended", note, lines };
  if (troubles.length) return { level: "busy", title: "Serving, with a change under way", note, lines };
  return { level: "good", title: "All is well", note, lines };
}

export function showVerdict(open) {
  const root = document.getElementById("verdict");
  const found = judge();
  root.dataset.level = found.level;
  root.dataset.sign = SIGN[found.level];
  put(root.querySelector("h1"), found.title);
  put(root.querySelector("p"), found.note);
  const list = root.querySelector("ul");
  const shown = found.lines.slice(0, MOST);
  while (list.children.length > shown.length + (found.lines.length > MOST ? 1 : 0)) list.lastChild.remove();
  shown.forEach((one, at) => {
    let item = list.children[at];
    if (!item?.dataset.slot) {
      const made = h("li", { data: { slot: one.slot } }, h("button", { type: "button", class: "link", onclick: (event) => open(event.currentTarget.textContent) }), h("span", { class: "what" }), h("span", { class: "why" }));
      if (item) item.replaceWith(made);
      else list.append(made);
      item = made;
    }
    item.dataset.level = one.level;
    put(item.children[0], one.slot);
    put(item.children[1], `${one.state} for ${age(one.since)} – ${one.doing}`);
    put(item.children[2], one.why && one.why !== "as asked" ? `${capital(one.why)}${one.restarts > 1 ? ` (${one.restarts} restarts)` : ""}` : "");
  });
  if (found.lines.length > MOST) {
    const rest = list.children[MOST] || list.appendChild(h("li", { class: "soft" }));
    put(rest, `and ${found.lines.length - MOST} more`);
  }
  document.title = `${SIGN[found.level]} ${store.head?.cluster || "Troupe"} – ${found.title}`;
}
