"""What `troupe top` knows, and what the person at the keyboard is about: plain data, changed by keys and by news."""

from collections import deque
from typing import Final, Literal

from msgspec import Struct, field

from messages.lifecycle import Event
from messages.supervise import SlotStatus, Status
from supervisor.commands import happened
from supervisor.traffic import Point

EVENTS_KEPT: Final = 1_000
STALE: Final = 3.0
"""Seconds without an answer after which what is shown is said to be stale."""
MESSAGE_SECONDS: Final = 8.0

What = Literal["drain", "restart"]


class Known(Struct):
    """What has been heard of the cluster; `heard` is the monotonic time of the last answer, `trouble` why none comes.

    `alone` says that no supervisor answers, so that the status comes from what is written down.
    """

    status: Status | None = None
    heard: float = 0.0
    trouble: str = "connecting"
    alone: bool = False
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    points: dict[str, Point] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def age(self, now: float) -> float:
        """How old the status is."""
        return now - self.heard

    def stale(self, now: float) -> bool:
        """Whether what is shown may be true no more."""
        return self.status is None or bool(self.trouble) or self.age(now) > STALE


class Order(Struct, frozen=True):
    """What is to be done to a slot."""

    what: What
    slot: str


class ShowLog(Struct, frozen=True):
    """Show the end of a slot's log."""

    slot: str


class Quit(Struct, frozen=True):
    """Enough."""


Action = Order | ShowLog | Quit


class Ui(Struct):
    """Where the person is: the slot chosen, what the lower half shows, what is being typed or asked.

    `asked` waits for yes or no; `typing` is the filter as it is being typed, None while it is not.
    """

    chosen: str = ""
    below: Literal["events", "log", "help"] = "events"
    filter: str = ""
    typing: str | None = None
    asked: Order | None = None
    message: str = ""
    message_until: float = 0.0

    def say(self, message: str, now: float) -> None:
        """Show a message for a while."""
        self.message, self.message_until = message, now + MESSAGE_SECONDS

    def press(self, key: str, known: Known, now: float) -> Action | None:
        """Take in a key; return what is to be done."""
        self.message = ""
        if self.typing is not None:
            self._type(key)
            return None
        if self.asked is not None:
            order, self.asked = self.asked, None
            if key in ("y", "Y"):
                return order
            self.say(f"{order.slot}: nothing done", now)
            return None
        return self._command(key, known, now)

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key == "enter":
            self.filter, self.typing = self.typing, None
        elif key == "escape":
            self.filter, self.typing = "", None
        elif key == "backspace":
            self.typing = self.typing[:-1]
        elif len(key) == 1 and key.isprintable():
            self.typing += key

    def _command(self, key: str, known: Known, now: float) -> Action | None:
        slots = [slot.slot for slot in shown(known, self.filter)]
        match key:
            case "q":
                return Quit()
            case "up" | "k" | "down" | "j" if slots:
                at = slots.index(self.chosen) if self.chosen in slots else -1
                step = -1 if key in ("up", "k") else 1
                self.chosen = slots[max(0, min(len(slots) - 1, at + step))]
                return ShowLog(self.chosen) if self.below == "log" else None
            case "/":
                self.typing = self.filter
            case "?":
                self.below = "events" if self.below == "help" else "help"
            case "escape":
                self.below, self.filter = "events", ""
            case "l" | "d" | "r":
                return self._on_slot(key, slots, now)
        return None

    def _on_slot(self, key: str, slots: list[str], now: float) -> Action | None:
        if self.chosen not in slots:
            self.say("choose a slot first: up and down, or j and k", now)
        elif key == "l":
            self.below = "events" if self.below == "log" else "log"
            return ShowLog(self.chosen) if self.below == "log" else None
        else:
            self.asked = Order("drain" if key == "d" else "restart", self.chosen)
        return None


def shown(known: Known, wanted: str) -> list[SlotStatus]:
    """The slots that pass the filter, model by model as the configuration has them."""
    slots = known.status.slots if known.status is not None else []
    models = list(dict.fromkeys(slot.model for slot in slots))
    ordered = sorted(slots, key=lambda slot: models.index(slot.model))
    return [slot for slot in ordered if wanted in f"{slot.slot} {slot.state} {slot.role} {slot.reason}"]


def told(known: Known, wanted: str) -> list[Event]:
    """What happened and passes the filter, newest first; what actors say of their loading is left out."""
    return [
        event
        for event in reversed(known.events)
        if event.topic != "actor" and wanted in f"{event.of} {event.what} {happened.what(event)}"
    ]
