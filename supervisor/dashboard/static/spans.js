// Makes stories of single events, pure: a death and what followed is one span, a closed gate one, repeats are counted.

export const KINDS = {
  recovery: "Recoveries",
  planned: "Actions",
  gate: "Gates",
  start: "Starts",
  drill: "Drills",
  other: "Other",
};

/** The order in which a recovery's stages come, and the words for them. */
export const STAGES = ["detect", "clean", "backoff", "spawn", "import", "load", "warm_up", "register", "gate"];

const PLANNED = new Set(["asked", "draining", "aborted"]);
const DEATHS = new Set(["died", "condemned", "gave_up"]);

export class Stories {
  constructor() {
    this.all = [];
    this.open = new Map();
  }

  /** Take in events, the oldest first; return the stories that have changed. */
  take(events) {
    const touched = new Set();
    for (const event of events) {
      const story = this.place(event);
      story.events.push(event);
      story.end = Math.max(story.end, event.at);
      story.last = event.seq;
      touched.add(story);
    }
    return touched;
  }

  place(event) {
    if (event.topic === "restart") return this.slot(event);
    if (event.topic === "gate") return this.gate(event);
    if (event.topic === "drill") return this.drill(event);
    return this.repeat(event);
  }

  begin(kind, event, more = {}) {
    const story = { kind, of: event.of, at: event.at, end: event.at, first: event.seq, last: event.seq, generation: event.generation || 0, going: true, events: [], deaths: 0, reason: "", result: "", ...more };
    this.all.push(story);
    return story;
  }

  slot(event) {
    const key = `slot ${event.of}`;
    let story = this.open.get(key);
    const { what } = event;
    if (DEATHS.has(what) && !event.planned) {
      if (!story || (story.kind !== "recovery" && story.kind !== "start")) {
        story = this.begin("recovery", event);
        this.open.set(key, story);
      }
      if (story.kind === "start") story.kind = "recovery";
      if (!story.reason) story.reason = event.reason;
      const lives = (story.died ||= new Set());
      lives.add(event.generation);
      story.deaths = lives.size;
      if (what === "gave_up") this.close(key, story, "gave up");
      return story;
    }
    if (story?.result === "stopped" && event.at - story.end > 5) {
      // It stayed stopped; what comes now is another story.
      this.close(key, story, "stopped");
      story = undefined;
    }
    if (PLANNED.has(what) || (what === "stopped" && event.planned)) {
      if (!story || story.kind !== "planned") {
        story = this.begin("planned", event);
        this.open.set(key, story);
      }
      if (what === "asked") {
        story.order = event.detail?.order || "";
        story.reason = event.reason;
        if (event.detail?.done === false) this.close(key, story, "refused");
      }
      if (what === "stopped") story.result = "stopped";
      return story;
    }
    if (what === "ready") {
      if (!story) story = this.begin("start", event);
      story.ready = event;
      this.close(key, story, "ready");
      return story;
    }
    if (what === "started" && !story) {
      story = this.begin("start", event);
      this.open.set(key, story);
      return story;
    }
    if (story && story.going) return story;
    return this.repeat(event);
  }

  gate(event) {
    const key = `gate ${event.of}`;
    let story = this.open.get(key);
    const bad = event.what === "closed" || event.what === "degraded" || event.detail?.open === false;
    if (bad && !story) {
      story = this.begin("gate", event, { reason: event.reason, what: event.what });
      this.open.set(key, story);
    }
    if (!story) return this.repeat(event, "gate");
    if (event.what === "closed") {
      story.closed = true;
      story.reason = event.reason || story.reason;
    }
    if (event.what === "opened" || event.what === "whole") {
      const degraded = event.detail?.open && event.reason;
      if (!degraded) this.close(key, story, story.what === "degraded" && !story.closed ? "whole again" : "open");
    }
    return story;
  }

  drill(event) {
    if (event.what === "asked") return this.repeat(event, "drill");
    const key = `drill ${event.of}`;
    let story = this.open.get(key);
    if (!story) {
      story = this.begin("drill", event);
      this.open.set(key, story);
    }
    story.reason = event.reason || story.reason;
    story.result = event.what;
    if (event.what === "recovered") this.close(key, story, "recovered");
    return story;
  }

  /** What is like the last one of its kind is counted, and told once. */
  repeat(event, kind = "other") {
    const key = `again ${event.topic} ${event.of}`;
    const story = this.open.get(key);
    if (story && story.what === event.what && story.reason === (event.reason || "")) return story;
    const made = this.begin(kind, event, { what: event.what, reason: event.reason || "", going: false });
    this.open.set(key, made);
    return made;
  }

  close(key, story, result) {
    story.result = result;
    story.going = false;
    this.open.delete(key);
  }
}

/** How long each stage of a recovery took, as [name, seconds]; nothing where nobody has said. */
export function stagesOf(story) {
  const told = story.ready?.detail?.recovery;
  if (told) return STAGES.filter((name) => told[name] !== undefined).map((name) => [name, told[name]]).filter(([, seconds]) => seconds >= 0.0005);
  const own = story.ready?.detail?.stages;
  return own ? Object.entries(own).filter(([, seconds]) => seconds > 0) : [];
}
