"""What clients saw of a cluster under load, request by request, and the judgement of it: pure, and itself tested."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple

Door = Literal["nats", "http"]
Outcome = Literal["open", "done", "error", "closed", "refused"]
"""`closed`: the connection ended before the last word; `refused`: nobody took the connection (HTTP alone)."""

SLACK = 5.0
"""Seconds beyond its deadline after which a request hangs: the client library's own, plus what a busy machine needs."""


class Whole(NamedTuple):
    """The answer of an undisturbed run."""

    token_ids: list[int]
    text: str


class Piece(NamedTuple):
    """One delta as the caller got it; over HTTP `position` and `attempt` are not told and -1."""

    at: float
    attempt: int
    position: int
    token_ids: list[int]
    text: str


class Record:
    """One request as its client saw it. Times are monotonic seconds; `words` are the last words seen on the wire."""

    def __init__(self, id: str, door: Door, asked: int, sent: float, limit: float) -> None:
        self.id = id
        self.door = door
        self.asked = asked
        self.sent = sent
        self.limit = limit
        self.pieces: list[Piece] = []
        self.words: list[str] = []
        self.outcome: Outcome = "open"
        self.code = 0
        self.message = ""
        self.retry_after: float | None = None
        self.told_tokens = -1
        self.ended = 0.0

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        """All token ids that came."""
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def attempts(self) -> int:
        """The highest attempt that its deltas told of."""
        return max((piece.attempt for piece in self.pieces), default=1)

    @property
    def streaming(self) -> bool:
        """Whether it is in the middle of its answer."""
        return self.outcome == "open" and bool(self.pieces)

    @property
    def gap(self) -> float:
        """The longest silence, from sending to the first delta and from the last one to the end included."""
        times = [self.sent, *(piece.at for piece in self.pieces), self.ended]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    def end(self, outcome: Outcome, code: int = 0, message: str = "") -> None:
        """Note how it ended, and that it ended now."""
        self.outcome, self.code, self.message = outcome, code, message
        self.ended = time.monotonic()

    def __str__(self) -> str:
        told = f"{self.door} {self.id} {self.outcome} {self.code or ''} {self.message}".strip()
        return f"{told} (after {len(self.token_ids)} tokens, {len(self.text)} characters, words {self.words})"


def faults(
    records: Iterable[Record], wholes: Sequence[Whole], *, may_close: bool = False, lossy: bool = False
) -> list[str]:
    """Judge what clients saw; return what is wrong, one sentence each.

    Every request has exactly one last word, inside its deadline; positions have no gap and no double; what came is
    what an undisturbed run gives, and all of it where the last word says so. With `may_close` an HTTP client may find
    its connection closed or refused: that is what the death of its processor looks like. With `lossy` messages were
    lost on the way: a client that misses deltas before the last word asks for them again, as the next attempt, which
    has a last word of its own.
    """
    return [wrong for record in records for wrong in _faults(record, wholes[record.asked], may_close, lossy)]


def _faults(record: Record, whole: Whole, may_close: bool, lossy: bool) -> Iterable[str]:
    if record.outcome == "open":
        yield f"{record}: no end"
        return
    if (took := record.ended - record.sent) > record.limit + SLACK:
        yield f"{record}: took {took:.1f} s where {record.limit:g} are its deadline"
    lost = record.outcome in ("closed", "refused")
    if lost and not (may_close and record.door == "http"):
        yield f"{record}: ended without a last word"
    words = len(record.words)
    attempts = {word.rpartition(" ")[2] for word in record.words}
    if not lost and (words < 1 or (words > 1 and not lossy) or len(attempts) < words):
        yield f"{record}: {len(record.words)} last words"
    if record.door == "nats":
        yield from _faults_of_positions(record, whole)
    if not whole.text.startswith(record.text):
        yield f"{record}: other text than undisturbed: {record.text[-80:]!r}"
    if record.outcome == "done" and record.text != whole.text:
        yield f"{record}: {len(record.text)} characters of {len(whole.text)}"


def _faults_of_positions(record: Record, whole: Whole) -> Iterable[str]:
    have = 0
    for piece in record.pieces:
        if piece.position != have:
            yield f"{record}: a delta at position {piece.position} after {have} tokens"
            return
        have += len(piece.token_ids)
    if whole.token_ids[:have] != record.token_ids:
        yield f"{record}: other tokens than undisturbed"
    if record.outcome == "done" and not have == record.told_tokens == len(whole.token_ids):
        yield f"{record}: {have} tokens came, {record.told_tokens} were told, {len(whole.token_ids)} are all"


def figures(records: Sequence[Record]) -> str:
    """Sum up in a line: how many requests, how they ended, how many went on elsewhere, the longest silences."""
    ends = Counter(f"{record.outcome}{f' {record.code}' if record.code else ''}" for record in records)
    gaps = sorted((record.gap for record in records if record.pieces), reverse=True)
    resumed = sum(record.attempts > 1 for record in records)
    shown = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    if not gaps:
        return shown
    return f"{shown}; {resumed} went on elsewhere; longest silence {gaps[0]:.2f} s, median {median(gaps):.3f} s"
