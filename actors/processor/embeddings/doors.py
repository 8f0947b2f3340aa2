"""The doors of an embedding model: kind `embed` on NATS, and POST /v1/embeddings in the form of OpenAI's API."""

import asyncio
import base64
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from aiohttp import web
from nats.aio.msg import Msg

from actors.processor import kinds
from actors.processor.door_http import HttpDoor, as_id, named
from actors.processor.door_nats import NatsDoor
from actors.processor.embeddings.request import Embedding
from actors.processor.embeddings.service import EmbedService
from actors.processor.post import Letter, Post
from actors.processor.refusal import RefusalError
from actors.processor.service import Owner
from messages import codec
from messages.bus import Bus
from messages.embed import FLOAT_BYTES, Embed, Vectors, unpack_floats
from messages.subjects import Subjects, last_token
from messages.submit import Accepted, Error

log = logging.getLogger("troupe.door")

LETTER_BYTES: Final = 262_144
"""Bytes of vectors in one message to a client, at most."""
WRITE_NUMBERS: Final = 8_192
"""Numbers that are written as JSON before others get a turn: about a millisecond."""


class EmbedClient:
    """Where one request's vectors go on NATS: a sink, and a mailbox."""

    def __init__(
        self, post: Post, reply: str, encode: Callable[[object], bytes], owner: str, letter_bytes: int
    ) -> None:
        self._post = post
        self._encode = encode
        self._owner = owner
        self._letter_bytes = letter_bytes
        self._request: Embedding | None = None
        self.reply = reply
        self.posted = False

    def accepted(self, request: Embedding) -> None:
        """Say that the request is ours."""
        answer = Accepted(id=request.id, attempt=request.attempt, owner=self._owner)
        self._post.send(self.reply, self._encode(answer))

    def ended(self, request: Embedding) -> None:
        """Send the vectors, if all are there, and the last word."""
        self._request = request
        self._post.collect(self)

    def letters(self) -> Iterator[Letter]:
        """Give the vectors in messages that NATS takes, then the last word."""
        request, self._request = self._request, None
        if request is None:
            return
        if not isinstance(request.last, Error):
            size = request.dimensions
            each = max(1, self._letter_bytes // (FLOAT_BYTES * size))
            for first in range(0, len(request.asked.inputs), each):
                data = request.vectors(first, each)
                vectors = Vectors(id=request.id, attempt=request.attempt, index=first, dimensions=size, data=data)
                yield self.reply, self._encode(vectors), "", None
        yield self.reply, self._encode(request.last), "", None

    def undeliverable(self, why: str) -> None:
        """Take note that NATS did not take an answer; the client asks again for what it misses."""
        log.warning("an answer to %s was not sent: %s", self.reply, why)


class EmbedNatsDoor(NatsDoor):
    """Takes requests from the queue group of the model's processors."""

    def __init__(self, bus: Bus, subjects: Subjects, service: EmbedService, incarnation: str, own: Owner) -> None:
        super().__init__(bus, subjects, service, incarnation, own)
        self._embeds = service
        # JSON makes four bytes of three.
        self._letter_bytes = min(LETTER_BYTES, bus.max_payload // 2)

    async def _take(self, msg: Msg) -> None:
        form = (msg.headers or {}).get("content-type", codec.JSON) if msg.headers else codec.JSON
        encode = codec.to_msgpack if form == codec.MSGPACK else codec.to_json
        client = EmbedClient(self._service.post, msg.reply, encode, self._incarnation, self._letter_bytes)
        body: Embed | None = None
        try:
            kinds.check_subject(self._service.model, kind := last_token(msg.subject))
            if kind != "embed":
                raise RefusalError(400, f"there is no kind of request {kind[:64]!r} here; there is embed")
            body = self._embeds.embed_intake.read(msg.data, form)
            if self._preparing.get(body.id) == msg.reply:
                return
            if (known := self._embeds.book(body)) is not None:
                self._again(known, client)
            else:
                self._own(partial(self._embed, body, client, len(msg.data)))
        except RefusalError as refusal:
            self._refuse(msg.reply, encode, body.id if body is not None else self._id_in(msg, form), refusal)
        except Exception:
            log.exception("a request could not be handled")
            failure = RefusalError(500, "the processor failed on this request")
            self._refuse(msg.reply, encode, body.id if body is not None else "", failure)

    def _again(self, known: Embedding, client: EmbedClient) -> None:
        """The same client asking again has not heard that it is accepted; any other has taken a used id."""
        if isinstance(known.sink, EmbedClient) and known.sink.reply == client.reply:
            known.sink.accepted(known)
            return
        raise RefusalError(409, f"request id {known.id} is under way here", param="id")

    async def _embed(self, body: Embed, client: EmbedClient, size: int) -> None:
        self._preparing[body.id] = client.reply
        try:
            with self._holding.hold(size):
                inputs = await self._embeds.inputs_of(body)
            self._embeds.embed(inputs, client)
        except RefusalError as refusal:
            self._refuse(client.reply, client._encode, body.id, refusal)
        except Exception:
            log.exception("a request could not be handled")
            failure = RefusalError(500, "the processor failed on this request")
            self._refuse(client.reply, client._encode, body.id, failure)
        finally:
            del self._preparing[body.id]
            self._embeds.unbook(body)


class Waiter:
    """A sink for the handler of a connection: it waits for the last word."""

    def __init__(self) -> None:
        self._done: asyncio.Future[Embedding] = asyncio.get_running_loop().create_future()

    def accepted(self, request: Embedding) -> None:
        """Nothing is said before the end."""

    def ended(self, request: Embedding) -> None:
        """Wake the handler."""
        if not self._done.done():
            self._done.set_result(request)

    async def wait(self) -> Embedding:
        """Wait for the last word."""
        return await self._done


class EmbedHttpDoor(HttpDoor):
    """One processor's HTTP server."""

    def __init__(self, service: EmbedService, host: str, port: int) -> None:
        super().__init__(service, host, port)
        self._embeds = service

    async def _embed(self, request: web.BaseRequest) -> web.StreamResponse:
        service = self._embeds
        name = named(request)
        sink = Waiter()
        with self._hold(request):
            body = service.embed_intake.read(await self._body(request), codec.JSON)
            if not body.model:
                raise RefusalError(400, f"model: missing; there is {service.model.name!r}", param="model")
            if name and not body.id:
                body.id = as_id(name)
            if (known := service.book(body)) is not None:
                raise RefusalError(409, f"request id {known.id} is under way here", param="id")
            try:
                embedding = service.embed(await service.inputs_of(body), sink)
            finally:
                service.unbook(body)
        try:
            await sink.wait()
        finally:
            service.cancel(embedding.id)
        headers = {"X-Request-Id": name or embedding.id}
        if isinstance(embedding.last, Error):
            return self._failed(embedding.last, headers)
        return await self._write_vectors(request, embedding, headers, as_base64=body.encoding_format == "base64")

    async def _write_vectors(
        self, request: web.BaseRequest, embedding: Embedding, headers: dict[str, str], *, as_base64: bool
    ) -> web.StreamResponse:
        """Write the answer: at once if it is small, else bit by bit, as the client reads."""
        count, size = len(embedding.asked.inputs), embedding.dimensions
        each = max(1, WRITE_NUMBERS // size)
        tail = codec.to_json({"model": self._service.model.name, "usage": usage(embedding)})[1:]
        if count <= each:
            entries = b",".join(_entries(embedding, 0, count, as_base64=as_base64))
            data = b'{"object":"list","data":[' + entries + b"]," + tail
            small = web.Response(body=data, content_type="application/json", headers=headers)
            await small.prepare(request)
            await self._patiently(request, small.write_eof())
            return small
        response = web.StreamResponse(headers=headers | {"Content-Type": "application/json"})
        await response.prepare(request)
        begin = b'{"object":"list","data":['
        for first in range(0, count, each):
            data = begin + b",".join(_entries(embedding, first, each, as_base64=as_base64))
            await self._write(request, response.write(data), len(data))
            begin = b","
            await asyncio.sleep(0)
        await self._patiently(request, response.write_eof(b"]," + tail))
        return response


def usage(embedding: Embedding) -> dict[str, int]:
    """Write the usage as OpenAI's API has it for embeddings."""
    done = embedding.last
    assert done is not None and not isinstance(done, Error)
    return {"prompt_tokens": done.usage.prompt_tokens, "total_tokens": done.usage.prompt_tokens}


def _entries(embedding: Embedding, first: int, count: int, *, as_base64: bool) -> Iterator[bytes]:
    """Write some of the vectors as JSON objects: their numbers, or base64 of them as packed floats."""
    size = FLOAT_BYTES * embedding.dimensions
    data = memoryview(embedding.vectors(first, count))
    for at in range(len(data) // size):
        packed = data[at * size : (at + 1) * size]
        vector: Any = base64.b64encode(packed).decode() if as_base64 else unpack_floats(packed).tolist()
        yield codec.to_json({"object": "embedding", "index": first + at, "embedding": vector})
