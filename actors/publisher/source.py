"""Follows the KV events of one DP rank of one engine: every batch once, in order, none missing that can still be had.

The engine numbers its batches and keeps the last ten thousand; what a SUB socket has missed (by coming late, by
being slow) is asked for on the replay socket. Only what the engine itself keeps no more is lost, and that is said.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import zmq

from actors.kv_wire import END
from actors.publisher.zmq_socket import ZmqSocket
from messages.lifecycle import KvSource

log = logging.getLogger("troupe.publisher")

REPLAY_SECONDS: Final = 2.0
"""Silence after which a replay is given up; SGLang looks at its replay socket ten times a second."""
SILENCES: Final = 5
"""Replays in a row that brought nothing, after which the engine is taken to have nothing for us."""
LOOKS: Final = (0.5, 3.0)
"""Seconds after the begin at which to ask once more: what was published while our subscription was on its way."""

Take = Callable[[int, bytes, bool, int], Awaitable[None]]
"""Takes (number, payload, whether replayed, how many batches up to this one are lost)."""


class Source:
    """One rank's events. `next` is the number of the batch that comes next, `confirmed` the first not surely handed on.

    `replayed` and `lost` count batches that were asked for again, and those that were not to be had.
    """

    def __init__(self, name: str, at: KvSource, context: zmq.Context[zmq.Socket[bytes]], take: Take) -> None:
        self.name = name
        self.next = 0
        self.confirmed = 0
        self.replayed = 0
        self.lost = 0
        self._at = at
        self._context = context
        self._take = take
        self._events: ZmqSocket | None = None
        self._look = True
        self._back_to = math.inf
        self._stopping = False

    async def run(self) -> None:
        """Follow until stopped, and then hand on what has come; the owner's task group runs it."""
        self._events = ZmqSocket(self._context, zmq.SUB, self._at.endpoint)
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(seconds, self.look) for seconds in LOOKS]
        try:
            while True:
                if self._look and not self._stopping:
                    self._look = False
                    self.next = int(min(self.next, self._back_to))
                    self._back_to = math.inf
                    await self._catch_up()
                while (frames := self._events.receive()) is not None:
                    await self._on_event(frames)
                if self._stopping:
                    return
                await self._events.wait()
        finally:
            for timer in timers:
                timer.cancel()
            self._events.close()

    def look(self) -> None:
        """Ask the engine whether there is more than we have seen."""
        self._look = True
        if self._events is not None:
            self._events.wake()

    def go_back(self) -> None:
        """Hand on again all that is not surely where it belongs: the bus has been away."""
        self._back_to = min(self._back_to, self.confirmed)
        self.look()

    def stop(self) -> None:
        """End, after handing on what has come: the engine is gone."""
        self._stopping = True
        if self._events is not None:
            self._events.wake()

    async def _on_event(self, frames: list[bytes]) -> None:
        if len(frames) != 3 or len(frames[1]) != 8:
            log.warning("%s: %d frames that are no KV events", self.name, len(frames))
            return
        seq = int.from_bytes(frames[1], "big")
        if seq > self.next:
            await self._catch_up()
        await self._hand_on(seq, frames[2], replayed=False)

    async def _hand_on(self, seq: int, payload: bytes, *, replayed: bool) -> None:
        """Hand a batch on unless that has been done; what is missing before it is lost."""
        if seq < self.next:
            return
        lost = seq - self.next
        if lost:
            log.warning("%s: KV events %d to %d are lost: the engine keeps them no more", self.name, self.next, seq - 1)
        self.lost += lost
        self.replayed += replayed
        await self._take(seq, payload, replayed, lost)
        self.next = seq + 1

    async def _catch_up(self) -> None:
        """Ask for what comes from `next` on, until the engine has said all or says nothing new."""
        if not self._at.replay:
            return
        silent = 0
        while silent < SILENCES and not self._stopping:
            before = self.next
            if await self._replay():
                return
            silent = silent + 1 if self.next == before else 0

    async def _replay(self) -> bool:
        """Ask once; return whether all that the engine keeps has come: its socket drops what we are too slow for."""
        asked = ZmqSocket(self._context, zmq.DEALER, self._at.replay)
        first = True
        try:
            asked.send([b"", self.next.to_bytes(8, "big")])
            while (frames := await _answer(asked)) is not None:
                # [empty, (topic,) number, payload]: with the topic in 0.5.23, without in 0.5.17.
                if len(frames) < 3 or frames[-2] == END:
                    return len(frames) >= 3
                seq = int.from_bytes(frames[-2], "big")
                if seq > self.next and not first:
                    return False
                await self._hand_on(seq, frames[-1], replayed=True)
                first = False
            return False
        finally:
            asked.close()


async def _answer(asked: ZmqSocket) -> list[bytes] | None:
    """Wait for the next part of an answer; None after too long a silence."""
    try:
        async with asyncio.timeout(REPLAY_SECONDS):
            while (frames := asked.receive()) is None:
                await asked.wait()
            return frames
    except TimeoutError:
        return None


async def replay(context: zmq.Context[zmq.Socket[bytes]], at: KvSource, start: int, take: Take) -> None:
    """Hand on what an engine keeps from `start` on, for one who asks; what it keeps no more is said to be lost."""
    source = Source("", at, context, take)
    source.next = start
    await source._catch_up()
