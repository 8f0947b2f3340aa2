"""Nasty submits over NATS: made of a seed and a number, sent by a connection of our own that minds nothing."""

import asyncio
import json
import random
import re
import time
from typing import Final, NamedTuple

import msgspec

from messages import codec
from messages.submit import Accepted, Answer, Delta
from tests.fuzz import bodies

IN_FLIGHT: Final = 256
SILENCE: Final = 20.0
_PLAIN: Final = re.compile(r"[!-~]{1,200}")
"""What can stand in a line of NATS' protocol: with anything else the server would hang up on us."""
_MSG: Final = re.compile(rb"(H?)MSG (\S+) \S+ (?:(\S+) )?(?:(\d+) )?(\d+)\r\n")

REPLIES: Final = (
    "*", ">", "_INBOX.*", "_INBOX.>", "a..b", ".", "troupe.v1.submit.demo.chat",
    "troupe.v1.out.demo-processor-0-g1",
    "troupe.v1.work.demo.decode", "troupe.v1.hb.decode.demo-decode-0", "troupe.v1.own.x", "troupe.v1.cancel.x",
    "troupe.v1.ctl.demo-decode-0.drain", "troupe.v1.ctl.demo-processor-0.drain", "troupe.v1.sup.drain",
    "troupe.v1.ack.demo-decode-0-g1", "troupe.v1.evt.actor.demo-decode-0", "$KV.troupe_registry.decode.demo-decode-0",
    "$KV.troupe_gate.demo", "$JS.API.STREAM.DELETE.KV_troupe_registry", "$SYS.REQ.SERVER.PING", "$SRV.PING",
    "r" * 3_000,
    "\x01\x7f",
)  # fmt: skip
"""Where no answer can or may go: what is sent with one of these is counted, and disturbs nobody."""


_ODD_AND_YET: Final = (b"0" * 32, b"0" * 8 + b"-0000", b"F" * 8, b"1" * 32, "\u0661".encode(), b"u0661")


class Submit(NamedTuple):
    """One submit: what is published, and what may be expected of it.

    `reply` is None for one that is to be answered in the inbox, else it is what stands there. `shared` says that
    others use its id, so that it may lose the request to them.
    """

    subject: str
    reply: str | None
    headers: bytes
    payload: bytes
    shared: bool
    cancels: str = ""


def make(seed: int, number: int, shared: list[str]) -> Submit:
    """Make submit `number` of a seed; the same for ever."""
    chance = random.Random(f"nats {seed} {number}")
    kind = chance.choice(("chat", "completion", "generate"))
    body = bodies.good(chance, kind) if chance.random() < 0.25 else bodies.bent(chance, kind, shared)
    form = chance.choice(("json", "json", "msgpack"))
    payload = bodies.as_json(chance, body) if form == "json" else bodies.as_msgpack(chance, body)
    headers = _headers(chance, codec.MSGPACK if form == "msgpack" else codec.JSON)
    subject = f"troupe.v1.submit.demo.{kind}"
    if chance.random() < 0.03:
        subject = "troupe.v1.submit.demo." + chance.choice(("embed", "x", "chat-", "CHAT", "\u00e9", "c" * 500))
    reply = None if chance.random() < 0.96 else chance.choice(("", *REPLIES))
    cancels = ""
    if chance.random() < 0.05:
        own = body.get("id")
        cancels = str(chance.choice((own, *shared))) if chance.random() < 0.8 else chance.choice(("x", "*", "a-b"))
    if not _PLAIN.fullmatch(cancels):
        cancels = ""
    return Submit(subject, reply, headers, payload, _is_shared(payload, shared), cancels)


def _is_shared(payload: bytes, shared: list[str]) -> bool:
    """Whether the payload may have an id that other submits have too: of the pool, or odd and yet a UUID."""
    return any(id.encode() in payload for id in shared) or any(part in payload for part in _ODD_AND_YET)


def _headers(chance: random.Random, form: str) -> bytes:
    plain = f"content-type: {form}\r\n".encode()
    if chance.random() < 0.8:
        return plain
    return chance.choice(
        (
            b"",
            b"content-type: text/html\r\n",
            b"Content-Type: application/json\r\n",
            b"content-type:\r\n",
            b"content-type: application/json; charset=latin-1\r\n",
            plain + plain,
            plain + b"x: " + b"y" * 5_000 + b"\r\n",
            plain + b"Status: 503\r\n",
            plain + b"Nats-Service-Error-Code: abc\r\n",
            plain + b"no colon here\r\n",
            plain + b": empty\r\n",
            plain + b"k\xff\xfe: v\xff\r\n",
            plain + b" folded\r\n",
            b"\0: \0\r\n" + plain,
            b"\r\n" + plain,
        )
    )


