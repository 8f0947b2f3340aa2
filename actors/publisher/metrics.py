"""What Prometheus is told: every name, its kind and its labels in one table, and SGLang's own figures beside them.

Labels are bounded: slots by the casts, DP ranks by the engines, states by the life of an actor.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, Sample
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from actors.publisher.slots import Watched
from messages.lifecycle import State

log = logging.getLogger("troupe.publisher")


class Name(NamedTuple):
    """One metric: its name (for a counter without `_total`), kind, what it says, and its labels."""

    name: str
    kind: Literal["gauge", "counter"]
    says: str
    labels: tuple[str, ...]


SLOT: Final = ("slot", "role", "model")
RANK: Final = ("slot", "dp_rank")

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

TABLE: Final = (
    STATE, GENERATION, RESTARTS, HEARD, *BEATS.values(), *PROBES.values(), *LOADS.values(), KV_BATCHES, KV_REPLAYED,
    KV_LOST, UNREADABLE,
)  # fmt: skip
"""Every metric of ours."""


class Page:
    """One answer to a scrape, being put together."""

    def __init__(self) -> None:
        self._metrics = {line.name: Metric(line.name, line.says, line.kind) for line in TABLE}

    def add(self, line: Name, value: float, *labels: str) -> None:
        """Add one sample, its labels in the table's order."""
        name = f"{line.name}_total" if line.kind == "counter" else line.name
        self._metrics[line.name].add_sample(name, dict(zip(line.labels, labels, strict=True)), value)

    def metrics(self) -> list[Metric]:
        """All that has samples."""
        return [metric for metric in self._metrics.values() if metric.samples]


def ours(slots: Iterable[Watched], unreadable: int, now: float) -> list[Metric]:
    """Tell of every slot of the host; `now` is monotonic time."""
    page = Page()
    for slot in slots:
        labels = (slot.name, slot.role, slot.model)
        for state in State:
            page.add(STATE, float(state == slot.state), *labels, state)
        page.add(GENERATION, slot.generation, *labels)
        page.add(RESTARTS, slot.restarts, *labels)
        if slot.beat is not None:
            page.add(HEARD, round(now - slot.heard, 3), *labels)
            for field, line in BEATS.items():
                page.add(line, getattr(slot.beat, field), *labels)
            for field, line in PROBES.items() if slot.beat.probe is not None else ():
                page.add(line, getattr(slot.beat.probe, field), *labels)
        for rank in slot.load.ranks if slot.load is not None else ():
            for field, line in LOADS.items():
                page.add(line, getattr(rank, field), slot.name, str(rank.dp_rank))
        for at, source in slot.sources.items():
            page.add(KV_BATCHES, source.next, slot.name, str(at))
            page.add(KV_REPLAYED, source.replayed, slot.name, str(at))
            page.add(KV_LOST, source.lost, slot.name, str(at))
    page.add(UNREADABLE, unreadable)
    return page.metrics()


def engines(folders: dict[str, str]) -> list[Metric]:
    """Read the Prometheus files of the engines, by slot, and put the slot into their labels; blocking."""
    merged: dict[str, Metric] = {}
    for slot, folder in folders.items():
        try:
            found = list(_read(folder))
        except (OSError, ValueError) as error:
            # A new life of the slot is clearing the folder at this moment.
            log.debug("%s: %s cannot be read now: %s", slot, folder, error)
            continue
        for metric in found:
            whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            whole.samples += [_of_slot(sample, slot) for sample in metric.samples]
    return list(merged.values())


def _read(folder: str) -> Iterator[Metric]:
    collector: Any = MultiProcessCollector(CollectorRegistry(), path=folder)  # type: ignore[no-untyped-call]
    yield from collector.collect()


def _of_slot(sample: Sample, slot: str) -> Sample:
    return sample._replace(labels={"slot": slot} | dict(sample.labels))


class Ready(Collector):
    """Metrics that have been collected already, as prometheus_client's encoders want them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._metrics


def as_markdown() -> str:
    """Write the table as the page `docs/metrics.md`."""
    rows = [
        f"| `{line.name}{'_total' if line.kind == 'counter' else ''}` | {line.kind} | {line.says} "
        f"| {', '.join(f'`{label}`' for label in line.labels) or 'none'} |"
        for line in TABLE
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            "Made from `actors/publisher/metrics.py` by `python -m actors.publisher.metrics`; a test compares the two.",
            "A host's publisher answers at `/metrics`; `troupe status` says where. Labels are bounded: slots by the",
            "casts, DP ranks by the engines, states by the life of an actor. SGLang's own metrics (`sglang:…`) follow",
            "on the same page, with the slot in their labels ([publisher.md](publisher.md)).",
            "",
            "| name | kind | what | labels |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
