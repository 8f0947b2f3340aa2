// What can be done: a slot's details, its log, and orders, each after a confirmation that says what will happen.

import { store } from "./live.js";
import { STATES, age, bytes, capital, count, h, levelOf, many, moment, put, span, stateOf } from "./words.js";

const KEY = "troupe-token";
const dialog = () => document.getElementById("slot-dialog");

let token = sessionStorage.getItem(KEY) || "";
let shown = "";
let parts = null;
let filter = () => {};

export const setFilter = (call) => (filter = call);

/** Ask the server, with the token if there is one; throws an error with the server's sentence. */
export async function ask(method, path) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch {
    throw new Error("the supervisor does not answer");
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = await answer.json();
  } catch {
    told = {};
  }
  if (answer.status === 401) lock();
  const error = new Error(told.error || told.message || `the supervisor says ${answer.status}`);
  error.status = answer.status;
  throw error;
}

/** Tell what came of an action. */
export function said(text, bad = false) {
  const node = document.getElementById("said");
  put(node, text);
  node.dataset.bad = bad ? "yes" : "";
  node.dataset.shown = "yes";
  clearTimeout(said.timer);
  said.timer = setTimeout(() => (node.dataset.shown = ""), 6000);
}

function lock() {
  token = "";
  sessionStorage.removeItem(KEY);
  showLock();
}

export function showLock() {
  const button = document.getElementById("token");
  put(button, token ? "Lock actions" : "Unlock actions");
}

export function setUpActions() {
  document.getElementById("token").addEventListener("click", async () => {
    if (token) lock();
    else await unlocked("Unlock actions");
  });
  for (const one of document.querySelectorAll("dialog")) one.addEventListener("click", (event) => event.target === one && one.close("no"));
  dialog().addEventListener("close", () => (shown = ""));
  showLock();
}

/** Make sure that there is a token, asking for it; false where there is none. */
async function unlocked(title) {
  return token ? true : confirm(title, ["Actions and logs need the token that `troupe status` shows."], "Unlock");
}

/** Ask whether it is meant; asks for the token, too, where there is none. Answers true once the token is known good. */
function confirm(title, lines, verb, danger = false) {
  const root = document.getElementById("confirm");
  return new Promise((resolve) => {
    const field = token ? null : h("input", { type: "password", name: "token", autocomplete: "off", required: true, "aria-label": "Token" });
    const wrong = h("p", { class: "wrong", role: "alert" });
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
    const form = h(
      "form",
      {
        method: "dialog",
        onsubmit: async (event) => {
          event.preventDefault();
          go.disabled = true;
          try {
            if (field) {
              token = field.value.trim();
              await ask("GET", "/api/token");
              sessionStorage.setItem(KEY, token);
              showLock();
            }
            root.close("yes");
          } catch (error) {
            put(wrong, error.status === 401 ? "That is not the token." : capital(error.message));
            go.disabled = false;
          }
        },
      },
      h("h2", { id: "confirm-title" }, title),
      lines.filter(Boolean).map((line) => h("p", {}, line)),
      field ? h("label", {}, "Token ", field, h("small", { class: "soft" }, "shown by troupe status; kept in this tab alone")) : "",
      wrong,
      h("div", { class: "buttons" }, h("button", { type: "button", class: "quiet", onclick: () => root.close("no") }, "Cancel"), go),
    );
    root.replaceChildren(form);
    root.returnValue = "";
    root.addEventListener("close", () => resolve(root.returnValue === "yes"), { once: true });
    root.showModal();
    (field || go).focus();
  });
}

/** Confirm something else that needs the token, and do it. */
export async function confirmed(title, lines, verb, method, path) {
  if (!(await confirm(title, lines, verb))) return false;
  try {
    said(capital((await (await ask(method, path)).json()).message));
    return true;
  } catch (error) {
    said(capital(error.message), true);
    return false;
  }
}

// Orders.

const ORDERS = {
  drain: ["Drain", "It takes nothing new, finishes what it has, and stays stopped until it is restarted."],
  restart: ["Restart", "It takes nothing new, finishes what it has, and its next generation is started then."],
  "restart-now": ["Restart now", "It is ended at once and started again without waiting for a back-off."],
  "take-out": ["Take out", "It is ended at once and stays stopped until it is restarted."],
};

function consequences(slot, order) {
  const [flight = 0] = store.figures.get(slot.slot) || [];
  const gentle = order === "drain" || order === "restart";
  const engine = slot.role === "prefill" || slot.role === "decode" || slot.role === "encoder";
  const running = ["ready", "draining", "loading", "silent"].includes(stateOf(slot));
  const lines = [running ? ORDERS[order][1] : order === "drain" || order === "take-out" ? "It does not run; it stays stopped until it is restarted." : "It does not run; it is started at once, and its crashes are forgotten."];
  if (running && flight && gentle) lines.push(`${many(flight, "request")} in flight will be finished first.`);
  if (running && flight && !gentle) lines.push(engine ? `${many(flight, "request")} in flight will go on elsewhere.` : `${many(flight, "request")} in flight will end with an error.`);
  const others = [...store.slots.values()].filter((one) => one.alias === slot.alias && one.role === slot.role && one.slot !== slot.slot && stateOf(one) === "ready").length;
  if (slot.model && slot.state === "ready" && !others) lines.push(`No other ${slot.role} of ${slot.model} is ready: its gate closes, and new requests wait${order === "drain" || order === "take-out" ? "" : " until it is back"}.`);
  if (slot.spawn === "external") lines.push("It is external: its manager decides whether it is started again.");
  return lines;
}

