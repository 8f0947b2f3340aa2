"""What Prometheus is told of the whole cluster, as the table in `messages/metrics.py` has it; made at each scrape."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final

from aiohttp import web
from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from messages import metrics as names
from messages import procfs
from messages.bus import Bus
from messages.metrics import CLUSTER, CODES, REASONS, RECOVERY_BOUNDS, REFUSALS, Name
from messages.telemetry import BOUNDS, Tally
from supervisor.counts import Buckets, Counts
from supervisor.lives import Phase
from supervisor.recovery import STAGES
from supervisor.traffic import Ledger, Total
from supervisor.world import World

GENERATES: Final = ("chat", "completion", "generate")
EMBEDS: Final = ("embed",)
SUPERVISOR: Final = ("", "supervisor")


class Sources(Struct, frozen=True, kw_only=True):
    """All that is told: the world as the deciders have it, what was counted, and the supervisor's own connection."""

    world: World
    ledger: Ledger
    counts: Counts
    bus: Bus
    started: float


class Sheet:
    """One answer to a scrape, being put together."""

    def __init__(self) -> None:
        self._metrics = {line.name: Metric(line.name, line.says, line.kind) for line in CLUSTER}

    def add(self, line: Name, value: float, *labels: str) -> None:
        """Add one sample, its labels in the table's order."""
        self._metrics[line.name].add_sample(names.full_name(line), dict(zip(line.labels, labels, strict=True)), value)

    def spread(self, line: Name, bounds: Sequence[float], counts: Sequence[int], total: float, *labels: str) -> None:
        """Add a histogram; `counts` has one for each bucket and a last one for what is above, empty for nothing."""
        metric, named = self._metrics[line.name], dict(zip(line.labels, labels, strict=True))
        below = 0
        for bound, count in zip((*map(str, bounds), "+Inf"), counts or [0] * (len(bounds) + 1), strict=True):
            below += count
            metric.add_sample(f"{line.name}_bucket", named | {"le": bound}, below)
        metric.add_sample(f"{line.name}_count", named, below)
        metric.add_sample(f"{line.name}_sum", named, total)

    def metrics(self) -> list[Metric]:
        """All that has samples."""
        return [metric for metric in self._metrics.values() if metric.samples]


def collect(sources: Sources, now: float) -> list[Metric]:
    """Make all metrics; `now` is wall-clock."""
    sheet = Sheet()
    bus = sources.bus
    sheet.add(names.UP_SINCE, sources.started)
    sheet.add(names.BUS_UP, float(bus.connected))
    sheet.add(names.SUPERVISOR_CPU, time.process_time())
    sheet.add(names.SUPERVISOR_RSS, procfs.rss_bytes())
    sheet.add(names.RECONNECTS, bus.reconnects, *SUPERVISOR)
    sheet.add(names.DROPPED, bus.dropped, *SUPERVISOR)
    _gates(sheet, sources.world)
    _slots(sheet, sources.world)
    _counted(sheet, sources.world, sources.counts)
    for model, kinds in _models(sources.world).items():
        _traffic(sheet, model, kinds, sources.ledger, now)
    return sheet.metrics()


def _gates(sheet: Sheet, world: World) -> None:
    for door in world.doors.values():
        gate = door.gate
        sheet.add(names.GATE_OPEN, float(gate is not None and gate.open), door.model)
        if gate is not None:
            sheet.add(names.GATE_DEGRADED, float(gate.open and gate.degraded), door.model)
            sheet.add(names.GATE_MISSING, len(gate.missing), door.model)
            sheet.add(names.GATE_CHANGES, gate.epoch, door.model)
            sheet.add(names.GATE_SINCE, gate.since, door.model)


