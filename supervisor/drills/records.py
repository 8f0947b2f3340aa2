"""What a client saw of one request, and the judgement of it alone: how it ended, and whether its text is whole."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, Literal, NamedTuple

from msgspec import Struct

Door = Literal["nats", "http"]
Outcome = Literal["open", "done", "error", "closed", "refused"]
"""`closed`: the connection ended before the last word; `refused`: nobody took the connection (HTTP alone)."""

SLACK: Final = 5.0
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


class Taken(NamedTuple):
    """A processor's word that it has the request: its incarnation, and which attempt that is."""

    at: float
    attempt: int
    owner: str


class Record(Struct, tag="request", tag_field="line"):
    """One request as its client saw it. Times are monotonic seconds; `words` are the last words seen on the wire.

    `asked` is which of the prompts it was, `limit` its deadline in seconds. `retried` counts the connections that were
    refused, and the 503s that said when to come again, before it was taken. `client` is the process that asked, and
    `reference` says that it asked while nothing was wrong, so that others can be compared.
    """

    id: str
    door: Door
    asked: int
    sent: float
    limit: float
    pieces: list[Piece] = []
    words: list[str] = []
    outcome: Outcome = "open"
    code: int = 0
    message: str = ""
    retry_after: float | None = None
    told_tokens: int = -1
    ended: float = 0.0
    taken: list[Taken] = []
    retried: int = 0
    client: str = ""
    reference: bool = False

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
    def lost(self) -> bool:
        """Whether its connection went before its last word came."""
        return self.outcome in ("closed", "refused")

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
    wrong: list[str] = []
    for record in records:
        wrong += faults_of_ending(record, may_close=may_close, lossy=lossy)
        wrong += faults_of_text(record, wholes[record.asked])
    return wrong


def faults_of_ending(record: Record, *, may_close: bool = False, lossy: bool = False) -> Iterable[str]:
    """Judge how a request ended: with exactly one last word, inside its deadline."""
    if record.outcome == "open":
        yield f"{record}: no end"
        return
    if (took := record.ended - record.sent) > record.limit + SLACK:
        yield f"{record}: took {took:.1f} s where {record.limit:g} are its deadline"
    if record.lost and not (may_close and record.door == "http"):
        yield f"{record}: ended without a last word"
    words = len(record.words)
    attempts = {word.rpartition(" ")[2] for word in record.words}
    if not record.lost and (words < 1 or (words > 1 and not lossy) or len(attempts) < words):
        yield f"{record}: {len(record.words)} last words"


def faults_of_text(record: Record, whole: Whole) -> Iterable[str]:
    """Judge what came: no gap, no double, and nothing but what an undisturbed run gives."""
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
