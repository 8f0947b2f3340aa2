"""Which slots a processor suspects to hang, by what they have shown and when: pure, history in, verdict out.

A suspicion is no proof, and needs none: going elsewhere is safe, because attempts fence. So it comes early, and is
taken back when there is a sign of life. Nobody is suspected by a processor that could not hear: one that was late
itself, or whose own heartbeats do not come back to it.
"""

from typing import Final

from messages import stall
from messages.config import Watch
from messages.ids import Role
from messages.lifecycle import HEARTBEAT_PERIOD, Heartbeat

TICK: Final = 0.25
"""Seconds between two looks at all slots."""
LATE: Final = 0.75
"""Seconds between two looks after which we were late ourselves: what was not heard meanwhile proves nothing."""
DEAF: Final = 1.5 * HEARTBEAT_PERIOD
"""Seconds without a heartbeat from anybody, ourselves included, after which it is our own bus that is not well."""
PARDON: Final = 10.0
"""Seconds without work after which an engine that had stalled is tried again, though it has shown no step since."""


class Signs:
    """What one life of a slot has shown of itself. Times are the observer's own monotonic seconds."""

    __slots__ = ("_cpu", "_frames", "_heard", "_ill", "_mark", "_role", "_stall", "_steps", "_told")

    def __init__(self, role: Role, now: float) -> None:
        self._role = role
        self._heard = self._mark = now
        self._told = False
        self._steps = -1
        self._cpu = 0.0
        self._frames = 0
        self._ill = self._stall = ""

    def beat(self, beat: Heartbeat, now: float, watch: Watch) -> None:
        """Take in a heartbeat: a sign of life, and of progress or of none."""
        self._heard, self._told = now, True
        self._ill = stall.dead_child(beat)
        cpu = stall.cpu_of(beat)
        if beat.steps != self._steps:
            self._steps, self._stall = beat.steps, ""
            self._mark, self._cpu = now, cpu
        elif stall.works(beat):
            still = now - self._mark
            self._stall = self._stall or stall.stalled(self._role, beat, still, cpu - self._cpu, watch)
        elif not self._stall or now - self._mark >= PARDON:
            # Aborted streams leave a hanging engine without work: that alone is no reason to give it more.
            self._stall = ""
            self._mark, self._cpu = now, cpu

    def frames(self, count: int, now: float) -> None:
        """Take in how many frames have come so far: a new one is a sign of life."""
        if count != self._frames:
            self._frames, self._heard = count, now

    def anew(self, now: float) -> None:
        """Begin to count anew: the silence may have been ours."""
        self._heard = now
        if not self._stall:
            self._mark = now

    def verdict(self, now: float, watch: Watch) -> str:
        """Say why it is to be suspected; an empty text if it is not."""
        if self._ill or self._stall:
            return self._ill or self._stall
        silent = now - self._heard
        return f"no heartbeat for {silent:.1f} s" if self._told and silent >= watch.silence else ""


class Ears:
    """Whether we can hear at all: told of each look and each heartbeat, whosever, it says when to begin anew."""

    def __init__(self) -> None:
        self._looked: float | None = None
        self._heard: float | None = None
        self.away = False

    def look(self, now: float) -> bool:
        """Take in that we look; return whether we were late, so that this look proves nothing."""
        late, self._looked = self._looked is None or now - self._looked > LATE, now
        return late

    def hear(self, now: float) -> bool:
        """Take in that a heartbeat came; return whether none could have been heard for a while."""
        deaf = self.deaf(now) or self._looked is None or now - self._looked > LATE
        self._heard = now
        return deaf

    def deaf(self, now: float) -> bool:
        """Whether nothing has been heard of anybody, so that nobody's silence proves anything."""
        return self.away or self._heard is None or now - self._heard > DEAF
