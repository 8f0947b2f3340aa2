"""What can happen to a slot, and what can be done about it: the events and commands of the restart decider."""

from typing import Any, Literal

from msgspec import Struct

from messages.lifecycle import State
from supervisor.events import Bus, Tick

Excuse = Literal["", "bus"]
What = Literal["drain", "restart", "now", "out"]

# Events.


class Started(Struct, frozen=True):
    """The process of a new generation runs."""

    slot: str
    generation: int


class StartFailed(Struct, frozen=True):
    """No process came of a start; `excuse` is "bus" when only the bus was missing."""

    slot: str
    reason: str
    jitter: float = 0.0
    excuse: Excuse = ""


class Adopted(Struct, frozen=True):
    """A process of an earlier supervisor runs on; `age` is how long ago it was started, in seconds."""

    slot: str
    generation: int
    age: float
    restarts: int = 0
    reason: str = ""


class Began(Struct, frozen=True):
    """The process has begun to load, so many seconds after its first step."""

    slot: str
    generation: int
    age: float


class Seen(Struct, frozen=True):
    """The slot's owner has registered this state; `total` is how long it has taken to be ready, `stages` for what."""

    slot: str
    generation: int
    state: State
    total: float = 0.0
    stages: dict[str, float] = {}


class Downloading(Struct, frozen=True):
    """Bytes of the model still come: the load deadline begins anew."""

    slot: str
    generation: int


class Gone(Struct, frozen=True):
    """The process has ended, when it is known; what is left of its session is being killed. `Exited` will follow."""

    slot: str
    generation: int
    died: float | None = None


class Exited(Struct, frozen=True):
    """The process is gone, and all of its session with it; `code` is None when nobody could tell it.

    `how` names the code or the signal shortly; `last_lines` are what its log ended with.
    """

    slot: str
    generation: int
    code: int | None
    reason: str
    jitter: float = 0.0
    how: str = ""
    last_lines: tuple[str, ...] = ()


class Cleared(Struct, frozen=True):
    """The memory that a dead life had on its GPUs is free; or it is not, and this is who holds it."""

    slot: str
    generation: int
    held: str = ""


class Condemned(Struct, frozen=True):
    """There is evidence that the process will do no more work; its last sign of life was at `since`, if known."""

    slot: str
    generation: int
    why: str
    since: float | None = None


class Left(Struct, frozen=True):
    """The registration of an external slot is gone: its actor has taken it away, or somebody else has."""

    slot: str
    generation: int


class Lost(Struct, frozen=True):
    """The actor of an external slot is gone as far as can be seen from here."""

    slot: str
    generation: int
    why: str


class Refused(Struct, frozen=True):
    """An understudy that was called to work has not come, or has not answered."""

    slot: str
    generation: int
    why: str


class Ask(Struct, frozen=True):
    """Somebody asks for a drain (the slot then stays stopped) or for a restart (drain, then the next generation).

    `now` and `out` are the same without the drain: what is in flight goes on elsewhere.
    """

    slot: str
    what: What


class End(Struct, frozen=True):
    """Everything is to end, front to back; with `abort` at once."""

    abort: bool = False


SlotEvent = (
    Bus
    | Tick
    | Started
    | StartFailed
    | Adopted
    | Began
    | Seen
    | Downloading
    | Gone
    | Exited
    | Cleared
    | Condemned
    | Left
    | Lost
    | Refused
    | Ask
    | End
)


# Commands.


class Start(Struct, frozen=True):
    """Claim the next generation of a slot and start its process."""

    slot: str


class Terminate(Struct, frozen=True):
    """Send SIGTERM: drain; with `abort` send it twice, which ends what is left with an error each."""

    slot: str
    generation: int
    abort: bool = False


class Kill(Struct, frozen=True):
    """Send SIGKILL to all of the process's session."""

    slot: str
    generation: int


class Dismiss(Struct, frozen=True):
    """Ask the actor of an external slot to exit, over the bus: at once for this reason, or else having drained."""

    slot: str
    generation: int
    why: str = ""


class Promote(Struct, frozen=True):
    """Call an understudy to work, over the bus; `Refused` says if it does not come."""

    slot: str
    generation: int


class Clear(Struct, frozen=True):
    """Wait until the memory that a dead life had on its GPUs is free, for so long at most, and say `Cleared`."""

    slot: str
    generation: int


class Forget(Struct, frozen=True):
    """Delete the registration of an incarnation that is known dead."""

    slot: str
    generation: int


class Note(Struct, frozen=True):
    """Something for the log and the event stream; `text` is the log's, `reason` and `detail` the stream's."""

    slot: str
    generation: int
    what: str
    text: str
    reason: str = ""
    planned: bool = False
    bad: bool = False
    detail: dict[str, Any] = {}


SlotCommand = Start | Terminate | Kill | Dismiss | Promote | Clear | Forget | Note
