"""Every metric that Prometheus is told of: its name, its kind, what it says and its labels, in one table.

`docs/metrics.md` is made from it. A host's publisher tells of its slots, the supervisor of the whole cluster. Labels
are bounded: slots, models and roles by the casts, states and reasons by our own words, codes by those that we give.
"""

from typing import Final, Literal, NamedTuple

from messages.lifecycle import Exit
from messages.telemetry import BOUNDS, Measure


class Name(NamedTuple):
    """One metric: its name (for a counter without `_total`), kind, what it says, and its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    says: str
    labels: tuple[str, ...]


SLOT: Final = ("slot", "role", "model")
RANK: Final = ("slot", "dp_rank")
PLACE: Final = ("model", "role")
KIND: Final = ("model", "kind")

# Of a host's slots, by its publisher.

STATE: Final = Name("troupe_slot_state", "gauge", "1 for the state that a slot is in, else 0", (*SLOT, "state"))
GENERATION: Final = Name("troupe_slot_generation", "gauge", "Number of the slot's life", SLOT)
RESTARTS: Final = Name("troupe_slot_restarts", "counter", "New lives of a slot that this publisher has seen", SLOT)
HEARD: Final = Name("troupe_slot_heartbeat_age_seconds", "gauge", "Time since the last heartbeat", SLOT)
BEATS: Final[dict[str, Name]] = {
    "in_flight": Name("troupe_slot_in_flight", "gauge", "Requests that the slot has", SLOT),
    "queued": Name("troupe_slot_queued", "gauge", "Requests of those that wait", SLOT),
    "capacity": Name("troupe_slot_capacity", "gauge", "Requests that the slot takes at once", SLOT),
    "steps": Name("troupe_slot_steps", "counter", "Batch outputs received from the engine", SLOT),
    "kv_used": Name("troupe_slot_kv_used_blocks", "gauge", "KV blocks in use by requests", SLOT),
    "kv_total": Name("troupe_slot_kv_total_blocks", "gauge", "KV blocks there are", SLOT),
    "cpu_seconds": Name("troupe_slot_cpu_seconds", "counter", "CPU time of the actor's own process", SLOT),
    "rss_bytes": Name("troupe_slot_rss_bytes", "gauge", "Resident memory of the actor's own process", SLOT),
    "bus_reconnects": Name("troupe_slot_bus_reconnects", "counter", "Times that NATS was away and came back", SLOT),
    "bus_dropped": Name(
        "troupe_slot_bus_dropped", "counter", "Messages dropped because it was too slow to take them", SLOT
    ),
    "unanswerable": Name(
        "troupe_slot_unanswerable", "counter", "Requests without a reply subject that may be used", SLOT
    ),
}
PROBES: Final[dict[str, Name]] = {
    "age": Name("troupe_slot_probe_age_seconds", "gauge", "Time since the last health probe's result", SLOT),
    "seconds": Name("troupe_slot_probe_seconds", "gauge", "How long the last health probe took", SLOT),
    "failures": Name("troupe_slot_probe_failures", "gauge", "Health probes that have failed, in a row", SLOT),
}
LOADS: Final[dict[str, Name]] = {
    "running": Name("troupe_rank_running", "gauge", "Requests in the engine's batch", RANK),
    "queued": Name("troupe_rank_queued", "gauge", "Requests in the engine's queue", RANK),
    "kv_used": Name("troupe_rank_kv_used_blocks", "gauge", "KV blocks in use by requests", RANK),
    "kv_total": Name("troupe_rank_kv_total_blocks", "gauge", "KV blocks there are", RANK),
}
KV_BATCHES: Final = Name("troupe_kv_event_batches", "counter", "Batches of KV events the engine has published", RANK)
KV_REPLAYED: Final = Name("troupe_kv_event_batches_replayed", "counter", "Batches had by asking again", RANK)
KV_LOST: Final = Name("troupe_kv_event_batches_lost", "counter", "Batches that were not to be had any more", RANK)
UNREADABLE: Final = Name("troupe_kv_event_batches_unreadable", "counter", "Batches in no form that we know", ())

HOST: Final = (
    STATE, GENERATION, RESTARTS, HEARD, *BEATS.values(), *PROBES.values(), *LOADS.values(), KV_BATCHES, KV_REPLAYED,
    KV_LOST, UNREADABLE,
)  # fmt: skip
"""What a host's publisher tells."""

