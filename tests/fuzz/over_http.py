"""Nasty submits over HTTP: whole requests with nasty bodies, and bytes on sockets that are hardly HTTP at all."""

import asyncio
import json
import random
from typing import Final, NamedTuple

from tests.fuzz import bodies

SILENCE: Final = 20.0
PATIENCE: Final = 0.2
PATHS: Final = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
ODD_PATHS: Final = (
    "/", "//", "/v1/chat/completions/", "/v1/chat/completions?x=" + "y" * 3_000, "/v1/../v1/models", "/%00",
    "/%ff%fe", "*",
    "http://elsewhere/v1/models", "/v1/models", "/health/live", "/health/ready", "/v1/embeddings", "/\u00e9",
    "/" + "a" * 9_000,
)  # fmt: skip


class Submit(NamedTuple):
    """Bytes for one connection. `answers` is how many whole requests they hold, which are all answered in order;
    None for bytes that are no whole request: those are answered once, or the connection is closed.
    """

    parts: list[bytes]
    answers: int | None
    hang_up: bool = False
    unfinished: bool = False


def make(seed: int, number: int, shared: list[str]) -> Submit:
    """Make submit `number` of a seed; the same for ever."""
    chance = random.Random(f"http {seed} {number}")
    what = chance.random()
    if what < 0.80:
        return Submit([_whole(chance, shared)], 1)
    if what < 0.84:
        several = [_whole(chance, shared) for _ in range(chance.randint(2, 4))]
        return Submit([b"".join(several)], len(several))
    if what < 0.88:
        whole = _whole(chance, shared)
        cuts = sorted(chance.randrange(len(whole)) for _ in range(3))
        ends = [*cuts, len(whole)]
        return Submit([whole[at:to] for at, to in zip([0, *cuts], ends, strict=True)], 1)
    if what < 0.91:
        whole = _whole(chance, shared)
        return Submit([whole[: chance.randrange(1, len(whole))]], None, hang_up=True, unfinished=chance.random() < 0.8)
    return Submit([_nonsense(chance, shared)], None, hang_up=True)


def _body(chance: random.Random, kind: str, shared: list[str]) -> bytes:
    body = bodies.good(chance, kind) if chance.random() < 0.25 else bodies.bent(chance, kind, shared)
    if chance.random() < 0.4:
        body["stream"] = True
    return bodies.as_json(chance, body)


