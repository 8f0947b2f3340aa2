"""Stop strings in a stream of text: found across any cuts, nothing shown that may yet turn out to be part of one.

Of several stop strings the one that is complete first counts, and of those complete at the same character the
longest: this depends on the characters alone and not on how they were cut.
"""

from collections.abc import Sequence
from typing import Final

MOST_CHARACTERS: Final = 1_024


class StopMatcher:
    """Watches one stream for the stop strings of its request; `found` is the one that ended it."""

    __slots__ = ("_ends", "_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        # For each character, the beginnings of stop strings that end with it: only these can be at the end of a text.
        self._ends: dict[str, list[str]] = {}
        for stop in self._stops:
            for length in range(len(stop) - 1, 0, -1):
                self._ends.setdefault(stop[length - 1], []).append(stop[:length])
        for beginnings in self._ends.values():
            beginnings.sort(key=len, reverse=True)

    def push(self, text: str) -> str:
        """Take more text and return what can be shown; after `found` is set, nothing more may be pushed."""
        text = self._held + text
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0 and (best is None or (at + len(stop), at) < best):
                best = (at + len(stop), at)
        if best is not None:
            self.found = text[best[1] : best[0]]
            self._held = ""
            return text[: best[1]]
        keep = self._may_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep] if keep else text

    def finish(self) -> str:
        """Return what was held back, there being nothing to come."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, text: str) -> int:
        """Count the characters at the end of the text that may be the beginning of a stop string."""
        if text:
            for beginning in self._ends.get(text[-1], ()):
                if text.endswith(beginning):
                    return len(beginning)
        return 0
