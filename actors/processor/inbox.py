"""Frames on their way in: each taken once and in order, acknowledged in bulk, asked for again where one is missing."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from actors.processor.post import Post
from messages import codec
from messages.bus import Bus
from messages.frames import Ack, Frame, Hello, Item
from messages.subjects import Subjects

log = logging.getLogger("troupe.inbox")

ACK_FRAMES: Final = 64
ACK_SECONDS: Final = 0.1
HELLO_SECONDS: Final = 0.1


class Sender:
    """What came from one GPU actor's incarnation: the last number taken in, the last acknowledged, the highest seen."""

    __slots__ = ("acked", "last", "seen", "subject", "told_at")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.last = 0
        self.acked = 0
        self.seen = 0
        self.told_at = float("-inf")


class Inbox:
    """All frames for one processor incarnation; `deliver` gets each frame's items with its sender's incarnation.

    `taken` counts the frames that were taken in, `gaps` those that were missed, `repeats` those that came twice.
    """

    def __init__(
        self, bus: Bus, post: Post, subjects: Subjects, incarnation: str, deliver: Callable[[str, list[Item]], None]
    ) -> None:
        self._bus = bus
        self._post = post
        self._subjects = subjects
        self._incarnation = incarnation
        self._deliver = deliver
        self._decode = codec.msgpack_decoder(Frame).decode
        self._senders: dict[str, Sender] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.taken = 0
        self.gaps = 0
        self.repeats = 0

    async def open(self) -> None:
        """Listen for frames."""
        await self._bus.take_at_once(self._subjects.out(self._incarnation), self._on_frame)
        self._bus.on_back(self._greet)

    def forget(self, sender: str) -> None:
        """Let go of a sender that is no more."""
        self._senders.pop(sender, None)

    def frames(self, sender: str) -> int:
        """Say how many frames have come from a sender so far."""
        known = self._senders.get(sender)
        return known.last if known is not None else 0

    def _on_frame(self, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        try:
            self.take(self._decode(data))
        except msgspec.DecodeError as error:
            log.error("a frame that cannot be read: %s", error)

    def take(self, frame: Frame) -> None:
        """Take in one frame: in order, or not at all."""
        sender = self._senders.get(frame.sender)
        if sender is None:
            sender = self._senders[frame.sender] = Sender(self._subjects.ack(frame.sender))
        if frame.seq != sender.last + 1:
            if frame.seq <= sender.last:
                self.repeats += 1
                self._acknowledge_soon()
                sender.acked = min(sender.acked, sender.last - 1)
                return
            self.gaps += 1
            if frame.base <= sender.last + 1:
                sender.seen = max(sender.seen, frame.seq)
                self._ask_again(sender)
                self._acknowledge_soon()
                return
            log.warning("%s can send frames %d to %d no more", frame.sender, sender.last + 1, frame.base - 1)
        sender.last = frame.seq
        self.taken += 1
        self._deliver(frame.sender, frame.items)
        if sender.last - sender.acked >= ACK_FRAMES:
            self._acknowledge(sender)
        else:
            self._acknowledge_soon()

    def _acknowledge(self, sender: Sender) -> None:
        sender.acked = sender.last
        self._post.send(sender.subject, codec.to_msgpack(Ack(self._incarnation, sender.last)))

    def _acknowledge_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.acknowledge()
        for sender in self._senders.values():
            if sender.seen > sender.last:
                # What we asked may have been lost, or held back because we had asked a moment before.
                self._ask_again(sender)
                self._acknowledge_soon()

    def acknowledge(self) -> None:
        """Acknowledge now what has been taken in: a drained GPU actor waits for that, also when we leave first."""
        for sender in self._senders.values():
            if sender.acked < sender.last:
                self._acknowledge(sender)

    def _ask_again(self, sender: Sender) -> None:
        now = asyncio.get_running_loop().time()
        if now - sender.told_at >= HELLO_SECONDS:
            sender.told_at = now
            self._post.send(sender.subject, codec.to_msgpack(Hello(self._incarnation, sender.last)))

    def _greet(self) -> None:
        """Back on the bus: say to everybody what we have."""
        for sender in self._senders.values():
            sender.told_at = float("-inf")
            self._ask_again(sender)
