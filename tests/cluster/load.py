"""Clients that keep a cluster busy and write down all that they see: over NATS with the library, over HTTP by hand."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Self
from urllib.parse import urlsplit

from nats.aio.msg import Msg

from messages import codec
from messages.client import Client, RequestError
from messages.ids import new_request_id
from messages.subjects import last_token
from messages.submit import Answer, Delta, Done, Error
from supervisor.state import ClusterRecord
from tests.cluster.records import Door, Piece, Record, Whole

PAUSE = 0.1
LOOK = 0.02


class Witness(Client):
    """A client that also keeps, for each request, every last word that reaches its inbox, whatever it makes of it."""

    def __init__(self, record: ClusterRecord, *, wait: bool = True) -> None:
        super().__init__(record.nats, prefix=record.cluster, wait=wait)
        self.words: dict[str, list[str]] = {}

    async def _on_answer(self, msg: Msg) -> None:
        if msg.data:
            answer: Answer = codec.msgpack_decoder(Answer).decode(msg.data)
            if isinstance(answer, Done | Error):
                self.words.setdefault(last_token(msg.subject), []).append(
                    f"{type(answer).__name__} of attempt {answer.attempt}"
                )
        await super()._on_answer(msg)


class Load:
    """So many clients over NATS and over HTTP, each asking one thing after another until told to stop.

    `prompts` are asked in turn, `tokens` is how many each may have, `limit` the deadline of a request in seconds.
    """

    def __init__(
        self,
        cluster: ClusterRecord,
        prompts: list[str],
        *,
        tokens: int,
        nats: int,
        http: int,
        limit: float = 30.0,
    ) -> None:
        [(alias, self._model)] = cluster.models.items()
        self._http = cluster.http.get(alias, "")
        self._prompts = prompts
        self._tokens = tokens
        self._counts = {"nats": nats, "http": http}
        self.limit = limit
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 0
        self.client = Witness(cluster)
        self.records: list[Record] = []
        self.wholes: list[Whole] = []

    async def __aenter__(self) -> Self:
        """Connect; ask everything once while nothing is wrong, so that later answers can be compared."""
        await self.client.__aenter__()
        try:
            for asked in range(len(self._prompts)):
                record = self._record("nats", asked)
                await self._over_nats(record)
                assert record.outcome == "done", str(record)
                self.wholes.append(Whole(record.token_ids, record.text))
        except BaseException:
            await self.client.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, however it ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.__aexit__()

    def start(self) -> None:
        """Begin to ask."""
        for _ in range(self._counts["nats"]):
            self._tasks.append(asyncio.create_task(self._keep_asking_nats()))
        for _ in range(self._counts["http"]):
            self._tasks.append(asyncio.create_task(self._keep_asking_http()))

    async def stop(self, seconds: float) -> None:
        """Ask nothing more, and wait for the end of what is under way."""
        self._stopping = True
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._tasks)
        for record in self.records:
            if record.door == "nats":
                record.words = self.client.words.get(record.id.replace("-", ""), [])

    async def until(self, check: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `check()` holds for what the clients have seen."""
        try:
            async with asyncio.timeout(seconds):
                while not check():
                    for task in self._tasks:
                        if task.done() and not self._stopping:
                            task.result()
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            open_ones = "\n".join(str(record) for record in self.records if record.outcome == "open")
            raise AssertionError(f"not within {seconds:g} s: {what}; under way:\n{open_ones}") from None

    async def until_streaming(self, seconds: float = 30.0) -> None:
        """Wait until every client is in the middle of an answer that it began to get after this call."""
        begun, clients = time.monotonic(), sum(self._counts.values())

        def streaming() -> bool:
            newest = self.records[-2 * clients :]
            return 4 * sum(record.streaming and record.sent >= begun for record in newest) >= 3 * clients

        await self.until(streaming, seconds, "most clients in the middle of a new answer")

    async def until_answered(self, count: int, seconds: float = 30.0) -> None:
        """Wait for so many requests, sent from now on, to end well."""
        begun = time.monotonic()

        def answered() -> bool:
            return sum(record.sent >= begun and record.outcome == "done" for record in self.records) >= count

        await self.until(answered, seconds, f"{count} new requests answered")

    def _record(self, door: Door, asked: int) -> Record:
        record = Record(new_request_id(), door, asked, time.monotonic(), self.limit)
        self.records.append(record)
        return record

    def _turn(self) -> int:
        self._next += 1
        return self._next % len(self._prompts)

    async def _keep_asking_nats(self) -> None:
        while not self._stopping:
            await self._over_nats(self._record("nats", self._turn()))

    async def _keep_asking_http(self) -> None:
        while not self._stopping:
            record = self._record("http", self._turn())
            await self._over_http(record)
            if record.outcome != "done":
                await asyncio.sleep(PAUSE)

    async def _over_nats(self, record: Record) -> None:
        answers = self.client.completion(
            self._model,
            self._prompts[record.asked],
            id=record.id,
            max_tokens=self._tokens,
            temperature=0.0,
            timeout=self.limit,
        )
        try:
            async for answer in answers:
                if isinstance(answer, Delta):
                    now = time.monotonic()
                    record.pieces.append(Piece(now, answer.attempt, answer.position, answer.token_ids, answer.text))
                else:
                    record.told_tokens = answer.usage.completion_tokens
            record.end("done")
        except RequestError as error:
            record.retry_after = error.retry_after
            record.end("error", error.code, error.message)

    async def _over_http(self, record: Record) -> None:
        body = {
            "model": self._model,
            "prompt": self._prompts[record.asked],
            "max_tokens": self._tokens,
            "temperature": 0.0,
            "timeout": self.limit,
            "stream": True,
        }
        try:
            async with asyncio.timeout(self.limit + 10):
                await stream_over_http(self._http, body, record)
        except ConnectionRefusedError:
            record.end("refused")
        except (OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                record.end("error", 0, "hangs")
            else:
                record.end("closed", 0, type(error).__name__)
        else:
            record.end(record.outcome, record.code, record.message)


async def stream_over_http(base: str, body: dict[str, object], record: Record) -> None:
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
        assert headers["content-type"].startswith("text/event-stream")
        async for event in _events(reader):
            _take(event, record)
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
        return
    choice = said["choices"][0]
    if choice["text"]:
        record.pieces.append(Piece(time.monotonic(), -1, -1, [], choice["text"]))
    if choice["finish_reason"] is not None:
        record.words.append(choice["finish_reason"])
