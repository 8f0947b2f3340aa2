"""One stream's tokens on their way to text: detokenised, searched for stop strings, and counted."""

from collections.abc import Sequence

from actors.processor.detokenize import Detokenizer, Pieces
from actors.processor.stops import StopMatcher


class Nothing:
    """In place of a detokenizer where the engine makes the text: ids say nothing here."""

    def push(self, ids: list[int]) -> str:
        """Say nothing."""
        return ""

    def finish(self) -> str:
        """Have held nothing back."""
        return ""


class Output:
    """The text side of one request; `stopped` says that a stop string has ended it. Without `pieces` it is `told`."""

    __slots__ = ("_detokenizer", "_matcher", "stopped")

    def __init__(self, pieces: Pieces | None, *, skip_special: bool, stops: Sequence[str]) -> None:
        self._detokenizer: Detokenizer = Nothing() if pieces is None else pieces.stream(skip_special=skip_special)
        self._matcher = StopMatcher(stops) if stops else None
        self.stopped = False

    @property
    def watched(self) -> bool:
        """Whether there are stop strings to look for."""
        return self._matcher is not None

    def push(self, ids: list[int]) -> tuple[int, str]:
        """Take the next ids; return how many of them count, and the text that is certain now.

        All count, unless a stop string was completed by one that is not the last.
        """
        if self._matcher is None:
            return len(ids), self._detokenizer.push(ids)
        if len(ids) == 1:
            text = self._matcher.push(self._detokenizer.push(ids))
            self.stopped = self._matcher.found is not None
            return 1, text
        told: list[str] = []
        for count, at in enumerate(ids, 1):
            told.append(self._matcher.push(self._detokenizer.push([at])))
            if self._matcher.found is not None:
                self.stopped = True
                return count, "".join(told)
        return len(ids), "".join(told)

    def told(self, text: str) -> str:
        """Take the next text from an engine that makes it itself; return what is certain now."""
        if self._matcher is None or self.stopped:
            return "" if self.stopped else text
        text = self._matcher.push(text)
        self.stopped = self._matcher.found is not None
        return text

    def finish(self) -> str:
        """Return what was held back, the stream having ended otherwise than by a stop string."""
        rest = self._detokenizer.finish()
        if self._matcher is None:
            return rest
        text = self._matcher.push(rest)
        if self._matcher.found is not None:
            self.stopped = True
            return text
        return text + self._matcher.finish()
