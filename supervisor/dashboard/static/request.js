// One request's way: where it was when, from the processors that remember it.

import { h, moment, put, span } from "./words.js";

export function setUpRequest() {
  const form = document.getElementById("request-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    lookUp(form.elements.id.value.trim());
  });
}

async function lookUp(id) {
  const root = document.getElementById("way");
  if (!id) return;
  put(root, "Asking the processors …");
  try {
    const answer = await fetch(`/api/requests/${encodeURIComponent(id)}`);
    const told = await answer.json();
    if (!answer.ok) root.replaceChildren(h("p", { class: "wrong" }, told.error));
    else root.replaceChildren(...told.ways.map(way));
  } catch {
    root.replaceChildren(h("p", { class: "wrong" }, "The supervisor does not answer."));
  }
}

function way(one) {
  const stations = one.stations || [];
  const begin = stations[0]?.at || 0;
  const last = stations[stations.length - 1]?.at || begin;
  const code = one.code ? `code ${one.code}` : "under way";
  const head = `${one.kind} in ${one.slot}#${one.generation}: ${code}, attempt ${one.attempt || 0}, ${one.prompt_tokens || 0} tokens in, ${one.tokens || 0} out`;
  const rows = stations.map((station) => {
    const bar = h("i");
    bar.style.marginInlineStart = `${last > begin ? (100 * (station.at - begin)) / (last - begin) : 0}%`;
    return h("li", { data: { what: station.what } }, h("time", {}, `+${span(station.at - begin)}`), h("span", { class: "rail" }, bar), h("span", {}, station.what.replace("_", " "), (station.where || []).length ? ` ${station.where.join(", ")}` : "", station.why ? h("span", { class: "soft" }, ` ${station.why}`) : ""));
  });
  return h("div", { class: "way" }, h("p", {}, head, h("span", { class: "soft" }, ` began ${moment(begin)}`)), h("ol", {}, rows), one.untold ? h("p", { class: "soft" }, `${one.untold} stations in between are not told`) : "");
}
