"""What Prometheus is told of a host's slots and engines: our own figures as the table has them, and SGLang's beside."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric, Sample
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from actors.publisher.slots import Watched
from messages.lifecycle import State
from messages.metrics import (
    BEATS,
    GENERATION,
    HEARD,
    HOST,
    KV_BATCHES,
    KV_LOST,
    KV_REPLAYED,
    LOADS,
    PROBES,
    RESTARTS,
    STATE,
    UNREADABLE,
    Name,
)

log = logging.getLogger("troupe.publisher")


class Page:
    """One answer to a scrape, being put together."""

    def __init__(self) -> None:
        self._metrics = {line.name: Metric(line.name, line.says, line.kind) for line in HOST}

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
