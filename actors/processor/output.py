"""One stream's tokens on their way to text: detokenised, searched for stop strings, and counted."""

from collections.abc import Sequence

from actors.processor.detokenize import Detokenizer, Pieces
from actors.processor.stops import StopMatcher


class Output:
    """The text side of one request; `stopped` says that a stop string has ended it."""

    __slots__ = ("_detokenizer", "_matcher", "stopped")

    def __init__(self, pieces: Pieces, *, skip_special: bool, stops: Sequence[str]) -> None:
        self._detokenizer: Detokenizer = pieces.stream(skip_special=skip_special)
        self._matcher = StopMatcher(stops) if stops else None
        self.stopped = False

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