# Of the whole cluster, by the supervisor.

CODES: Final = (200, 408, 409, 413, 429, 499, 500, 503)
"""Codes of last words that are told also while there is none of them, so that the first one is seen as an increase."""
REFUSALS: Final = (400, 404, 409, 413, 429, 503)
"""The same for requests that are not admitted."""
REASONS: Final = (
    "planned", "stalled", "signal", "not_started", "unknown", *(code.name.lower() for code in Exit),
)  # fmt: skip
"""Why a slot was started again: asked for, found stuck, ended by a signal, or the name of its exit code."""
RECOVERY_BOUNDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

UP_SINCE: Final = Name("troupe_supervisor_start_time_seconds", "gauge", "When the supervisor was started", ())
BUS_UP: Final = Name("troupe_supervisor_bus_up", "gauge", "1 while the supervisor is connected to NATS, else 0", ())
SUPERVISOR_CPU: Final = Name("troupe_supervisor_cpu_seconds", "counter", "CPU time of the supervisor", ())
SUPERVISOR_RSS: Final = Name("troupe_supervisor_rss_bytes", "gauge", "Resident memory of the supervisor", ())
GATE_OPEN: Final = Name("troupe_gate_open", "gauge", "1 while new requests are admitted, else 0", ("model",))
GATE_DEGRADED: Final = Name("troupe_gate_degraded", "gauge", "1 while slots are missing, else 0", ("model",))
GATE_MISSING: Final = Name("troupe_gate_missing", "gauge", "Slots and roles that the gate misses", ("model",))
GATE_CHANGES: Final = Name("troupe_gate_changes", "counter", "Number of the gate's last change, its epoch", ("model",))
GATE_SINCE: Final = Name("troupe_gate_changed_timestamp_seconds", "gauge", "When the gate last changed", ("model",))
PHASE: Final = Name(
    "troupe_cluster_slot_state", "gauge", "1 for the state that the supervisor has a slot in, else 0", (*SLOT, "state")
)
LIVE: Final = Name("troupe_cluster_slot_live", "gauge", "1 while requests may be sent there, else 0", SLOT)
SLOT_RESTARTS: Final = Name("troupe_cluster_slot_restarts", "counter", "How often a slot was started again", SLOT)
REASON: Final = Name(
    "troupe_cluster_restarts", "counter", "How often slots were started again, by the reason", (*PLACE, "reason")
)
GAVE_UP: Final = Name("troupe_cluster_gave_up", "counter", "Slots that failed and are not started again", PLACE)
STALLED: Final = Name("troupe_cluster_stalled", "counter", "Slots found stuck, and killed for it", PLACE)
RECOVERY: Final = Name(
    "troupe_recovery_seconds", "histogram", "Time of each stage from a death to ready", (*PLACE, "stage")
)
OUTAGE: Final = Name("troupe_outage_seconds", "histogram", "Time from a slot's first death to ready again", PLACE)
RECONNECTS: Final = Name(
    "troupe_bus_reconnects", "counter", "Times that NATS was away from an actor and came back", PLACE
)
DROPPED: Final = Name("troupe_bus_dropped", "counter", "Messages dropped because an actor was too slow", PLACE)
ADMITTED: Final = Name("troupe_requests_admitted", "counter", "Requests admitted", KIND)
ENDED: Final = Name(
    "troupe_requests_ended",
    "counter",
    "Requests that had their last word, by its code (499: cancelled)",
    (*KIND, "code"),
)
LEFT: Final = Name("troupe_requests_left", "counter", "Requests that another processor has taken on", KIND)
REFUSED: Final = Name("troupe_requests_refused", "counter", "Requests that were not admitted", ("model", "code"))
QUEUED: Final = Name("troupe_requests_queued", "gauge", "Requests that wait for the gate or an actor", ("model",))
IN_FLIGHT: Final = Name("troupe_requests_in_flight", "gauge", "Requests without their last word", ("model",))
MIGRATED: Final = Name("troupe_migrations", "counter", "Attempts that went on elsewhere after an actor's fault", KIND)
SUSPICIONS: Final = Name("troupe_suspicions", "counter", "Actors that a processor suspected to hang", ("model",))
FALSE_ALARMS: Final = Name("troupe_false_alarms", "counter", "Of these, actors that were well", ("model",))
PROMPT_TOKENS: Final = Name("troupe_prompt_tokens", "counter", "Tokens of prompts", KIND)
COMPLETION_TOKENS: Final = Name("troupe_completion_tokens", "counter", "Tokens of answers", KIND)
FRAMES: Final = Name("troupe_frames", "counter", "Frames of tokens that processors have taken in", ("model",))
FRAMES_MISSED: Final = Name(
    "troupe_frames_missed", "counter", "Times that a frame had to be asked for again", ("model",)
)
FRAMES_REPEATED: Final = Name("troupe_frames_repeated", "counter", "Frames that came twice", ("model",))
MEASURES: Final[dict[Measure, Name]] = {
    "ttft": Name(
        "troupe_time_to_first_token_seconds", "histogram", "From a request's arrival to its first token", KIND
    ),
    "itl": Name(
        "troupe_inter_token_latency_seconds",
        "histogram",
        "Between tokens: a frame's share for each of its tokens",
        KIND,
    ),
    "queue_wait": Name(
        "troupe_queue_wait_seconds", "histogram", "From a request's arrival until actors know of it", KIND
    ),
    "e2e": Name("troupe_request_seconds", "histogram", "From a request's arrival to its good end", KIND),
}

