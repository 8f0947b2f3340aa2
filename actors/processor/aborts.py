"""Telling actors to stop what nobody wants any more, until they answer."""

from collections.abc import Callable
from typing import Final

from actors.processor.asks import Asks, Then
from actors.processor.view import Seat, View
from messages import codec
from messages.bus import SilentError
from messages.frames import Item
from messages.lifecycle import Control
from messages.subjects import Subjects

TRIES: Final = 5
STRAY_SECONDS: Final = 1.0
MOST_STRAYS: Final = 4_096


class Aborts:
    """All aborts of one processor's life."""

    def __init__(self, asks: Asks, subjects: Subjects, incarnation: str, now: Callable[[], float]) -> None:
        self._asks = asks
        self._subjects = subjects
        self._incarnation = incarnation
        self._now = now
        self._strays: dict[str, float] = {}

    def tell(
        self, request: str, attempt: int, seat: Seat, tries: int = TRIES, told: Then = lambda outcome: None
    ) -> None:
        """Tell a seat to stop; repeated until it is answered, or nobody is there. `told` gets the outcome."""
        generation = seat.registration.generation
        asked = Control(request=request, attempt=attempt, generation=generation, out=self._incarnation)

        def then(outcome: bytes | Exception) -> None:
            if isinstance(outcome, SilentError) and tries > 1:
                self.tell(request, attempt, seat, tries - 1, told)
            else:
                told(outcome)

        self._asks.ask(self._subjects.control(seat.registration.slot, "abort"), codec.to_json(asked), then)

    def stray(self, sender: str, item: Item, view: View) -> None:
        """Tell somebody who works on what nobody wants, once a second for each request."""
        now = self._now()
        key = f"{item.request}:{sender}"
        if now - self._strays.get(key, 0.0) < STRAY_SECONDS:
            return
        if len(self._strays) >= MOST_STRAYS:
            self._strays.clear()
        self._strays[key] = now
        seat = view.seats.get(sender.rpartition("-g")[0])
        if seat is not None and seat.incarnation == sender:
            self.tell(item.request, item.attempt, seat)