def _slots(sheet: Sheet, world: World) -> None:
    for slot, life in world.lives.slots.items():
        labels = slot, life.spec.role, life.spec.model
        entry = world.roster.entries.get(slot)
        ours = entry is not None and entry.registration.generation == life.generation
        for phase in Phase:
            sheet.add(names.PHASE, float(phase is life.phase), *labels, phase)
        sheet.add(names.LIVE, float(life.phase is Phase.READY and ours and entry is not None and entry.live), *labels)
        sheet.add(names.SLOT_RESTARTS, life.restarts, *labels)


def _counted(sheet: Sheet, world: World, counts: Counts) -> None:
    """Tell of every role of every model what has happened to its slots, also that nothing has."""
    for model, role in sorted({(life.spec.model, life.spec.role) for life in world.lives.slots.values()}):
        place = model, role
        for reason in REASONS:
            sheet.add(names.REASON, counts.restarts.get((place, reason), 0), *place, reason)
        sheet.add(names.GAVE_UP, counts.gave_up.get(place, 0), *place)
        sheet.add(names.STALLED, counts.stalled.get(place, 0), *place)
        for stage in STAGES:
            buckets = counts.recovery.get((place, stage)) or Buckets()
            sheet.spread(names.RECOVERY, RECOVERY_BOUNDS, buckets.counts, buckets.sum, *place, stage)
        outage = counts.outage.get(place) or Buckets()
        sheet.spread(names.OUTAGE, RECOVERY_BOUNDS, outage.counts, outage.sum, *place)
        sheet.add(names.RECONNECTS, counts.of_bus.get(("bus_reconnects", place), 0), *place)
        sheet.add(names.DROPPED, counts.of_bus.get(("bus_dropped", place), 0), *place)


def _models(world: World) -> dict[str, tuple[str, ...]]:
    """Every model with the kinds of requests that it may serve."""
    return {door.model: EMBEDS if "encoder" in door.needs else GENERATES for door in world.doors.values()}


def _traffic(sheet: Sheet, model: str, kinds: Iterable[str], ledger: Ledger, now: float) -> None:
    total = ledger.totals.get(model) or Total()
    lately = ledger.now(model, now)
    sheet.add(names.QUEUED, lately.queued, model)
    sheet.add(names.IN_FLIGHT, lately.in_flight, model)
    sheet.add(names.SUSPICIONS, total.suspicions, model)
    sheet.add(names.FALSE_ALARMS, total.false_alarms, model)
    sheet.add(names.FRAMES, total.frames, model)
    sheet.add(names.FRAMES_MISSED, total.missed, model)
    sheet.add(names.FRAMES_REPEATED, total.repeated, model)
    for code in sorted({*REFUSALS, *total.refused}):
        sheet.add(names.REFUSED, total.refused.get(code, 0), model, str(code))
    for kind in sorted({*kinds, *total.kinds}):
        _of_kind(sheet, model, kind, total.kinds.get(kind) or Tally())


def _of_kind(sheet: Sheet, model: str, kind: str, tally: Tally) -> None:
    sheet.add(names.ADMITTED, tally.admitted, model, kind)
    ended = {200: tally.finished, 499: tally.cancelled} | tally.failed
    for code in sorted({*CODES, *ended}):
        sheet.add(names.ENDED, ended.get(code, 0), model, kind, str(code))
    sheet.add(names.LEFT, tally.left, model, kind)
    sheet.add(names.MIGRATED, tally.migrated, model, kind)
    sheet.add(names.PROMPT_TOKENS, tally.prompt_tokens, model, kind)
    sheet.add(names.COMPLETION_TOKENS, tally.completion_tokens, model, kind)
    for measure, line in names.MEASURES.items():
        found = getattr(tally, measure)
        sheet.spread(line, BOUNDS[measure], found.counts, found.sum, model, kind)


class _Collected(Collector):
    """Metrics that have been collected already, as prometheus_client's encoders want them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


async def answer(request: web.Request, sources: Sources) -> web.Response:
    """Answer a scrape, in the form that the scraper takes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(collect(sources, time.time())))
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    body = await asyncio.to_thread(encode, registry)
    return web.Response(body=body, headers={"Content-Type": kind})
