"""The event history as JetStream keeps it: what is there, then what comes, without loss or doubles over reconnects."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo

from messages import codec
from messages.bus import Bus
from messages.errors import BusError
from messages.lifecycle import Event

log = logging.getLogger("troupe.bus")

PAUSE: Final = 0.2
HEARTBEAT: Final = 5.0
"""How often, in seconds, the server says that a consumer with nothing to tell is still there."""
SILENT: Final = 3 * HEARTBEAT
FORGOTTEN: Final = 60.0
"""Seconds after which the server forgets a consumer that nobody listens to."""
BATCH: Final = 500
"""Events told at once at most, so that a long history does not stop everything else."""


class Told(NamedTuple):
    """One event of the history; `seq` is its number in the stream, `data` its JSON as it was published."""

    seq: int
    event: Event
    data: bytes


Take = Callable[[list[Told], bool], None]


class _GapError(Exception):
    """Something between two messages is missing, or nothing has been heard for too long."""


async def follow(bus: Bus, stream: str, take: Take, *, newest: int = 0, since: float | None = None) -> None:
    """Tell all that is in the stream, then all that comes, in order: for ever, until cancelled.

    It begins with the `newest` so many events (0: all), or with those from the wall-clock time `since` on. The first
    call of `take` comes once the whole history has been read (empty, where there is none). `take(told, anew)`: `anew`
    says that nothing told before counts: at the first call, and where the server has lost its store. What is no event
    is left out.
    """
    reader = _Reader(bus, stream, take, newest, since)
    bus.on_back(reader.again)
    while True:
        try:
            await reader.read()
        except (BusError, nats.errors.Error, nats.js.errors.Error, TimeoutError, _GapError) as error:
            log.debug("the history in %s is read on anew: %s", stream, error or type(error).__name__)
            await asyncio.sleep(PAUSE)


class _Reader:
    """One reading of a stream: `after` is the last number told, None before the history has been."""

    def __init__(self, bus: Bus, stream: str, take: Take, newest: int, since: float | None) -> None:
        self._bus = bus
        self._stream = stream
        self._take = take
        self._newest = newest
        self._since = since
        self._after: int | None = None
        self._created: datetime | None = None
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue(2 * BATCH)

    def again(self) -> None:
        """Begin anew behind what has been told: a consumer does not always outlive a reconnect."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)

    async def read(self) -> None:
        """Read until something is amiss. Raises BusError, nats-py's errors, TimeoutError or _GapError."""
        info = await self._bus.stream_info(self._stream)
        if info.created != self._created or (self._after is not None and info.state.last_seq < self._after):
            self._after, self._created = None, info.created
        self._queue = asyncio.Queue(2 * BATCH)
        inbox = self._bus.inbox()
        heard = await self._bus.subscribe(inbox, self._queue.put)
        try:
            pending = await self._bus.add_consumer(self._stream, self._consumer(inbox, info))
            await self._tell(pending)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await asyncio.shield(heard.unsubscribe())

    def _consumer(self, inbox: str, info: StreamInfo) -> ConsumerConfig:
        config = ConsumerConfig(
            deliver_subject=inbox,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            idle_heartbeat=HEARTBEAT,
            inactive_threshold=FORGOTTEN,
        )
        if self._after is None and self._since is not None:
            began = datetime.fromtimestamp(self._since, UTC)
            return config.evolve(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=began)
        start = 1
        if self._after is not None:
            start = self._after + 1
        elif self._newest:
            start = max(1, info.state.last_seq - self._newest + 1)
        return config.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start)

    async def _tell(self, pending: int) -> None:
        """Tell the `pending` messages that are history, then each as it comes."""
        history: list[Told] | None = [] if self._after is None else None
        if history is not None and not pending:
            self._tell_first([])
            history = None
        last, count = self._after or 0, 0
        while True:
            told: list[Told] = []
            for msg in await self._batch():
                if msg.reply.startswith("$JS.ACK"):
                    found = msg.metadata
                    count += 1
                    if found.sequence.consumer != count:
                        raise _GapError(f"message {count} of the consumer is missing")
                    last = found.sequence.stream
                    with contextlib.suppress(msgspec.DecodeError):
                        told.append(Told(last, codec.from_json(msg.data, Event), msg.data))
            if history is None:
                self._after = last
                if told:
                    self._take(told, False)
                continue
            history += told
            if count >= pending:
                self._after = last
                self._tell_first(history)
                history = None

    def _tell_first(self, history: list[Told]) -> None:
        if self._after is None:
            self._after = 0
        self._take(history, True)

    async def _batch(self) -> list[Msg]:
        """Wait for a message, and take with it what else is there."""
        async with asyncio.timeout(SILENT):
            found = [await self._queue.get()]
        while len(found) < BATCH and not self._queue.empty():
            found.append(self._queue.get_nowait())
        if None in found:
            raise _GapError("the connection is a new one")
        return [msg for msg in found if msg is not None]
