"""What a history amounts to: the ledger, latency before, during and after, the stages of recovery. Pure."""

import math
from collections import Counter
from collections.abc import Container, Sequence
from typing import Literal

from msgspec import Struct

from messages import poison
from messages.ids import short
from supervisor.drills.checker import percentile
from supervisor.drills.history import Happened, Line, Mark
from supervisor.drills.records import Record

Phase = Literal["before", "during", "after"]


class Latency(Struct, kw_only=True):
    """Requests sent in one phase; times in seconds, None where there was none."""

    phase: Phase
    requests: int
    ttft_p50: float | None
    ttft_p99: float | None
    itl_p50: float | None
    itl_p99: float | None
    request_p50: float | None
    request_p99: float | None
    tokens_per_second: float | None


class Ledger(Struct, kw_only=True):
    """Every request that was sent, accounted for once: `ok`, or failed by what; `unknown` are those without an end."""

    sent: int = 0
    ok: int = 0
    failed: dict[str, int] = {}
    unknown: int = 0
    late: int = 0
    moved: int = 0
    retried: int = 0

    @property
    def bad(self) -> int:
        """How many did not end well."""
        return sum(self.failed.values()) + self.unknown


class Poisoned(Struct, kw_only=True):
    """A request that one actor after the other has failed on: which, with the reason that its event gives for each."""

    request: str
    client: str
    code: int
    deaths: list[str]


class Stretch(Struct, kw_only=True):
    """One stage of a recovery: from and to in seconds after the injection."""

    name: str
    begin: float
    end: float
    detail: str = ""


class Injection(Struct, kw_only=True):
    """One fault as it was played; times in monotonic seconds, None for what did not come."""

    fault: str
    slot: str
    said: str
    generation: int = 0
    injected: float | None = None
    proof: str = ""
    healed: float | None = None
    healing: str = ""
    recovered: float | None = None
    missed: str = ""
    trouble: str = ""


def asked(lines: Sequence[Line]) -> list[Record]:
    """Return the requests of the load, without those that only gave the texts to compare with."""
    return [line for line in lines if isinstance(line, Record) and not line.reference]


def ledger(records: Sequence[Record], moved: Container[str] = ()) -> Ledger:
    """Account for every request once; `moved` are those of which the observer has seen a later attempt."""
    found, failed = Ledger(sent=len(records)), Counter[str]()
    for record in records:
        if record.outcome == "open":
            found.unknown += 1
        elif record.outcome == "done":
            found.ok += 1
        else:
            failed[f"{record.outcome}{f' {record.code}' if record.code else ''}"] += 1
        found.late += record.outcome != "open" and record.ended - record.sent > record.limit
        found.moved += record.attempts > 1 or record.id in moved
        found.retried += record.retried > 0
    found.failed = dict(failed)
    return found


def phase_of(record: Record, begin: float, end: float) -> Phase:
    """Say in which phase a request counts: `during` if any of its life touches the time of the fault."""
    if record.sent > end:
        return "after"
    return "before" if record.outcome != "open" and record.ended < begin else "during"


def latencies(records: Sequence[Record], begin: float, end: float) -> list[Latency]:
    """Sum up latency before, during and after the time from `begin` to `end`."""
    phases: tuple[Phase, ...] = ("before", "during", "after")
    return [
        _latency(phase, [record for record in records if phase_of(record, begin, end) == phase]) for phase in phases
    ]


def _latency(phase: Phase, records: list[Record]) -> Latency:
    done = [record for record in records if record.outcome == "done" and record.pieces]
    ttft = [record.pieces[0].at - record.sent for record in done]
    itl = [
        later.at - earlier.at
        for record in done
        for earlier, later in zip(record.pieces, record.pieces[1:], strict=False)
    ]
    whole = [record.ended - record.sent for record in done]
    span = max((record.ended for record in done), default=0.0) - min((record.sent for record in done), default=0.0)
    # A piece over HTTP is a token here or there with a neighbour: what NATS clients got is counted in tokens.
    tokens = sum(len(record.token_ids) or len(record.pieces) for record in done)
    return Latency(
        phase=phase,
        requests=len(records),
        ttft_p50=_some(percentile(ttft, 0.5)),
        ttft_p99=_some(percentile(ttft, 0.99)),
        itl_p50=_some(percentile(itl, 0.5)),
        itl_p99=_some(percentile(itl, 0.99)),
        request_p50=_some(percentile(whole, 0.5)),
        request_p99=_some(percentile(whole, 0.99)),
        tokens_per_second=_some(tokens / span) if span else None,
    )


def _some(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def poisoned(records: Sequence[Record], lines: Sequence[Line]) -> list[Poisoned]:
    """Find the requests that clients were told may have been the death of one actor after the other."""
    ends = [line for line in lines if isinstance(line, Happened) and line.topic == "restart" and line.what == "died"]
    why = {short(event.of, event.generation): event.reason for event in ends}
    return [
        Poisoned(
            request=record.id,
            client=record.client,
            code=record.code,
            deaths=[f"{name} ({why.get(name, 'no event tells of its death')})" for name in named],
        )
        for record in records
        if record.outcome == "error" and (named := poison.actors(record.message))
    ]


def recovery(lines: Sequence[Line], injection: Injection) -> list[Stretch]:
    """Split one recovery into its stages, as the next life's event tells them; empty where nobody has told.

    A planned end is no outage, so no stages are told: there it is the drain, and the start after it.
    """
    if injection.injected is None:
        return []
    start = injection.injected
    ours = [
        line
        for line in lines
        if isinstance(line, Happened)
        and (line.topic, line.of) == ("restart", injection.slot)
        and line.at >= start - 0.01
    ]
    stopped = next((event for event in ours if event.what == "stopped"), None)
    up = [event for event in ours if event.what in ("ready", "standby") and event.generation > injection.generation]
    if not up:
        return []
    ready = up[0]
    lengths: dict[str, float] = {str(name): float(length) for name, length in ready.detail.get("recovery", {}).items()}
    if not lengths and stopped is not None:
        return [
            Stretch(name="drain", begin=0.0, end=stopped.at - start, detail=stopped.reason),
            Stretch(name="start", begin=stopped.at - start, end=ready.at - start),
        ]
    stages: list[Stretch] = []
    # What hangs has given its last sign of life before the injection: nothing of that is the fault's.
    at = ready.at - start - sum(lengths.values())
    if (again := ready.detail.get("attempts", 1) - 1) > 0:
        stages.append(Stretch(name="earlier", begin=0.0, end=max(0.0, at), detail=f"{again} more deaths before this"))
    for name, length in lengths.items():
        begin, at = at, at + length
        if length:
            stages.append(Stretch(name=name.replace("_", "-"), begin=max(0.0, begin), end=max(0.0, at)))
    return stages


def detected(lines: Sequence[Line], injection: Injection) -> float | None:
    """Return after how many seconds the cluster (for NATS: the observer) first showed that it had noticed."""
    if injection.injected is None:
        return None
    for line in lines:
        noticed = isinstance(line, Mark) and line.name == "bus_lost" and not injection.slot
        if isinstance(line, Happened) and line.topic == "restart" and line.of == injection.slot and injection.slot:
            noticed = line.what != "ready"
        if noticed and isinstance(line, Mark | Happened) and line.at >= injection.injected - 0.01:
            return max(0.0, line.at - injection.injected)
    return None


def longest_gap(records: Sequence[Record]) -> float:
    """Return the longest silence in any answer that ended."""
    return max((record.gap for record in records if record.outcome != "open"), default=0.0)
