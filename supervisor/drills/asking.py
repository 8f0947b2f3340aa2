"""How a drill's client asks, over NATS with the library and over HTTP by hand, and writes down all that it sees."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from nats.aio.msg import Msg

from messages import codec
from messages.client import Client, RequestError
from messages.config import Nats
from messages.subjects import last_token
from messages.submit import Accepted, Answer, Delta, Done, Error
from supervisor.drills.records import Piece, Record, Taken

PAUSE: Final = 0.1
HANGS: Final = 10.0
"""Seconds beyond its deadline after which an HTTP stream is given up."""


class Witness(Client):
    """A client that also keeps, for each request, who took it and every last word, whatever it makes of them."""

    def __init__(self, nats: Nats, *, prefix: str, wait: bool = True) -> None:
        super().__init__(nats, prefix=prefix, wait=wait)
        self._words: dict[str, list[str]] = {}
        self._taken: dict[str, list[Taken]] = {}

    def fill(self, record: Record) -> None:
        """Write into a record what came on the wire for it, until now."""
        token = record.id.replace("-", "")
        record.words = self._words.get(token, [])
        record.taken = self._taken.get(token, [])

    async def _on_answer(self, msg: Msg) -> None:
        if msg.data:
            answer: Answer = codec.msgpack_decoder(Answer).decode(msg.data)
            token = last_token(msg.subject)
            if isinstance(answer, Done | Error):
                word = f"{type(answer).__name__} of attempt {answer.attempt}"
                self._words.setdefault(token, []).append(word)
            elif isinstance(answer, Accepted):
                self._taken.setdefault(token, []).append(Taken(time.monotonic(), answer.attempt, answer.owner))
        await super()._on_answer(msg)


class Asker:
    """Asks one model for greedy completions of so many tokens. `on_piece` hears of each delta that is noted.

    With `patient`, an HTTP client that is refused a connection, or told by a 503 to come again, does so within the
    request's deadline, as any client of OpenAI's API does: it was not taken, so nothing was lost.
    """

    def __init__(
        self,
        model: str,
        prompts: list[str],
        *,
        tokens: int,
        http: str,
        client: Client | None,
        patient: bool = False,
        more: dict[str, Any] | None = None,
        on_piece: Callable[[Record], None] | None = None,
    ) -> None:
        self._prompts = prompts
        self._client = client
        self._http = http
        self._patient = patient
        self._on_piece = on_piece
        self._fields: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0.0} | (more or {})

    async def over_nats(self, record: Record) -> None:
        """Ask over NATS, and write down in `record` all that comes."""
        assert self._client is not None
        fields = self._fields | {"prompt": self._prompts[record.asked], "id": record.id, "timeout": record.limit}
        try:
            async for answer in self._client.completion(**fields):
                if isinstance(answer, Delta):
                    now = time.monotonic()
                    record.pieces.append(Piece(now, answer.attempt, answer.position, answer.token_ids, answer.text))
                    self._told(record)
                else:
                    record.told_tokens = answer.usage.completion_tokens
            record.end("done")
        except RequestError as error:
            record.retry_after = error.retry_after
            record.end("error", error.code, error.message)

    async def over_http(self, record: Record) -> None:
        """Ask over HTTP, and write down in `record` all that comes."""
        body = self._fields | {"prompt": self._prompts[record.asked], "timeout": record.limit, "stream": True}
        while True:
            await self._once_over_http(record, body)
            again = record.outcome == "refused" or (record.outcome == "error" and record.code == 503)
            pause = min(record.retry_after or PAUSE, 1.0)
            if not (self._patient and again and time.monotonic() + pause < record.sent + record.limit):
                return
            record.retried += 1
            record.words.clear()
            record.outcome, record.code, record.message = "open", 0, ""
            await asyncio.sleep(pause)

    async def _once_over_http(self, record: Record, body: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(record.sent + record.limit + HANGS - time.monotonic()):
                await stream_over_http(self._http, body, record, self._told)
        except ConnectionRefusedError:
            record.end("refused")
        except (OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                record.end("error", 0, "hangs")
            else:
                record.end("closed", 0, type(error).__name__)
        else:
            record.end(record.outcome, record.code, record.message)

    def _told(self, record: Record) -> None:
        if self._on_piece is not None:
            self._on_piece(record)


async def stream_over_http(
    base: str, body: dict[str, Any], record: Record, told: Callable[[Record], None] | None = None
) -> None:
    """Ask for a stream over one new connection, and write down in `record` all that comes.

    Raises OSError or asyncio.IncompleteReadError where the connection ends before the answer does.
    """
    address = urlsplit(base)
    assert address.hostname is not None
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        head += f"X-Request-Id: {record.id}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        status, headers = await _head(reader)
        if status != 200:
            error = json.loads(await reader.readexactly(int(headers["content-length"])))["error"]
            record.words.append("error")
            record.outcome, record.code, record.message = "error", status, error["message"]
            record.retry_after = float(headers["retry-after"]) if "retry-after" in headers else None
            return
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise ConnectionError(f"an answer of type {headers.get('content-type')!r} where a stream was asked for")
        async for event in _events(reader):
            _take(event, record)
            if told is not None:
                told(record)
        if record.outcome == "open":
            raise asyncio.IncompleteReadError(b"", None)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.strip().lower(): value.strip() for name, value in pairs}


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Read a chunked body as server-sent events, to its proper end."""
    buffer = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        buffer += await reader.readexactly(size)
        await reader.readexactly(2)
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            yield event.removeprefix(b"data: ")
    await reader.readexactly(2)


def _take(event: bytes, record: Record) -> None:
    if event == b"[DONE]":
        record.outcome = "done" if record.outcome == "open" else record.outcome
        return
    said = json.loads(event)
    if "error" in said:
        record.words.append("error")
        record.outcome, record.message = "error", said["error"]["message"]
        record.code = int(said["error"].get("code") or 0) if str(said["error"].get("code") or 0).isdigit() else 0
        return
    choice = said["choices"][0]
    if choice["text"]:
        record.pieces.append(Piece(time.monotonic(), -1, -1, [], choice["text"]))
    if choice["finish_reason"] is not None:
        record.words.append(choice["finish_reason"])
