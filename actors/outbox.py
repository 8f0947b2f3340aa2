"""Tokens on their way to the processors: one frame for each turn of the loop and processor, kept until acknowledged.

What the engine's streams emit is appended to a buffer; one flush a turn sends it. Frames that a processor has not
acknowledged are kept, within a bound, and sent again when it says hello or when we come back to the bus. A processor
that is subscribed no longer, or acknowledges nothing for too long, is gone: the owner is told, and aborts what it does
for it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus, BusError
from messages.frames import Finish, Frame, Hello, Item, Receipt, Said
from messages.subjects import Subjects, last_token

log = logging.getLogger("troupe.outbox")

KEPT_FRAMES: Final = 8_192
KEPT_BYTES: Final = 64 << 20
FRAME_ITEMS: Final = 4_096
ITEM_BYTES: Final = 64
RESEND_SECONDS: Final = 1.0
ABSENT_SECONDS: Final = 5.0
KNOWN_LINKS: Final = 1_024


class Link:
    """The way to one processor incarnation: its numbers, and the frames that it has not acknowledged."""

    __slots__ = ("absent", "acked", "gone", "heard", "items", "kept", "kept_bytes", "large", "reply", "seq", "subject")

    def __init__(self, subject: str, reply: str, now: float) -> None:
        self.subject = subject
        self.reply = reply
        self.absent: float | None = None
        self.gone = False
        self.large = False
        self.seq = 0
        self.acked = 0
        self.heard = now
        self.items: list[Item] = []
        self.kept: deque[tuple[int, bytes]] = deque()
        self.kept_bytes = 0

    def frame(self, sender: str, items: list[Item]) -> bytes:
        """Number and keep the next frame."""
        self.seq += 1
        base = self.kept[0][0] if self.kept else self.seq
        data = codec.to_msgpack(Frame(sender, self.seq, base, items))
        self.kept.append((self.seq, data))
        self.kept_bytes += len(data)
        return data

    def forget(self, seq: int) -> None:
        """Let go of everything up to `seq`."""
        while self.kept and self.kept[0][0] <= seq:
            self.kept_bytes -= len(self.kept.popleft()[1])

    @property
    def full(self) -> bool:
        """Whether more is unacknowledged than we may keep."""
        return len(self.kept) > KEPT_FRAMES or self.kept_bytes > KEPT_BYTES


class Outbox:
    """All the frames of one GPU actor.

    `on_gone` is called with the processor's incarnation when, while the bus was well, it has not acknowledged for
    `grace` seconds or has not been subscribed for five, or when more is unacknowledged than may be kept. A frame holds
    at most `frame_bytes` of what was added, or one item: for items so large that NATS would not take many of them.
    """

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        sender: str,
        *,
        grace: float,
        on_gone: Callable[[str], None],
        frame_bytes: int | None = None,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._sender = sender
        self._grace = grace
        self._on_gone = on_gone
        self._frame_bytes = frame_bytes
        self._links: dict[str, Link] = {}
        self._replies: dict[str, Link] = {}
        self._inbox = bus.inbox()
        self._dirty: set[str] = set()
        self._again: deque[tuple[Link, bytes]] = deque(maxlen=2 * KEPT_FRAMES)
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.frames_sent = 0
        self.frames_resent = 0

    async def open(self) -> None:
        """Listen for acknowledgements."""
        await self._bus.subscribe(self._subjects.ack(self._sender), self._on_receipt)
        await self._bus.subscribe(f"{self._inbox}.*", self._on_absence)
        self._bus.on_back(self._on_back)

    def add(
        self,
        processor: str,
        request: str,
        attempt: int,
        position: int,
        tokens: bytes,
        finish: Finish | None,
        logprobs: bytes | None = None,
        said: Said | None = None,
    ) -> None:
        """Append to the processor's next frame, which goes out at the end of this turn of the loop."""
        link = self._links.get(processor)
        if link is None:
            link = self._links[processor] = self._new_link(processor)
        if logprobs is not None:
            link.large = True
        if not link.items:
            self._dirty.add(processor)
            self._empty.clear()
            self._wake.set()
        link.items.append(Item(request, attempt, position, tokens, finish, logprobs, said))

    def _new_link(self, processor: str) -> Link:
        """Make a link; of those to processors that are gone only so many are remembered."""
        gone = [name for name, link in self._links.items() if link.gone]
        for name in gone[: max(0, len(gone) - KNOWN_LINKS)]:
            del self._replies[last_token(self._links.pop(name).reply)]
        reply = f"{self._inbox}.{processor}"
        link = self._replies[processor] = Link(self._subjects.out(processor), reply, time.monotonic())
        return link

    async def run(self) -> None:
        """Send what has been added, for ever; the owner's task group runs it."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._again:
                link, data = self._again.popleft()
                await self._send(link.subject, data, link.reply)
            dirty, self._dirty = self._dirty, set()
            for processor in dirty:
                await self._flush(processor, self._links[processor])

    async def _flush(self, processor: str, link: Link) -> None:
        if not link.kept:
            link.heard = time.monotonic()
        while link.items:
            most = self._frame_bytes or (self._bus.max_payload // 2 if link.large else None)
            count = FRAME_ITEMS if most is None else _fitting(link.items, most)
            batch, link.items = link.items[:count], link.items[count:]
            data = link.frame(self._sender, batch)
            if link.full:
                self._lose(processor, link, "more is unacknowledged than can be kept")
                return
            await self._send(link.subject, data)

    async def _send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Publish; what the bus cannot take now is kept anyway and sent again when it is back."""
        try:
            await self._bus.publish(subject, data, reply=reply)
            self.frames_sent += 1
        except BusError as error:
            log.debug("frame not sent now: %s", error)

    async def drained(self) -> None:
        """Wait until everything has been acknowledged; the caller has the deadline."""
        await self._empty.wait()

    def look_after(self) -> None:
        """Twice a second: send the oldest unacknowledged frame again after a silence, give up on who stays silent."""
        now = time.monotonic()
        for processor, link in self._links.items():
            if not link.kept:
                continue
            if not self._bus.connected:
                link.heard, link.absent = now, None
            elif (silent := now - link.heard) > self._grace:
                self._lose(processor, link, f"no acknowledgement for {silent:.1f} s")
            elif link.absent is not None and now - link.absent > ABSENT_SECONDS:
                self._lose(processor, link, f"not subscribed for {now - link.absent:.1f} s")
            elif silent > RESEND_SECONDS:
                self._resend(link, after=link.acked, limit=1)

    def _lose(self, processor: str, link: Link, why: str) -> None:
        log.warning("%s is gone: %s", processor, why)
        link.forget(link.seq)
        link.items.clear()
        link.gone = True
        self._note_empty()
        self._on_gone(processor)

    def _note_empty(self) -> None:
        if not any(link.kept or link.items for link in self._links.values()):
            self._empty.set()

    async def _on_receipt(self, msg: Msg) -> None:
        try:
            receipt: Receipt = codec.msgpack_decoder(Receipt).decode(msg.data)
        except msgspec.DecodeError as error:
            log.warning("not an acknowledgement: %s", error)
            return
        link = self._links.get(receipt.receiver)
        if link is None:
            return
        link.heard, link.absent, link.gone = time.monotonic(), None, False
        link.acked = max(link.acked, receipt.seq)
        link.forget(receipt.seq)
        self._note_empty()
        if isinstance(receipt, Hello):
            self._resend(link, receipt.seq)

    async def _on_absence(self, msg: Msg) -> None:
        """A frame sent again brought "no responders": nobody is subscribed there at this moment."""
        link = self._replies.get(last_token(msg.subject))
        if link is not None and not msg.data and link.absent is None:
            link.absent = time.monotonic()

    def _on_back(self) -> None:
        for link in self._links.values():
            link.heard = time.monotonic()
            self._resend(link, link.acked)

    def _resend(self, link: Link, after: int, limit: int = KEPT_FRAMES) -> None:
        again = [data for seq, data in link.kept if seq > after][:limit]
        self.frames_resent += len(again)
        self._again.extend((link, data) for data in again)
        self._wake.set()


def _fitting(items: list[Item], most: int) -> int:
    """Count the items, one at least, that together take no more than so many bytes."""
    size = 0
    for count, item in enumerate(items):
        size += len(item.tokens) + len(item.logprobs or b"") + ITEM_BYTES
        if size > most and count:
            return count
    return len(items)