async function order(name, what) {
  const slot = store.slots.get(name);
  if (!slot) return;
  const [verb] = ORDERS[what];
  const meant = await confirm(`${verb} ${name}?`, consequences(slot, what), verb, what === "take-out" || what === "restart-now");
  if (!meant) return;
  try {
    said(capital((await (await ask("POST", `/api/slots/${encodeURIComponent(name)}/${what}`)).json()).message));
  } catch (error) {
    said(capital(error.message), true);
  }
}

// A slot's details.

export function openSlot(name) {
  if (!store.slots.has(name)) {
    filter(name);
    return;
  }
  shown = name;
  parts = { facts: h("dl", { class: "facts" }), state: h("span", { class: "pill" }), log: h("div", { class: "log" }) };
  const button = (what) => h("button", { type: "button", class: what === "restart" ? "primary" : "quiet", data: { order: what }, onclick: () => order(name, what) }, ORDERS[what][0]);
  dialog().replaceChildren(
    h("div", { class: "head" }, h("h2", { id: "slot-title" }, name), parts.state, h("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog().close() }, "✕")),
    parts.facts,
    h("div", { class: "buttons" }, Object.keys(ORDERS).map(button), h("button", { type: "button", class: "quiet", data: { order: "log" }, onclick: () => logOf(name, 0) }, "Log"), h("button", { type: "button", class: "quiet", onclick: () => (dialog().close(), filter(name), document.getElementById("timeline").scrollIntoView()) }, "Its timeline")),
    parts.log,
  );
  refreshSlot();
  if (!dialog().open) dialog().showModal();
}

/** Keep the open details true. */
export function refreshSlot() {
  const slot = shown && store.slots.get(shown);
  if (!slot || !parts) return;
  const state = stateOf(slot);
  const [word, sign] = STATES[state] || [state, "•"];
  put(parts.state, `${sign} ${word}`);
  parts.state.dataset.level = levelOf(state);
  const [flight = 0, queued = 0, used = 0, rss = 0, probed = 0, speed = 0] = store.figures.get(shown) || [];
  const rows = [
    ["State", `${word}${slot.stage ? ` (${slot.stage.replace("_", " ")})` : ""} for ${age(slot.since)}, since ${moment(slot.since)}`],
    ["Last reason", slot.reason ? `${slot.reason}${slot.planned ? " (planned)" : ""}` : ""],
    ["Model", slot.model ? `${slot.model}, ${slot.role}` : slot.role],
    ["Generation", `${slot.generation || "none yet"}${slot.restarts ? `, ${many(slot.restarts, "restart")}` : ""}`],
    ["Process", [slot.pid ? `pid ${slot.pid}` : "", slot.host, slot.spawn].filter(Boolean).join(", ")],
    ["GPUs", slot.gpus?.join(", ")],
    ["Requests", slot.capacity ? `${flight} of ${slot.capacity} in flight, ${queued} queued` : `${flight} in flight`],
    ["Tokens", speed ? `${count(speed)} a second` : ""],
    ["KV cache", slot.kv_total ? `${used} of ${slot.kv_total} blocks, ${Math.round((100 * used) / slot.kv_total)} %` : ""],
    ["Memory", rss ? bytes(rss) : ""],
    ["Loaded in", slot.load_seconds ? span(slot.load_seconds) : ""],
    ["Last recovery", slot.recovery && Object.keys(slot.recovery).length ? Object.entries(slot.recovery).filter(([, seconds]) => seconds >= 0.001).map(([name, seconds]) => `${name.replace("_", " ")} ${span(seconds)}`).join(", ") : ""],
    ["Health probe", slot.probe ? `${slot.probe.result}${probed ? `, ${age(probed)} ago` : ""}${slot.probe.message ? `: ${slot.probe.message}` : ""}` : ""],
    ["HTTP", slot.http],
  ].filter(([, value]) => value);
  if (parts.facts.childElementCount !== rows.length) parts.facts.replaceChildren(...rows.map(() => h("div", {}, h("dt"), h("dd"))));
  rows.forEach(([word_, value], at) => {
    put(parts.facts.children[at].firstChild, word_);
    put(parts.facts.children[at].lastChild, String(value));
  });
}

/** Show the log of a slot's life so many before this one. */
export async function logOf(name, previous) {
  if (!(await unlocked(`Log of ${name}`))) return;
  if (shown !== name) openSlot(name);
  const root = parts.log;
  try {
    const answer = await ask("GET", `/api/slots/${encodeURIComponent(name)}/log?lines=500&previous=${previous}`);
    const text = h("pre", { tabindex: "0", "aria-label": `Log of ${name}` }, (await answer.text()) || "(empty)");
    const which = (back) => (back === 0 ? "this life" : back === 1 ? "the life before" : `${back} lives before`);
    const step = (back, word) => h("button", { type: "button", class: "quiet", onclick: () => logOf(name, back) }, word);
    root.replaceChildren(h("div", { class: "head" }, h("h3", {}, `Log, ${which(previous)}`), previous ? step(previous - 1, "Newer") : "", step(previous + 1, "Older"), step(previous, "Again")), text);
    text.scrollTop = text.scrollHeight;
  } catch (error) {
    said(capital(error.message), true);
  }
}

/** Show what a dead process said last, below an event. */
export async function lastLines(event, below) {
  if (!(await unlocked(`Last lines of ${event.of}`))) return;
  try {
    const told = await (await ask("GET", `/api/events/${event.seq}`)).json();
    below.querySelector("pre")?.remove();
    below.append(h("pre", { tabindex: "0" }, told.event.detail.last_lines.join("\n")));
  } catch (error) {
    said(capital(error.message), true);
  }
}
