"""The client's side of one request for embeddings: asked until every vector is there, whatever processors die.

async with Client("nats://127.0.0.1:4222") as troupe:
    answer = await troupe.embed("embed", ["one text", "another"], dimensions=256)
    answer.vectors[0]  # array('f', [...])
"""

import contextlib
from array import array
from typing import Any

from msgspec import Struct

from messages import embed
from messages.bus import BusError
from messages.client import Client, RequestError, _Request
from messages.embed import FLOAT_BYTES, Embed, Vectors, unpack_floats
from messages.submit import Accepted, Done, Error, Resume, Usage


class Embeddings(Struct, kw_only=True):
    """The vectors, one for each input and in their order, as 32-bit floats; `usage` counts the tokens of all inputs."""

    id: str
    vectors: list["array[float]"]
    usage: Usage


class EmbedRequest(_Request):
    """One request for embeddings."""

    answers: Any = embed.Answer

    def __init__(self, client: Client, body: Embed) -> None:
        super().__init__(client, "embed", body)
        self._vectors: dict[int, array[float]] = {}

    async def whole(self) -> Embeddings:
        """Ask, and wait for all of it. Raises RequestError."""
        streams = self._client._streams
        if self._token in streams:
            raise RequestError(self._body.id, 409, f"request id {self._body.id} is under way in this client already")
        streams[self._token] = self._queue
        try:
            return await self._collect()
        except RequestError:
            raise
        except BaseException:
            with contextlib.suppress(BusError):
                await self._client._bus.publish(self._client._subjects.cancel(self._body.id))
            raise
        finally:
            del streams[self._token]

    async def _collect(self) -> Embeddings:
        subject = self._client._subjects.submit(await self._client._alias(self._body.model), self._kind)
        await self._submit(subject)
        while True:
            answer: Any = await self._next(subject)
            match answer:
                case Accepted():
                    self._owner, self._attempt = answer.owner, answer.attempt
                case Vectors():
                    self._take(answer)
                case Done() if len(self._vectors) == self._count:
                    vectors = [self._vectors[at] for at in range(self._count)]
                    return Embeddings(id=answer.id, vectors=vectors, usage=answer.usage)
                case Done():
                    # Some were lost on the way: ask for all of them again.
                    await self._resume(subject)
                case Error():
                    raise RequestError(answer.id, answer.code, answer.message, answer.retry_after)

    @property
    def _count(self) -> int:
        given = self._body.input if isinstance(self._body, Embed) else ""
        return len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1

    def _take(self, answer: Vectors) -> None:
        size = FLOAT_BYTES * answer.dimensions
        for at in range(len(answer.data) // size):
            self._vectors[answer.index + at] = unpack_floats(answer.data[at * size : (at + 1) * size])

    async def _resume(self, subject: str) -> None:
        """Ask whichever processor takes it, from the begin: a vector is the same wherever it is made."""
        self._owner = None
        self._body.resume = Resume(attempt=self._attempt, token_ids=[])
        await self._submit(subject)
