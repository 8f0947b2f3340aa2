// Drills: what there is, the one that is being played, live, and the reports of those before.

import { confirmed } from "./actions.js";
import { store } from "./live.js";
import { age, h, moment, put, span } from "./words.js";

let known = null;
let wasPlaying = false;

export function setUpDrills() {
  document.getElementById("drills-open").addEventListener("click", list);
}

/** Show the drill that is being played, and its words. */
export function showDrill() {
  const { allowed, playing, text } = store.drill;
  put(document.getElementById("drills-note"), allowed ? "rehearse a failure under load, on this very cluster" : "refused by the configuration (drills: allowed would allow them)");
  const root = document.getElementById("drill-now");
  if (playing || text) {
    if (!root.firstChild) root.append(h("p", {}, h("strong"), " ", h("button", { type: "button", class: "quiet", onclick: stop }, "Heal and end")), h("pre", { tabindex: "0", "aria-label": "What the drill says" }));
    put(root.querySelector("strong"), playing ? `${playing.drill} is being played, for ${age(playing.started)}` : "The last drill said");
    root.querySelector("button").hidden = !playing;
    const words = root.querySelector("pre");
    put(words, text.trim() || "…");
    words.scrollTop = words.scrollHeight;
  } else root.replaceChildren();
  if (wasPlaying && !playing && known) list();
  wasPlaying = Boolean(playing);
}

async function list() {
  const root = document.getElementById("drill-list");
  try {
    const answer = await fetch("/api/drills");
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    known = told;
    const rows = told.drills.map((one) => h("li", {}, h("button", { type: "button", class: "quiet", disabled: !told.allowed, onclick: () => start(one) }, one.name), h("span", {}, one.what)));
    const runs = told.runs.map((one) => h("li", {}, h("span", { class: "pill", data: { level: one.result === "passed" ? "good" : one.result === "impossible" ? "calm" : "bad" } }, one.result), h("a", { href: `/api/drills/${encodeURIComponent(one.run)}/report`, target: "_blank", rel: "noopener" }, one.run), h("span", { class: "soft" }, one.recovered !== null && one.recovered !== undefined ? ` recovered after ${span(one.recovered)}` : ` ${moment(one.started)}`)));
    root.replaceChildren(h("ul", { class: "drill-names" }, rows), runs.length ? h("h3", {}, "Reports") : "", h("ul", { class: "runs" }, runs));
  } catch (error) {
    root.replaceChildren(h("p", { class: "wrong" }, error.message));
  }
}

const start = (one) => confirmed(`Play the drill ${one.name}?`, [`It hurts this running cluster: ${one.what}.`, `Expected: ${one.expected}.`, "It begins after a warning of a few seconds, puts load of its own on the cluster, and writes a report."], "Play it", "POST", `/api/drills/${encodeURIComponent(one.name)}`);
const stop = () => confirmed("End the drill?", ["It heals what it has hurt, and ends."], "Heal and end", "DELETE", "/api/drills");
