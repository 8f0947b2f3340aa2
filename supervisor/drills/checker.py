"""Judges a drill's history by the rules that hold under every fault: pure, `lines -> verdicts`.

I1 each admitted request has exactly one last word, inside its deadline
I2 positions have no gap and no double; greedy text equals the undisturbed run's
I3 nobody accepts or answers outside ready and draining
I4 no admission past a closed gate
I5 generations only rise, and a slot never has two leases
I6 restarts stay within their intensity
I7 a GPU's memory is back at its base before the next load
I8 streams that were not hit keep their ITL p99 within the objective
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeVar

from msgspec import Struct

from messages.ids import incarnation_of, parse_incarnation, short
from messages.lifecycle import State
from supervisor.drills.history import Beats, GateSeen, Happened, Head, Line, Mark, Memory, Moved, Registered, Worked
from supervisor.drills.records import Record, Whole, faults_of_ending, faults_of_text

TITLES: Final = {
    "I1": "each admitted request has exactly one last word, inside its deadline",
    "I2": "positions without gap or double, text equal to the undisturbed run's",
    "I3": "nobody accepts or answers outside ready and draining",
    "I4": "no admission past a closed gate",
    "I5": "generations only rise, never two leases of a slot",
    "I6": "restarts within their intensity",
    "I7": "GPU memory back at its base before the next load",
    "I8": "streams that were not hit keep their pace",
}

ON_THE_WAY: Final = 0.5
"""Seconds that a message, or the news of a change, may be under way on a busy machine."""

MEMORY_SLACK: Final = 512
"""MiB by which a GPU's memory may differ from its base: contexts of others, and the driver's own."""

OLD: Final = (State.STOPPED, State.FAILED)
ENDED: Final = ("died", "stopped", "gave_up")

T = TypeVar("T")


class Verdict(Struct, kw_only=True):
    """What became of one rule: how much was looked at, and what broke it, one sentence each."""

    rule: str
    title: str
    state: Literal["kept", "broken", "skipped"]
    looked_at: int = 0
    broken: list[str] = []
    why: str = ""


def check(lines: Sequence[Line]) -> list[Verdict]:
    """Judge a whole history. Raises ValueError for one without a head line."""
    head = next((line for line in lines if isinstance(line, Head)), None)
    if head is None:
        raise ValueError("the history has no head line, so there is nothing to judge it by")
    return [
        _ends(head, lines),
        _texts(lines),
        _accepts(head, lines),
        _admissions(head, lines),
        _generations(lines),
        _restarts(head, lines),
        _memory(head, lines),
        _pace(head, lines),
    ]


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that so large a share of all does not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _of(kind: type[T], lines: Sequence[Line]) -> list[T]:
    return [line for line in lines if isinstance(line, kind)]


def _verdict(rule: str, looked_at: int, broken: Iterable[str], nothing: str) -> Verdict:
    """Make a verdict; a rule that nothing was seen of is not kept but skipped."""
    found = list(broken)
    if found:
        return Verdict(rule=rule, title=TITLES[rule], state="broken", looked_at=looked_at, broken=found)
    if not looked_at:
        return Verdict(rule=rule, title=TITLES[rule], state="skipped", why=nothing)
    return Verdict(rule=rule, title=TITLES[rule], state="kept", looked_at=looked_at)


def _ends(head: Head, lines: Sequence[Line]) -> Verdict:
    records = _of(Record, lines)
    broken = [
        wrong
        for record in records
        for wrong in faults_of_ending(record, may_close=head.may_close and not record.reference, lossy=head.lossy)
    ]
    twice = len(records) - len({record.id for record in records})
    if twice:
        broken.append(f"{twice} requests are in the history twice")
    return _verdict("I1", len(records), broken, "no request was sent")


def _texts(lines: Sequence[Line]) -> Verdict:
    records = _of(Record, lines)
    wholes = {
        record.asked: Whole(record.token_ids, record.text)
        for record in records
        if record.reference and record.outcome == "done"
    }
    others = [record for record in records if not record.reference]
    broken: list[str] = []
    for record in others:
        if record.asked in wholes:
            broken += faults_of_text(record, wholes[record.asked])
        else:
            broken.append(f"{record}: prompt {record.asked} has no undisturbed answer to compare with")
    return _verdict("I2", len(others), broken, "no request was sent")


def _lives(lines: Sequence[Line]) -> dict[tuple[str, int], tuple[float, float]]:
    """Find from when to when each incarnation was known to be ready or draining."""
    begun: dict[tuple[str, int], float] = {}
    ended: dict[tuple[str, int], float] = {}
    for line in lines:
        if isinstance(line, Registered) and line.state in (State.READY, State.DRAINING):
            # What was there when the observer came had been ready before.
            key = (line.slot, line.generation)
            begun[key] = min(begun.get(key, math.inf), line.at)
        elif isinstance(line, Happened) and line.topic in ("actor", "restart"):
            key = (line.of, line.generation)
            if line.what == State.READY:
                begun[key] = min(begun.get(key, math.inf), line.at)
            elif line.what in OLD or (line.topic == "restart" and line.what in ENDED):
                ended[key] = min(ended.get(key, math.inf), line.at)
    return {key: (at, ended.get(key, math.inf)) for key, at in begun.items()}


def _accepts(head: Head, lines: Sequence[Line]) -> Verdict:
    lives, held_up = _lives(lines), frozenset(head.held_up)
    began = next((line.at for line in lines if isinstance(line, Mark) and line.name == "observed"), -math.inf)
    broken: list[str] = []
    looked_at = 0

    def judge(slot: str, generation: int, at: float, what: str) -> None:
        nonlocal looked_at
        looked_at += 1
        life = lives.get((slot, generation))
        name = short(slot, generation)
        if life is None:
            broken.append(f"{name} {what} and was never seen ready")
        elif at < life[0] - ON_THE_WAY and life[0] > began + ON_THE_WAY:
            broken.append(f"{name} {what} {life[0] - at:.2f} s before it was ready")
        elif at > life[1] + ON_THE_WAY:
            broken.append(f"{name} {what} {at - life[1]:.2f} s after its end")

    for record in _of(Record, lines):
        for taken in record.taken:
            slot, generation = parse_incarnation(taken.owner)
            judge(slot, generation, taken.at, f"accepted {record.id}")
    for worked in _of(Worked, lines):
        judge(worked.slot, worked.generation, worked.first, "sent tokens")
        if incarnation_of(worked.slot, worked.generation) not in held_up:
            judge(worked.slot, worked.generation, worked.last, "sent tokens")
    return _verdict("I3", looked_at, broken, "no client was told who took its request")


def _closed(head: Head, lines: Sequence[Line]) -> list[tuple[float, float]]:
    """Find from when to when the gate was closed: from when that could be read until it was decided to open."""
    spans: list[tuple[float, float]] = []
    since: float | None = None
    for gate in sorted((gate for gate in _of(GateSeen, lines) if gate.alias == head.alias), key=lambda gate: gate.at):
        if not gate.open and since is None:
            since = gate.at
        elif gate.open and since is not None:
            spans.append((since, min(gate.since, gate.at)))
            since = None
    if since is not None:
        spans.append((since, math.inf))
    return spans


def _admissions(head: Head, lines: Sequence[Line]) -> Verdict:
    spans, records = _closed(head, lines), _of(Record, lines)
    broken = []
    for record in records:
        if not record.pieces:
            continue
        first = record.pieces[0].at
        for closed, opened in spans:
            if record.sent > closed + ON_THE_WAY and first < opened:
                late = record.sent - closed
                broken.append(f"{record}: sent {late:.2f} s after the gate had closed, answered before it opened")
    seen = any(isinstance(line, GateSeen) for line in lines)
    return _verdict("I4", len(records) if seen else 0, broken, "the gate was never seen")


def _generations(lines: Sequence[Line]) -> Verdict:
    started: dict[str, int] = {}
    broken, looked_at = [], 0
    events = [line for line in _of(Happened, lines) if line.topic == "restart" and line.what == "started"]
    for event in sorted(events, key=lambda event: event.at):
        looked_at += 1
        if event.generation <= started.get(event.of, 0):
            broken.append(f"{event.of} was started as #{event.generation} after #{started[event.of]}")
        started[event.of] = max(event.generation, started.get(event.of, 0))
    registered: dict[str, int] = {}
    for line in sorted((line for line in _of(Registered, lines) if line.state), key=lambda line: line.at):
        looked_at += 1
        if line.generation < registered.get(line.slot, 0):
            broken.append(f"{line.slot} was registered as #{line.generation} after #{registered[line.slot]}")
        registered[line.slot] = max(line.generation, registered.get(line.slot, 0))
    beats = sorted(_of(Beats, lines), key=lambda beat: (beat.slot, beat.generation))
    looked_at += len(beats)
    for older, newer in zip(beats, beats[1:], strict=False):
        if older.slot == newer.slot and older.last > newer.first:
            both = f"{short(older.slot, older.generation)} and #{newer.generation}"
            broken.append(f"{both} both renewed their lease, for {older.last - newer.first:.2f} s")
    return _verdict("I5", looked_at, broken, "no slot was seen")


def _restarts(head: Head, lines: Sequence[Line]) -> Verdict:
    broken: list[str] = []
    events = [line for line in _of(Happened, lines) if line.topic == "restart"]
    ready, started = (
        {(line.of, line.generation) for line in events if line.what == what} for what in ("ready", "started")
    )
    for slot, (intensity, period) in head.budgets.items():
        crashes = [line for line in events if line.of == slot and line.what == "died" and not line.planned]
        # Those that never became ready are counted apart, and end in being given up.
        early = {(line.of, line.generation) for line in crashes} & started - ready
        died = sorted(line.at for line in crashes if (line.of, line.generation) not in early)
        for at in died:
            within = sum(at <= other <= at + period for other in died)
            if within > intensity:
                broken.append(f"{slot} was started again {within} times within {period:g} s; {intensity} are allowed")
                break
    gave_up = [line for line in events if line.what == "gave_up" and line.of not in head.may_give_up]
    broken += [f"{short(line.of, line.generation)} was given up: {line.reason}" for line in gave_up]
    return _verdict("I6", len(head.budgets), broken, "no slot is ours to start again")


def _memory(head: Head, lines: Sequence[Line]) -> Verdict:
    samples = _of(Memory, lines)
    if not head.gpus:
        return Verdict(rule="I7", title=TITLES["I7"], state="skipped", why="there is no GPU here")
    base: dict[int, int] = {}
    broken = []
    restarted = sorted(
        line.at for line in _of(Happened, lines) if line.topic == "restart" and line.what in ("started", "died")
    )
    for gpu in {sample.gpu for sample in samples}:
        of_gpu = sorted((sample for sample in samples if sample.gpu == gpu), key=lambda sample: sample.at)
        steady = [sample.used for sample in of_gpu if not restarted or sample.at < restarted[0]]
        if not steady or len(of_gpu) < 2:
            continue
        base[gpu] = max(steady)
        peak = max(sample.used for sample in of_gpu)
        if peak > base[gpu] + MEMORY_SLACK:
            broken.append(f"GPU {gpu} held {peak} MiB where {base[gpu]} are its base: two lives had memory at once")
    return _verdict("I7", len(samples), broken, "no sample of a GPU's memory was taken")


def _pace(head: Head, lines: Sequence[Line]) -> Verdict:
    if head.itl_p99 is None:
        return Verdict(rule="I8", title=TITLES["I8"], state="skipped", why="this fault hits every stream")
    marks = {mark.name: mark.at for mark in _of(Mark, lines)}
    if "injected" not in marks:
        return Verdict(rule="I8", title=TITLES["I8"], state="skipped", why="nothing was injected")
    until = marks.get("recovered", math.inf)
    moved = {line.request for line in _of(Moved, lines)}
    gaps = [
        later.at - earlier.at
        for record in _of(Record, lines)
        if record.door == "nats" and record.attempts == 1 and record.outcome == "done" and record.id not in moved
        for earlier, later in zip(record.pieces, record.pieces[1:], strict=False)
        if later.at > marks["injected"] and earlier.at < until
    ]
    found = percentile(gaps, 0.99)
    broken = [] if not gaps or found <= head.itl_p99 else [f"ITL p99 {found:.3f} s where {head.itl_p99:g} is allowed"]
    return _verdict("I8", len(gaps), broken, "no stream over NATS went on unhit while the fault lasted")
