"""How every slot's life stands, as far as decisions need it: its phase, its history, and what others wait for in it."""

import math
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from supervisor.acts import Note
from supervisor.recovery import Outage, Recovery
from supervisor.spec import Spec

KILL_SLACK: Final = 5.0
"""Seconds beyond a deadline that the actor applies itself, so that its own word on it comes first."""
STAYS: Final = math.inf
"""The `hand_over` of one that is not to go."""


class Phase(StrEnum):
    """Where a slot is, as its supervisor sees it."""

    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    STANDBY = "standby"
    READY = "ready"
    DRAINING = "draining"
    KILLING = "killing"
    STOPPED = "stopped"
    FAILED = "failed"


RUNNING: Final = frozenset({Phase.LOADING, Phase.STANDBY, Phase.READY, Phase.DRAINING, Phase.KILLING})
"""Phases with a process."""
AT_REST: Final = frozenset({Phase.STOPPED, Phase.FAILED})
IN_PLACE: Final = frozenset({Phase.LOADING, Phase.STANDBY, Phase.READY})
"""Phases with a process that nobody has asked to end yet."""
MORTAL: Final = IN_PLACE | {Phase.DRAINING}
"""Phases with a process that has not been killed yet."""

Intent = Literal["run", "again", "stop"]


class Life(Struct, frozen=True, kw_only=True):
    """One slot's history as far as decisions need it.

    `start_at` counts while waiting, `kill_at` while a process runs. Until `clear_by` the memory that its last life
    had on GPUs may not be free; `behind` is the slot whose turn it is on a GPU that both use. `crashes` are the
    times of the restarts that count towards the intensity, `early` the crashes before ready, `streak` the doublings
    of the back-off. `reason` says why the slot last changed for the worse, `planned` whether that was asked for.
    `born` is which generation's process took its first step when; `outage` is there from a death until the slot is
    ready again, and `recovered` is the last time that it was. `call` says whether an understudy has been `called` to
    work, and when; `hand_over` is until when one that is to go waits for another to take over.
    """

    spec: Spec
    phase: Phase = Phase.WAITING
    since: float = 0.0
    generation: int = 0
    start_at: float = 0.0
    clear_by: float = -math.inf
    behind: str = ""
    kill_at: float = math.inf
    started: float = -math.inf
    ready_at: float | None = None
    intent: Intent = "run"
    crashes: tuple[float, ...] = ()
    early: int = 0
    streak: int = 0
    restarts: int = 0
    reason: str = ""
    planned: bool = False
    condemned: str = ""
    called: float = -math.inf
    call: Literal["", "asked", "refused"] = ""
    hand_over: float = STAYS
    born: tuple[int, float] = (0, 0.0)
    outage: Outage | None = None
    recovered: Recovery | None = None

    def to(self, phase: Phase, now: float, **more: Any) -> "Life":
        """Go to another phase, with more that changes; nobody is waited for or called in it yet."""
        return msgspec.structs.replace(
            self, phase=phase, since=now, behind="", call="", called=-math.inf, hand_over=STAYS, **more
        )

    def note(
        self,
        what: str,
        text: str,
        reason: str = "",
        *,
        planned: bool = False,
        bad: bool = False,
        detail: dict[str, Any] | None = None,
    ) -> Note:
        """Make a note on this generation, for the log and the event stream."""
        return Note(self.spec.slot, self.generation, what, text, reason, planned, bad, detail or {})


class Lives(Struct, frozen=True, kw_only=True):
    """All slots of this supervisor; `bus_lost` is when the bus was last lost, `ending` how all of it ends."""

    slots: dict[str, Life]
    bus: bool = False
    bus_lost: float = -math.inf
    ending: Literal["no", "drain", "abort"] = "no"

    @property
    def ours(self) -> list[Life]:
        """The lives that we start and end: all but those of external slots."""
        return [life for life in self.slots.values() if not life.spec.external]

    @property
    def over(self) -> bool:
        """Whether everything is to end and has ended."""
        return self.ending != "no" and all(life.phase in AT_REST for life in self.ours)

    def having(self, life: Life) -> "Lives":
        """Put in how one slot stands now."""
        if self.slots[life.spec.slot] is life:
            return self
        return msgspec.structs.replace(self, slots=self.slots | {life.spec.slot: life})