class Wire:
    """A connection to NATS that says whatever it is told to, and keeps account of the answers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inbox = f"_INBOX.fuzz{seed}"
        self.open: dict[int, float] = {}
        self.lasts: dict[int, int] = {}
        self.wrong: list[str] = []
        self.codes: dict[int, int] = {}
        self.answered = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._room = asyncio.Event()
        self._reading: asyncio.Task[None]

    async def connect(self, url: str) -> None:
        host, _, port = url.removeprefix("nats://").rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
        await self._reader.readline()
        options = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "lang": "fuzz",
            "protocol": 1,
        }
        self._writer.write(b"CONNECT " + json.dumps(options).encode() + f"\r\nSUB {self.inbox}.* 1\r\n".encode())
        self._reading = asyncio.ensure_future(self._read())

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.close()
        await self._writer.wait_closed()

    async def send(self, number: int, submit: Submit) -> None:
        """Send one, when there is room."""
        while len(self.open) >= IN_FLIGHT:
            self._room.clear()
            try:
                async with asyncio.timeout(SILENCE):
                    await self._room.wait()
            except TimeoutError:
                oldest = sorted(self.open)[:20]
                raise AssertionError(
                    f"seed {self.seed}: no answer for {SILENCE:g} s to {oldest}; {self.wrong}"
                ) from None
        reply = f"{self.inbox}.{number}" if submit.reply is None else submit.reply
        if submit.reply is None:
            self.open[number] = time.monotonic()
        head = b"NATS/1.0\r\n" + submit.headers + b"\r\n"
        size = len(head) + len(submit.payload)
        self._writer.write(
            b"HPUB %s %s%d %d\r\n" % (submit.subject.encode(), reply.encode() + b" " if reply else b"", len(head), size)
        )
        self._writer.write(head + submit.payload + b"\r\n")
        if submit.cancels:
            self._writer.write(f"PUB troupe.v1.cancel.{submit.cancels} 0\r\n\r\n".encode())
        if number % 64 == 0:
            await self._writer.drain()

    async def settle(self, may_stay: "set[int]") -> None:
        """Wait until all have been answered but those whose request somebody else may have taken."""
        deadline = time.monotonic() + SILENCE
        while set(self.open) - may_stay:
            if time.monotonic() > deadline:
                lost = sorted(set(self.open) - may_stay)
                raise AssertionError(f"seed {self.seed}: never answered: {lost[:20]} ({len(lost)} of them)")
            await asyncio.sleep(0.01)

    def drop(self, numbers: "set[int]") -> None:
        """Wait no longer for those that somebody else may have taken, when they have had their time."""
        now = time.monotonic()
        for number in [number for number, since in self.open.items() if number in numbers and now - since > 3]:
            del self.open[number]
            self._room.set()

    async def _read(self) -> None:
        while True:
            line = await self._reader.readline()
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            elif found := _MSG.fullmatch(line):
                payload = (await self._reader.readexactly(int(found[5]) + 2))[int(found[4] or 0) : -2]
                self._take(int(found[2].rpartition(b".")[2]), payload)
            elif line.startswith(b"-ERR"):
                self.wrong.append(f"NATS says {line!r}")
            elif not line:
                self.wrong.append("NATS has closed the connection")
                return

    def _take(self, number: int, payload: bytes) -> None:
        if not payload:
            self.wrong.append(f"submit {number}: nobody there")
            return
        decoder = codec.json_decoder if payload[:1] == b"{" else codec.msgpack_decoder
        try:
            answer = decoder(Answer).decode(payload)
        except msgspec.DecodeError as error:
            self.wrong.append(f"submit {number}: {error}: {payload[:200]!r}")
            return
        if isinstance(answer, Accepted | Delta):
            return
        self.lasts[number] = self.lasts.get(number, 0) + 1
        if self.lasts[number] > 1:
            self.wrong.append(
                f"submit {number} of seed {self.seed}: {self.lasts[number]} last words: {payload[:200]!r}"
            )
        code = getattr(answer, "code", 200)
        self.codes[code] = self.codes.get(code, 0) + 1
        self.answered += 1
        self.open.pop(number, None)
        if len(self.lasts) > 4 * IN_FLIGHT:
            for old in list(self.lasts)[: 2 * IN_FLIGHT]:
                del self.lasts[old]
        self._room.set()