CLUSTER: Final = (
    UP_SINCE, BUS_UP, SUPERVISOR_CPU, SUPERVISOR_RSS, GATE_OPEN, GATE_DEGRADED, GATE_MISSING, GATE_CHANGES, GATE_SINCE,
    PHASE, LIVE, SLOT_RESTARTS, REASON, GAVE_UP, STALLED, RECOVERY, OUTAGE, RECONNECTS, DROPPED, ADMITTED, ENDED, LEFT,
    REFUSED, QUEUED, IN_FLIGHT, MIGRATED, SUSPICIONS, FALSE_ALARMS, PROMPT_TOKENS, COMPLETION_TOKENS, FRAMES,
    FRAMES_MISSED, FRAMES_REPEATED, *MEASURES.values(),
)  # fmt: skip
"""What the supervisor tells."""


def full_name(line: Name) -> str:
    """The name that Prometheus has for it; a histogram's has `_bucket`, `_sum` and `_count` behind."""
    return f"{line.name}_total" if line.kind == "counter" else line.name


def as_markdown() -> str:
    """Write the table as the page `docs/metrics.md`."""
    return "\n".join(
        [
            "# Metrics",
            "",
            "Made from `messages/metrics.py` by `python -m messages.metrics`; a test compares the two. Labels are",
            "bounded: slots, models, roles by the casts, states and reasons by our own words, codes by those we give.",
            "Dashboards and alert rules for them are in [compose/](../compose/README.md).",
            "",
            "## Of the whole cluster",
            "",
            "At `/metrics` of the supervisor's page. Counters are sums over all lives of all processors and actors: a",
            "restart of one of those leaves them as they are. The supervisor's own restart begins them anew, from what",
            "the living have counted since their start.",
            "",
            *_rows(CLUSTER),
            "",
            f"Reasons of a restart: {', '.join(f'`{reason}`' for reason in REASONS)}.",
            "",
            "Histograms end their buckets at these seconds:",
            "",
            "| histogram | seconds |",
            "| --- | --- |",
            *(f"| `{line.name}` | {_seconds(BOUNDS[measure])} |" for measure, line in MEASURES.items()),
            f"| `{RECOVERY.name}`, `{OUTAGE.name}` | {_seconds(RECOVERY_BOUNDS)} |",
            "",
            "## Of one host",
            "",
            "At `/metrics` of the host's publisher; `troupe status` says where. SGLang's own metrics (`sglang:…`)",
            "follow on the same page, with the slot in their labels ([publisher.md](publisher.md)).",
            "",
            *_rows(HOST),
            "",
        ]
    )


def _rows(lines: tuple[Name, ...]) -> list[str]:
    rows = [
        f"| `{full_name(line)}` | {line.kind} | {line.says} "
        f"| {', '.join(f'`{label}`' for label in line.labels) or 'none'} |"
        for line in lines
    ]
    return ["| name | kind | what | labels |", "| --- | --- | --- | --- |", *rows]


def _seconds(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