def _whole(chance: random.Random, shared: list[str]) -> bytes:
    """One whole request, whatever is in it."""
    kind = chance.choice(("chat", "completion"))
    data = _body(chance, kind, shared)
    path = PATHS[kind]
    head = [b"host: x"]
    if chance.random() < 0.1:
        head.append(chance.choice((b"x-request-id: \xe9\xff", b"x-request-id: " + b"a" * 3_000, b"accept: */*;q=x")))
    if chance.random() < 0.1:
        head.append(b"content-type: " + chance.choice((b"text/html", b"", b"application/json; charset=utf-7", b"\xff")))
    if chance.random() < 0.05:
        head.append(b"x-request-id: " + bodies.new_id(chance).encode())
    if chance.random() < 0.3:
        pieces, at = [], 0
        while at < len(data):
            size = chance.randint(1, max(1, len(data) // 2))
            pieces.append(b"%x\r\n%s\r\n" % (len(data[at : at + size]), data[at : at + size]))
            at += size
        head.append(b"transfer-encoding: chunked")
        return _join(b"POST", path.encode(), head, b"".join(pieces) + b"0\r\n\r\n")
    head.append(b"content-length: %d" % len(data))
    return _join(b"POST", path.encode(), head, data)


def _join(method: bytes, path: bytes, head: list[bytes], data: bytes) -> bytes:
    return b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, path, b"\r\n".join(head), data)


def _nonsense(chance: random.Random, shared: list[str]) -> bytes:
    data = _body(chance, "chat", shared)
    path = b"/v1/chat/completions"
    size = b"content-length: %d" % len(data)
    what = chance.randrange(14)
    if what == 0:
        return chance.randbytes(chance.randint(1, 300))
    if what == 1:
        wrong = chance.choice(
            (b"-1", b"1e3", b"", b"99999999999999999999999", b"0x10", b"%d" % (len(data) + 9), b"1, 2", b"+5")
        )
        return _join(b"POST", path, [b"host: x", b"content-length: " + wrong], data)
    if what == 2:
        return _join(b"POST", path, [b"host: x", size, b"content-length: 3"], data)
    if what == 3:
        return _join(b"POST", path, [b"host: x", size, b"transfer-encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n")
    if what == 4:
        chunks = (
            b"zz\r\nhello\r\n",
            b"5\r\nhel",
            b"-5\r\nhello\r\n",
            b"fffffffffffffffff\r\n",
            b"5;x=" + b"y" * 9_000 + b"\r\n",
        )
        return _join(b"POST", path, [b"host: x", b"transfer-encoding: chunked"], chance.choice(chunks))
    if what == 5:
        return _join(b"POST", path, [b"host: x", b"transfer-encoding: gzip, chunked"], data)
    if what == 6:
        return _join(
            b"POST",
            path,
            [b"host: x", size, b"content-encoding: " + chance.choice((b"gzip", b"deflate", b"br", b"x"))],
            data,
        )
    if what == 7:
        return _join(b"POST", path, [b"h%d: %s" % (at, b"v" * 200) for at in range(chance.choice((50, 300)))], data)
    if what == 8:
        return _join(b"POST", path, [b"no colon", b" folded", b"\xff\xfe: x", b": y"][: chance.randint(1, 4)], data)
    if what == 9:
        methods = (
            b"GET",
            b"PUT",
            b"HEAD",
            b"OPTIONS",
            b"CONNECT",
            b"TRACE",
            b"BREW",
            b"",
            b"post",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        )
        return _join(chance.choice(methods), path, [b"host: x", size], data)
    if what == 10:
        return _join(b"POST", chance.choice(ODD_PATHS).encode(), [b"host: x", size], data)
    if what == 11:
        version = chance.choice((b"HTTP/1.0", b"HTTP/9.9", b"HTTP/1.1 ", b"ICY", b"HTTP/0.9"))
        return b"POST %s %s\r\nhost: x\r\n%s\r\n\r\n%s" % (path, version, size, data)
    if what == 12:
        return _join(b"POST", path, [b"host: x", size, b"expect: " + chance.choice((b"100-continue", b"x"))], data)
    return _join(
        b"GET", path, [b"host: x", b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-version: 13"], b""
    )


class Tally:
    """What came of it: answers by status, connections that the server closed or the client left, what was wrong."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.closed = 0
        self.left = 0
        self.wrong: list[str] = []


class Line:
    """One client's connection, made anew when it is closed."""

    def __init__(self, address: str, tally: Tally) -> None:
        host, _, port = address.removeprefix("http://").rpartition(":")
        self._where = host, int(port)
        self._tally = tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def send(self, name: str, submit: Submit) -> None:
        """Send one, and wait for what comes of it."""
        try:
            async with asyncio.timeout(SILENCE):
                await self._send(name, submit)
        except TimeoutError:
            self._tally.wrong.append(f"{name}: neither answered nor closed within {SILENCE:g} s")
            await self.close()

    async def _send(self, name: str, submit: Submit) -> None:
        if submit.hang_up:
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._where, limit=1 << 24)
        reader, writer = self._streams
        got = 0
        if submit.hang_up and submit.unfinished:
            writer.write(submit.parts[0])
            self._tally.left += 1
            await self.close()
            return
        try:
            for part in submit.parts:
                writer.write(part)
                if len(submit.parts) > 1:
                    await writer.drain()
                    await asyncio.sleep(0)
            while submit.answers is None or got < submit.answers:
                # What is no whole request may be one that is not finished yet, for all that the server knows.
                async with asyncio.timeout(SILENCE if submit.answers is not None else PATIENCE):
                    status, last = await _response(reader)
                if status == 100:
                    continue
                got += 1
                self._tally.statuses[status] = self._tally.statuses.get(status, 0) + 1
                if last:
                    await self.close()
                    break
        except TimeoutError:
            if submit.answers is not None:
                raise
            self._tally.left += not got
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.close()
            if submit.answers is None:
                self._tally.closed += not got
            elif not got:
                self._tally.wrong.append(f"{name}: closed without an answer")
        if submit.hang_up:
            await self.close()


async def _response(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one response; return its status, and whether the server closes after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        return status, False
    if b"\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    elif (at := head.find(b"\r\ncontent-length: ")) >= 0:
        await reader.readexactly(int(head[at + 18 :].split(b"\r\n", 1)[0]))
    else:
        # To a client of HTTP/1.0 or older a stream has no other end than the connection's.
        assert not head.startswith(b"http/1.1"), f"an answer of no length: {head!r}"
        await reader.read()
        return status, True
    return status, b"\r\nconnection: close" in head


def shown(submit: Submit) -> str:
    """A submit as a person can read it."""
    return json.dumps([part.decode("latin-1") for part in submit.parts])
