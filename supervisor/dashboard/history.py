"""The newest events, as the stream numbers them, ready to be shown: filtered, as JSON, or from one number on."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from messages import codec
from messages.event_log import Told
from messages.lifecycle import Event

KEPT: Final = 5_000
TEXT: Final = 2_000
"""Characters of a reason, and bytes of a detail, beyond which they are cut: whoever is on the bus may publish."""
SECRET: Final = frozenset({"last_lines"})
"""Details that come from a log: who has not the token sees how many there are."""
QUIET: Final = frozenset({"actor"})
"""Topics that the timeline has only when asked: the supervisor tells the same in better words."""


class Line(Struct, frozen=True):
    """One event with its number; `shown` is its JSON for everybody."""

    seq: int
    event: Event
    shown: msgspec.Raw


class History:
    """The newest events; `newest` is the number of the last one."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self.newest = 0
        self.known = False

    def take(self, told: list[Told], anew: bool) -> list[Line]:
        """Take in what the stream tells; return it."""
        if anew:
            self._lines.clear()
            self.newest = 0
            self.known = True
        lines = [line(one.seq, one.event) for one in told]
        self._lines.extend(lines)
        if lines:
            self.newest = lines[-1].seq
        return lines

    def find(self, seq: int) -> Line | None:
        """Return the event of this number, if it is among the newest."""
        return next((line for line in reversed(self._lines) if line.seq == seq), None)

    def after(self, seq: int, most: int) -> list[Line] | None:
        """Return what has come after a number; None where that cannot be said: it is too old, too much, or not ours."""
        if seq > self.newest or not self._lines or seq < self._lines[0].seq - 1:
            return None
        found: list[Line] = []
        for one in reversed(self._lines):
            if one.seq <= seq:
                break
            if len(found) == most:
                return None
            found.append(one)
        return found[::-1]

    def select(
        self,
        *,
        of: str = "",
        topic: str = "",
        what: str = "",
        before: int | None = None,
        since: float = 0.0,
        quiet: bool = True,
        most: int = 200,
    ) -> list[Line]:
        """Return the newest that fit, oldest first; without `quiet`, or by topic, also what the actors say."""
        found: list[Line] = []
        for one in reversed(self._lines):
            event = one.event
            if before is not None and one.seq >= before:
                continue
            if event.at < since or len(found) == most:
                break
            wanted = event.topic == topic if topic else not (quiet and event.topic in QUIET)
            if wanted and (not of or event.of == of) and (not what or event.what == what):
                found.append(one)
        return found[::-1]


def line(seq: int, event: Event) -> Line:
    """Make a line of an event, cut to a size that can be shown."""
    event = msgspec.structs.replace(event, reason=event.reason[:TEXT], detail=_cut(event.detail))
    open_detail = {name: len(value) if name in SECRET else value for name, value in event.detail.items()}
    shown = {"seq": seq, **msgspec.to_builtins(msgspec.structs.replace(event, detail=open_detail))}
    return Line(seq, event, msgspec.Raw(codec.to_json(shown)))


def _cut(detail: dict[str, Any]) -> dict[str, Any]:
    secret = {name: value for name, value in detail.items() if name in SECRET and isinstance(value, list)}
    rest = {name: value for name, value in detail.items() if name not in SECRET}
    if len(codec.to_json(rest)) > TEXT:
        rest = {"cut": "this detail is too long to be shown"}
    return rest | {name: [str(one)[:TEXT] for one in value[-100:]] for name, value in secret.items()}


def shown(lines: Iterable[Line]) -> list[msgspec.Raw]:
    """Return the lines as JSON."""
    return [one.shown for one in lines]
