"""What a processor counts of its requests, and the ways of the last few thousand of them; never what they say.

A request has a trail from its arrival to its end. What happens to it is noted there, and counted with all others of its
kind since the processor's start (`messages/telemetry.py` says what each figure means). Nothing here waits or publishes.
"""

import time
from bisect import bisect_left
from time import monotonic
from typing import Final

from msgspec import Struct

from messages.ids import parse_incarnation
from messages.submit import Done, Error
from messages.telemetry import BOUNDS, Histogram, Measure, Passed, Station, Tally, Traffic, Way

KEPT: Final = 2_000
"""Requests whose way is remembered."""
STATIONS: Final = 64
FIRST_STATIONS: Final = 16
"""Of a way that is longer than `STATIONS`, so many at its begin are kept in any case."""
WHY_LENGTH: Final = 200
CANCELLED: Final = 499


class Spread:
    """A histogram being filled."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, measure: Measure) -> None:
        self.bounds = BOUNDS[measure]
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Put a figure in, so many times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times

    def told(self) -> Histogram:
        """Give it as it is now."""
        return Histogram(self.counts.copy(), round(self.sum, 6)) if any(self.counts) else Histogram()


class Counted:
    """What has been counted of one kind of requests; `first_tokens` begin an answer, the others are those of `itl`."""

    __slots__ = (
        "admitted",
        "cancelled",
        "e2e",
        "failed",
        "finished",
        "first_tokens",
        "itl",
        "left",
        "migrated",
        "prompt_tokens",
        "queue_wait",
        "ttft",
    )

    def __init__(self) -> None:
        self.admitted = self.finished = self.cancelled = self.left = self.migrated = 0
        self.prompt_tokens = self.first_tokens = 0
        self.failed: dict[int, int] = {}
        self.ttft, self.itl = Spread("ttft"), Spread("itl")
        self.queue_wait, self.e2e = Spread("queue_wait"), Spread("e2e")

    def told(self) -> Tally:
        """Give it as it is now."""
        return Tally(
            admitted=self.admitted,
            finished=self.finished,
            failed=self.failed.copy(),
            cancelled=self.cancelled,
            left=self.left,
            migrated=self.migrated,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.first_tokens + sum(self.itl.counts),
            ttft=self.ttft.told(),
            itl=self.itl.told(),
            queue_wait=self.queue_wait.told(),
            e2e=self.e2e.told(),
        )


class Noted(Struct, gc=False):
    """A station as it is remembered: of thousands that are kept, none is anything for the garbage collector."""

    at: float
    what: Passed
    where: tuple[str, ...] = ()
    why: str = ""
    attempt: int = 0

    def told(self) -> Station:
        """Give it as it is told."""
        return Station(at=self.at, what=self.what, where=list(self.where), why=self.why, attempt=self.attempt)


class Trail:
    """The way of one request, all of its choices together."""

    __slots__ = ("_arrived", "_counted", "_first", "_itl", "_placed", "attempt", "code", "kind", "prompt_tokens",
                 "request", "stations", "tokens", "untold")  # fmt: skip

    def __init__(
        self, request: str, kind: str, counted: Counted, at: float, arrived: float, prompt_tokens: int
    ) -> None:
        self.request = request
        self.kind = kind
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.attempt = 0
        self.code = 0
        self.stations = [Noted(at, "submitted")]
        self.untold = 0
        self._counted = counted
        self._itl = counted.itl
        self._arrived = arrived
        self._placed = self._first = False

    def note(self, what: Passed, where: tuple[str, ...] = (), why: str = "", attempt: int = 0) -> None:
        """Note that something has happened; of a way that is too long, what lies between begin and end is left out."""
        if len(self.stations) >= STATIONS:
            del self.stations[FIRST_STATIONS]
            self.untold += 1
        self.stations.append(Noted(time.time(), what, where, why[:WHY_LENGTH], attempt))

    def routed(self, where: tuple[str, ...], attempt: int) -> None:
        """Actors have been told of it; the first time, its waiting is over."""
        self.attempt = max(self.attempt, attempt)
        if not self._placed:
            self._placed = True
            self._counted.queue_wait.add(monotonic() - self._arrived)
        self.note("routed", where, attempt=attempt)

    def migrated(self, where: tuple[str, ...], why: str, attempt: int) -> None:
        """An actor has failed on it, or may have, and it goes on elsewhere."""
        self._counted.migrated += 1
        self.note("migrated", where, why, attempt)

    def heard(self, count: int, last: float) -> float:
        """Count the tokens that have just come for one choice, `last` being when those before came, 0.0 for none.

        Returns the time to call with the next time. This runs once a stream and frame.
        """
        now = monotonic()
        self.tokens += count
        if last:
            itl, gap = self._itl, now - last
            itl.counts[bisect_left(itl.bounds, gap / count)] += count
            itl.sum += gap
        else:
            self._counted.first_tokens += count
            if not self._first:
                self._first = True
                self._counted.ttft.add(now - self._arrived)
                self.note("first_token", attempt=self.attempt)
        return now

    def over(self, last: Done | Error | None) -> None:
        """Count its end; without a last word, another processor has it now."""
        counted = self._counted
        if last is None:
            counted.left += 1
            self.note("left", why="another processor has taken it on")
        elif isinstance(last, Done):
            counted.finished += 1
            counted.e2e.add(monotonic() - self._arrived)
            if (more := last.usage.prompt_tokens - self.prompt_tokens) > 0:
                # A chat that the engine renders: only it knows how long the prompt is.
                counted.prompt_tokens += more
                self.prompt_tokens += more
            self._end(200, "finished", last.finish_reason)
        elif last.code == CANCELLED:
            counted.cancelled += 1
            self._end(last.code, "cancelled", "")
        else:
            counted.failed[last.code] = counted.failed.get(last.code, 0) + 1
            # What an engine says of a bad request may repeat parts of it.
            self._end(last.code, "failed", last.message if last.code >= 500 or last.code == 408 else "")

    def _end(self, code: int, what: Passed, why: str) -> None:
        self.code = code
        self.note(what, why=why, attempt=self.attempt)


class Meter:
    """All that one processor counts, and the trails that it remembers."""

    def __init__(self, incarnation: str, model: str) -> None:
        self._slot, self._generation = parse_incarnation(incarnation)
        self._model = model
        self._started = time.time()
        self._kinds: dict[str, Counted] = {}
        self._refused: dict[int, int] = {}
        self._arrived: dict[str, tuple[float, float]] = {}
        self._trails: dict[str, Trail] = {}

    def arrived(self, request: str) -> None:
        """A request is here, and is being prepared; `forget` follows in any case."""
        self._arrived[request] = time.time(), monotonic()

    def forget(self, request: str) -> None:
        """A request is prepared no more: it has begun, or was refused."""
        self._arrived.pop(request, None)

    def trail(self, request: str, kind: str, prompt_tokens: int) -> Trail:
        """Begin the trail of a request that may be admitted yet."""
        at, arrived = self._arrived.get(request) or (time.time(), monotonic())
        counted = self._kinds.get(kind)
        if counted is None:
            counted = self._kinds[kind] = Counted()
        return Trail(request, kind, counted, at, arrived, prompt_tokens)

    def admitted(self, trail: Trail) -> None:
        """A request has been admitted; from here on it is counted, and its way is remembered for a while."""
        counted = self._kinds[trail.kind]
        counted.admitted += 1
        counted.prompt_tokens += trail.prompt_tokens
        self._trails.pop(trail.request, None)
        self._trails[trail.request] = trail
        if len(self._trails) > KEPT:
            del self._trails[next(iter(self._trails))]

    def refused(self, code: int) -> None:
        """A request was not admitted."""
        self._refused[code] = self._refused.get(code, 0) + 1

    def way(self, request: str) -> Way | None:
        """Tell the way of a request, if it is remembered."""
        trail = self._trails.get(request)
        if trail is None:
            return None
        return Way(
            request=request,
            slot=self._slot,
            generation=self._generation,
            kind=trail.kind,
            attempt=trail.attempt,
            code=trail.code,
            prompt_tokens=trail.prompt_tokens,
            tokens=trail.tokens,
            stations=[noted.told() for noted in trail.stations],
            untold=trail.untold,
        )

    def traffic(
        self,
        *,
        queued: int,
        in_flight: int,
        suspicions: int,
        false_alarms: int,
        frames: int,
        missed: int,
        repeated: int,
    ) -> Traffic:
        """Tell of all that has been counted until now, here and by others."""
        return Traffic(
            slot=self._slot,
            generation=self._generation,
            model=self._model,
            at=time.time(),
            started=self._started,
            queued=queued,
            in_flight=in_flight,
            kinds={kind: counted.told() for kind, counted in self._kinds.items()},
            refused=self._refused.copy(),
            suspicions=suspicions,
            false_alarms=false_alarms,
            frames=frames,
            missed=missed,
            repeated=repeated,
        )
