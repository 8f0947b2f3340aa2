"""Keeps what the processors tell of their traffic: fifteen minutes of it by model, and what it all adds up to: pure.

A processor tells what it has counted since its start. What is new in that, against what it told before, goes into the
step of five seconds that is under way, and into totals that only grow, whoever is restarted. What a processor counted
before this ledger began is in the totals, but is no traffic of the last minutes.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from messages.subjects import KINDS
from messages.telemetry import BOUNDS, Histogram, Measure, Tally, Traffic

STEP: Final = 5.0
"""Seconds of one step."""
STEPS: Final = 180
RECENT: Final = 3
"""Steps, the one under way among them, that `now` looks at."""
SLOTS: Final = 1_024
"""Processors, and models, that are remembered; any more are not listened to."""

COUNTS: Final = ("admitted", "finished", "cancelled", "left", "migrated", "prompt_tokens", "completion_tokens")
MEASURES: Final = tuple(BOUNDS)


class Point(Struct, kw_only=True):
    """The traffic of one model in one step, or lately; `at` is when it began, in seconds since 1970.

    `requests` were admitted and `tokens` came in answers, both a second. Times are in seconds, None where there was
    nothing to measure. `finished` to `false_alarms` are counts of the span; `queued` and `in_flight` as of its end.
    """

    at: float
    requests: float = 0.0
    tokens: float = 0.0
    prompt_tokens: float = 0.0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p50: float | None = None
    itl_p99: float | None = None
    queue_wait_p50: float | None = None
    queue_wait_p99: float | None = None
    e2e_p50: float | None = None
    e2e_p99: float | None = None
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    migrated: int = 0
    false_alarms: int = 0
    queued: int = 0
    in_flight: int = 0


class Total(Struct, kw_only=True):
    """What all processors of a model have counted, through all their lives; `kinds` by the kind of requests."""

    kinds: dict[str, Tally] = {}
    refused: dict[int, int] = {}
    suspicions: int = 0
    false_alarms: int = 0
    frames: int = 0
    missed: int = 0
    repeated: int = 0


class _Sum(Struct, kw_only=True):
    """What has come in one step, of all kinds together."""

    step: int
    tally: Tally = field(default_factory=Tally)
    failed: int = 0
    refused: int = 0
    false_alarms: int = 0


class _Course:
    """The last minutes of one model: steps that are over, the sums of the last few, and the step under way."""

    def __init__(self, step: int) -> None:
        self.points: deque[Point] = deque(maxlen=STEPS)
        self.recent: deque[_Sum] = deque(maxlen=RECENT - 1)
        self.current = _Sum(step=step)
        self.queued = 0
        self.in_flight = 0


class Ledger:
    """The traffic of a whole cluster. Times given are wall-clock, in seconds since 1970; `began` is when it began."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._told: dict[str, Traffic] = {}
        self._there: dict[str, Traffic] = {}
        self._courses: dict[str, _Course] = {}
        self.totals: dict[str, Total] = {}
        """By model."""

    def take(self, told: Traffic, now: float) -> None:
        """Take in what a processor tells; what is older than what it told before changes nothing."""
        before = self._told.get(told.slot)
        if before is None and len(self._told) >= SLOTS or told.model not in self.totals and len(self.totals) >= SLOTS:
            return
        if before is not None and (told.generation, told.at) < (before.generation, before.at):
            return
        self._told[told.slot] = self._there[told.slot] = told
        same = before is not None and before.generation == told.generation
        new = _since(told, before if same else None)
        _add_total(self.totals.setdefault(told.model, Total()), new)
        course = self._advanced(told.model, now)
        if before is not None or told.started >= self._began:
            _add_sum(course.current, new)
        self._count_waiting(told.model, course)

    def gone(self, slot: str) -> None:
        """A processor is there no more, and nothing waits in it."""
        told = self._there.pop(slot, None)
        if told is not None:
            self._count_waiting(told.model, self._courses[told.model])

    def knows(self, slot: str, generation: int) -> bool:
        """Whether this life of a processor has told of its traffic; one that is idle does so only when asked."""
        told = self._told.get(slot)
        return told is not None and told.generation >= generation

    @property
    def there(self) -> set[str]:
        """The processors that are there, as far as is known."""
        return set(self._there)

    @property
    def models(self) -> list[str]:
        """The models of which anything is known."""
        return sorted(self._courses)

    def now(self, model: str, now: float) -> Point:
        """The traffic of the last ten to fifteen seconds."""
        if model not in self._courses:
            return Point(at=now)
        course = self._advanced(model, now)
        first = course.current.step - RECENT + 1
        sums = [one for one in course.recent if one.step >= first]
        begin = max(first * STEP, min(self._began, now))
        return _point([*sums, course.current], begin, max(now - begin, 1.0), course)

    def series(self, model: str, now: float, since: float = 0.0) -> list[Point]:
        """The steps that are over and began at `since` or later, oldest first, without a gap between them.

        At most fifteen minutes of them. The last one's `at` plus `STEP` is the `since` with which to ask for more.
        """
        if model not in self._courses:
            return []
        course = self._advanced(model, now)
        end = course.current.step
        found: list[Point] = []
        for point in course.points:
            if found:
                found += _quiet(found[-1], round(point.at / STEP))
            found.append(point)
        if found:
            found += _quiet(found[-1], end)
        return [point for point in found if point.at >= max(since, (end - STEPS) * STEP)]

    def _advanced(self, model: str, now: float) -> _Course:
        """Close the step under way if it is over. A clock that was set back leaves us where we are."""
        step = int(now // STEP)
        course = self._courses.get(model)
        if course is None:
            course = self._courses[model] = _Course(step)
        if course.current.step < step:
            over = course.current
            course.points.append(_point([over], over.step * STEP, STEP, course))
            course.recent.append(over)
            course.current = _Sum(step=step)
        return course

    def _count_waiting(self, model: str, course: _Course) -> None:
        there = [told for told in self._there.values() if told.model == model]
        course.queued = sum(told.queued for told in there)
        course.in_flight = sum(told.in_flight for told in there)


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """Estimate a quantile as Prometheus does: linear within its bucket; above the last bound, that bound."""
    rank = part * sum(counts)
    if rank <= 0:
        return None
    below = 0
    for at, bound in enumerate(bounds):
        if counts[at] and below + counts[at] >= rank:
            low = bounds[at - 1] if at else 0.0
            return low + (bound - low) * (rank - below) / counts[at]
        below += counts[at]
    return bounds[-1]


def _quiet(last: Point, end: int) -> list[Point]:
    """Make the steps after a point and before step `end`, in which nothing came and what waited went on waiting."""
    first = round(last.at / STEP) + 1
    return [
        Point(at=step * STEP, queued=last.queued, in_flight=last.in_flight)
        for step in range(max(first, end - STEPS), end)
    ]


def _point(sums: list[_Sum], begin: float, seconds: float, course: _Course) -> Point:
    whole = _Sum(step=0)
    for one in sums:
        _add_tally(whole.tally, one.tally)
        whole.failed += one.failed
        whole.refused += one.refused
        whole.false_alarms += one.false_alarms
    tally = whole.tally
    point = Point(
        at=begin,
        requests=tally.admitted / seconds,
        tokens=tally.completion_tokens / seconds,
        prompt_tokens=tally.prompt_tokens / seconds,
        finished=tally.finished,
        failed=whole.failed,
        cancelled=tally.cancelled,
        refused=whole.refused,
        migrated=tally.migrated,
        false_alarms=whole.false_alarms,
        queued=course.queued,
        in_flight=course.in_flight,
    )
    for measure in MEASURES:
        counts = _of(tally, measure).counts
        if counts:
            setattr(point, f"{measure}_p50", quantile(BOUNDS[measure], counts, 0.5))
            setattr(point, f"{measure}_p99", quantile(BOUNDS[measure], counts, 0.99))
    return point


def _since(told: Traffic, before: Traffic | None) -> Traffic:
    """What is new in what a processor tells; a kind or a histogram of which we know nothing is left out."""
    if before is None:
        before = Traffic(slot=told.slot, generation=told.generation, model=told.model, at=told.at, started=told.started)
    return msgspec.structs.replace(
        told,
        kinds={
            kind: _grown(tally, before.kinds.get(kind, Tally())) for kind, tally in told.kinds.items() if kind in KINDS
        },
        refused=_more(told.refused, before.refused),
        suspicions=max(0, told.suspicions - before.suspicions),
        false_alarms=max(0, told.false_alarms - before.false_alarms),
        frames=max(0, told.frames - before.frames),
        missed=max(0, told.missed - before.missed),
        repeated=max(0, told.repeated - before.repeated),
    )


def _grown(tally: Tally, before: Tally) -> Tally:
    new: dict[str, Any] = {name: max(0, getattr(tally, name) - getattr(before, name)) for name in COUNTS}
    for measure in MEASURES:
        ours, theirs = _of(tally, measure), _of(before, measure)
        if len(ours.counts) == len(BOUNDS[measure]) + 1:
            old = theirs.counts or [0] * len(ours.counts)
            counts = [max(0, one - other) for one, other in zip(ours.counts, old, strict=True)]
            new[measure] = Histogram(counts, max(0.0, ours.sum - theirs.sum))
    return Tally(failed=_more(tally.failed, before.failed), **new)


def _more(told: dict[int, int], before: dict[int, int]) -> dict[int, int]:
    grown = {code: count - before.get(code, 0) for code, count in told.items() if 100 <= code < 600}
    return {code: count for code, count in grown.items() if count > 0}


def _add_tally(to: Tally, new: Tally) -> None:
    for name in COUNTS:
        setattr(to, name, getattr(to, name) + getattr(new, name))
    for code, count in new.failed.items():
        to.failed[code] = to.failed.get(code, 0) + count
    for measure in MEASURES:
        ours, theirs = _of(to, measure), _of(new, measure)
        if theirs.counts:
            counts = ours.counts or [0] * len(theirs.counts)
            ours.counts = [one + other for one, other in zip(counts, theirs.counts, strict=True)]
            ours.sum += theirs.sum


def _add_sum(to: _Sum, new: Traffic) -> None:
    for tally in new.kinds.values():
        _add_tally(to.tally, tally)
        to.failed += sum(tally.failed.values())
    to.refused += sum(new.refused.values())
    to.false_alarms += new.false_alarms


def _add_total(to: Total, new: Traffic) -> None:
    for kind, tally in new.kinds.items():
        _add_tally(to.kinds.setdefault(kind, Tally()), tally)
    for code, count in new.refused.items():
        to.refused[code] = to.refused.get(code, 0) + count
    for name in ("suspicions", "false_alarms", "frames", "missed", "repeated"):
        setattr(to, name, getattr(to, name) + getattr(new, name))


def _of(tally: Tally, measure: Measure) -> Histogram:
    found: Histogram = getattr(tally, measure)
    return found
