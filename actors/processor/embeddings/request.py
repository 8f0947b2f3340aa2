"""One request for embeddings under way: cut into parts, each of which some encoder has, and put together in order."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from actors.processor.embeddings.intake import Asked
from actors.processor.meter import Trail
from actors.processor.view import Seat
from messages.embed import FLOAT_BYTES
from messages.submit import Done, Error, Usage

PART_INPUTS: Final = 32
"""Inputs in one part: few enough that the death of an encoder costs little, enough for the engine's batches."""
PART_TOKENS: Final = 16_384
ENVELOPE: Final = 2_048
LENGTH_BYTES: Final = 5


class Part:
    """Some of a request's inputs: at most one attempt of it counts, at one seat.

    `progress` is when its seat has last shown a sign of work, and `steps` what it showed. `refused` says until when an
    incarnation is not asked for it again.
    """

    __slots__ = (
        "accepted",
        "attempt",
        "crashes",
        "got",
        "id",
        "inputs",
        "key",
        "progress",
        "refused",
        "request",
        "seat",
        "steps",
        "tokens",
    )

    def __init__(self, request: "Embedding", number: int, inputs: Sequence[bytes]) -> None:
        self.request = request
        self.key = f"{request.id}/{number}"
        self.inputs = inputs
        self.tokens = sum(map(len, inputs)) // 4
        self.attempt = request.attempt
        self.seat: Seat | None = None
        self.accepted = False
        self.progress = 0.0
        self.steps = 0
        self.crashes = 0
        self.refused: dict[str, float] = {}
        self.got = bytearray()

    @property
    def dimensions(self) -> int:
        """How long its vectors are, by what has come; 0 if that is no whole number for each input."""
        length, rest = divmod(len(self.got), FLOAT_BYTES * len(self.inputs))
        return 0 if rest else length


class Sink(Protocol):
    """Where a request's vectors go; none of these waits."""

    def accepted(self, request: "Embedding") -> None:
        """The request is ours."""

    def ended(self, request: "Embedding") -> None:
        """The request has its last word; if it is a `Done`, all vectors are there."""


class Embedding:
    """One request: `pending` are the parts that nobody has, `out` those at encoders, by key."""

    def __init__(self, asked: Asked, sink: Sink, now: float, trail: Trail) -> None:
        self.id = asked.id
        self.trail = trail
        self.asked = asked
        self.sink = sink
        self.attempt = asked.before + 1
        self.deadline = now + asked.ttl
        self.started = time.time()
        self.timer: asyncio.TimerHandle | None = None
        self.parts: list[Part] = []
        self.pending: deque[Part] = deque()
        self.out: dict[str, Part] = {}
        self.last: Done | Error | None = None

    @property
    def over(self) -> bool:
        """Whether it has had its last word."""
        return self.last is not None

    def cut(self, seats: int, max_payload: int) -> None:
        """Cut it into parts: even ones for so many encoders, none too large for one message."""
        inputs = self.asked.inputs
        most = min(PART_INPUTS, -(-len(inputs) // max(1, seats)))
        room = min(4 * PART_TOKENS, max_payload - ENVELOPE)
        begin, size = 0, 0
        for at, tokens in enumerate(inputs):
            bytes_of_it = len(tokens) + LENGTH_BYTES
            if at > begin and (at - begin == most or size + bytes_of_it > room):
                self._part(inputs[begin:at])
                begin, size = at, 0
            size += bytes_of_it
        self._part(inputs[begin:])

    def _part(self, inputs: Sequence[bytes]) -> None:
        part = Part(self, len(self.parts), inputs)
        self.parts.append(part)
        self.pending.append(part)

    def error(self, code: int, message: str, retry_after: float | None = None) -> Error:
        """Make the last word of a request that did not end well."""
        return Error(id=self.id, code=code, message=message, attempt=self.attempt, retry_after=retry_after)

    def done(self) -> Done:
        """Make the last word of a request whose vectors are all there."""
        tokens = sum(part.tokens for part in self.parts)
        usage = Usage(prompt_tokens=tokens, completion_tokens=0)
        return Done(id=self.id, attempt=self.attempt, finish_reason="stop", usage=usage)

    @property
    def dimensions(self) -> int:
        """How long its vectors are, once they are all there."""
        return self.parts[0].dimensions

    def vectors(self, first: int, count: int) -> bytes:
        """Give some of the vectors, packed, by the numbers of their inputs; short at the end."""
        size, given = FLOAT_BYTES * self.dimensions, bytearray()
        for part in self.parts:
            there = len(part.inputs)
            if first < there and count > 0:
                given += memoryview(part.got)[first * size : (first + count) * size]
                count -= min(count, there - first)
            first = max(0, first - there)
        return bytes(given)
