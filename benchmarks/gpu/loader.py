"""A process that makes load: over NATS with Troupe's client, or over HTTP, at Troupe's door or SGLang's own.

    python -m benchmarks.gpu.loader nats|completions|generate URL MODEL

The clients over HTTP do the least that tells tokens and times: keep-alive connections with TCP_NODELAY, events read
as they come. SGLang's `/generate` takes and gives token ids, Troupe's door takes token ids and gives text.
"""

import asyncio
import socket
import sys
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.gpu.jobs import Job, Seen, Watch, load, obey, obey_by
from messages.client import Client
from messages.submit import Delta


class Ids(msgspec.Struct):
    """Of an event of SGLang's `/generate`, what counts."""

    output_ids: list[int]


class Usage(msgspec.Struct):
    """Of the last event of a completion, what counts."""

    completion_tokens: int


class Piece(msgspec.Struct):
    """Of an event of a completion, what counts: it has choices, or the usage."""

    choices: list[Any]
    usage: Usage | None = None


class Http(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, host: str, port: int, kind: str, model: str) -> None:
        self.host, self.port, self.kind, self.model = host, port, kind, model
        self.ids = msgspec.json.Decoder(Ids)
        self.pieces = msgspec.json.Decoder(Piece)
        self.rest = b""
        self.begun = self.ended = False
        self.watch = Watch()
        self.done: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Read the events that are whole."""
        self.rest += data
        if not self.begun and len(self.rest) > 12:
            if not self.rest.startswith(b"HTTP/1.1 200"):
                self._fail(RuntimeError(self.rest[:1_000].decode(errors="replace")))
                return
            self.begun = True
        *events, self.rest = self.rest.split(b"\n\n")
        for event in events:
            payload = event[event.index(b"data: ") + 6 :]
            if payload == b"[DONE]":
                self.ended = True
            elif self.kind == "generate":
                self.watch.piece(len(self.ids.decode(payload).output_ids))
            else:
                self._completion(self.pieces.decode(payload))
        if self.ended and self.rest.endswith(b"0\r\n\r\n") and self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _completion(self, piece: Piece) -> None:
        if piece.choices:
            self.watch.piece(0)
        if piece.usage is not None:
            self.watch.tokens = piece.usage.completion_tokens

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        self._fail(exc or ConnectionError("closed midway"))

    def _fail(self, error: Exception) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)

    async def ask(self, prompt: list[int], tokens: int) -> Seen:
        """Have one prompt continued."""
        self.watch = Watch()
        self.rest, self.begun, self.ended = b"", False, False
        self.done = asyncio.get_running_loop().create_future()
        if self.kind == "generate":
            sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
            path, body = "/generate", {"input_ids": prompt, "stream": True, "sampling_params": sampling}
        else:
            path, body = "/v1/completions", {"model": self.model, "prompt": prompt, "stream": True}
            body |= {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            body["stream_options"] = {"include_usage": True}
        data = msgspec.json.encode(body)
        head = f"POST {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
        request = head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data
        self.transport.write(request)
        await self.done
        return self.watch.seen()


async def over_http(kind: str, url: str, model: str) -> None:
    """Obey with HTTP connections, kept from job to job."""
    found = urlsplit(url)
    host, port = str(found.hostname), int(found.port or 80)
    loop = asyncio.get_running_loop()

    async def do(job: Job) -> list[Seen]:
        made = [
            (await loop.create_connection(lambda: Http(host, port, kind, model), host, port))[1]
            for _ in range(job.streams)
        ]
        try:
            return await load(job, [connection.ask for connection in made])
        finally:
            for connection in made:
                connection.done = None
                connection.transport.close()

    await obey(do)


async def over_nats(url: str, model: str) -> None:
    """Obey with one client of Troupe's."""
    async with Client(url) as client:

        async def ask(prompt: list[int], tokens: int) -> Seen:
            watch = Watch()
            async for event in client.generate(model, prompt, max_tokens=tokens, temperature=0, ignore_eos=True):
                if isinstance(event, Delta):
                    watch.piece(len(event.token_ids))
            return watch.seen()

        await obey_by(ask)


def main() -> None:
    """Obey until the input ends."""
    kind, url, model = sys.argv[1:]
    uvloop.run(over_nats(url, model) if kind == "nats" else over_http(kind, url, model))


if __name__ == "__main__":
    main()
