// Traffic of the last 15 minutes, as plots (uPlot, loaded when there is something to plot), with marks where something happened.

import { store } from "./live.js";
import { count, h, put } from "./words.js";

const STEP = 5;
const HEIGHT = 130;
const ms = (seconds) => (seconds === null || seconds === undefined ? null : seconds * 1000);

/** Each plot: title, unit, lines as [word, colour variable, value of a point]. */
const PLOTS = [
  ["Requests", "per second", [["finished", "--plot-1", (p) => p.requests], ["failed", "--bad", (p) => p.failed / STEP]]],
  ["Tokens", "per second", [["out", "--plot-1", (p) => p.tokens], ["in", "--plot-2", (p) => p.prompt_tokens]]],
  ["Time to first token", "ms", [["p50", "--plot-1", (p) => ms(p.ttft_p50)], ["p99", "--plot-2", (p) => ms(p.ttft_p99)]]],
  ["Between tokens", "ms", [["p50", "--plot-1", (p) => ms(p.itl_p50)], ["p99", "--plot-2", (p) => ms(p.itl_p99)]]],
  ["Waiting and in flight", "requests", [["in flight", "--plot-1", (p) => p.in_flight], ["queued", "--plot-2", (p) => p.queued]]],
  ["Moved elsewhere", "in 5 s", [["migrated", "--plot-1", (p) => p.migrated], ["refused", "--bad", (p) => p.refused]]],
];

let chosen = "";
let plots = [];
let drawn = "";
let library = null;
let marks = () => [];
let waiting = false;

export function setUpTraffic(marksOf) {
  marks = marksOf;
  new ResizeObserver(() => resize()).observe(document.getElementById("plots"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn = "";
    showPlots();
  });
}

/** Show the newest points; drawn at most once a second. */
export function showPlots() {
  const models = Object.keys(store.points).filter((model) => store.points[model].length);
  if (!models.length || waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    draw(models).catch(() => {});
  }, drawn ? 500 : 0);
}

function load() {
  library ||= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: "/static/vendor/uPlot.min.css" }), h("script", { src: "/static/vendor/uPlot.iife.min.js", onload: () => resolve(window.uPlot), onerror: reject }));
  });
  return library;
}

async function draw(models) {
  if (!models.includes(chosen)) chosen = models[0];
  const uPlot = await load();
  if (drawn !== `${chosen} ${models}`) {
    drawn = `${chosen} ${models}`;
    choices(models);
    const root = document.getElementById("plots");
    for (const one of plots) one.destroy();
    root.replaceChildren();
    plots = PLOTS.map(([title, unit, lines]) => make(uPlot, root, title, unit, lines));
  }
  const points = store.points[chosen];
  const at = points.map((point) => point.at);
  plots.forEach((plot, number) => {
    plot.setData([at, ...PLOTS[number][2].map(([, , value]) => points.map((point) => value(point) ?? null))]);
    const newest = points[points.length - 1];
    put(plot.newest, PLOTS[number][2].map(([word, , value]) => `${word} ${count(value(newest))}`).join(" · "));
  });
}

function choices(models) {
  const root = document.getElementById("traffic-models");
  const choose = (model) => () => {
    chosen = model;
    showPlots();
  };
  root.replaceChildren(...(models.length > 1 ? models.map((model) => h("label", { class: "chip" }, h("input", { type: "radio", name: "traffic-model", checked: model === chosen, onchange: choose(model) }), model)) : []));
}

function make(uPlot, root, title, unit, lines) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const newest = h("span", { class: "newest" });
  const box = h("figure", { class: "plot" }, h("figcaption", {}, h("strong", {}, title), h("span", { class: "soft" }, ` ${unit} `), newest));
  root.append(box);
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const plot = new uPlot(
    {
      width: Math.max(200, box.clientWidth - 2),
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 5 }, sync: { key: "traffic" } },
      scales: { y: { range: (_, least, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        { ...axis, size: 24, space: 60, values: (_, ticks, __, ___, step) => ticks.map((at) => new Date(at * 1000).toTimeString().slice(0, step < 60 ? 8 : 5)) },
        { ...axis, size: 44, values: (_, ticks) => ticks.map((value) => count(value)) },
      ],
      series: [{}, ...lines.map(([label, name]) => ({ label, stroke: colour(name), width: 1.5, points: { show: false } }))],
      hooks: { drawClear: [(self) => drawMarks(self, colour)] },
    },
    [[], ...lines.map(() => [])],
    box,
  );
  plot.newest = newest;
  return plot;
}

/** Draw bands and lines where something happened: a death, a closed gate, a drill. */
function drawMarks(plot, colour) {
  const { ctx, bbox } = plot;
  const { min, max } = plot.scales.x;
  if (min === null || min === undefined) return;
  ctx.save();
  for (const one of marks()) {
    if (one.end < min || one.at > max) continue;
    const from = plot.valToPos(Math.max(one.at, min), "x", true);
    const to = plot.valToPos(Math.min(one.going ? max : one.end, max), "x", true);
    ctx.fillStyle = colour(one.kind === "drill" ? "--mark-drill" : "--mark");
    ctx.fillRect(from, bbox.top, Math.max(2, to - from), bbox.height);
  }
  ctx.restore();
}

function resize() {
  for (const plot of plots) {
    const width = Math.max(200, plot.root.parentElement.clientWidth - 2);
    if (width !== plot.width) plot.setSize({ width, height: HEIGHT });
  }
}

