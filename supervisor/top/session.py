"""Keeps what `troupe top` knows up to date over NATS, through restarts of supervisor and NATS; carries out orders."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.event_log import Told, follow
from messages.lifecycle import Control
from messages.subjects import Subjects
from messages.supervise import Order as Asked
from messages.supervise import Said, Status
from messages.telemetry import Traffic
from supervisor import traffic
from supervisor.commands import logs
from supervisor.commands.codes import CommandError
from supervisor.commands.status import from_buckets
from supervisor.state import ClusterRecord, Folder
from supervisor.top.view import EVENTS_KEPT, Known, Order

PERIOD: Final = 1.0
"""Seconds between two looks at the status; what happens brings the next one forward."""
SOON: Final = 0.05
ANSWER: Final = 2.0
CONNECT: Final = 5.0
LOG_LINES: Final = 200


class Session:
    """One cluster being watched; `changed` is called whenever there is something new to show."""

    def __init__(self, folder: Folder, known: Known, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._known = known
        self._changed = changed
        self._bus: Bus | None = None
        self._record: ClusterRecord | None = None
        self._wake = asyncio.Event()
        self._ledger = traffic.Ledger(time.time())
        self._asked: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._record = record = await asyncio.to_thread(self._folder.cluster)
            if record is None:
                self._trouble(f"no cluster runs in {self._folder.root}")
                await asyncio.sleep(PERIOD)
                continue
            try:
                self._bus = await Bus.connect(record.nats, name="top", wait=CONNECT)
            except BusError as error:
                self._trouble(str(error))
                continue
            try:
                await self._watch(self._bus, record)
            except BusError as error:
                self._trouble(str(error))
            finally:
                bus, self._bus = self._bus, None
                await bus.close()

    async def order(self, order: Order) -> str:
        """Have something done; return what is said of it."""
        if self._bus is None or self._record is None or not self._bus.connected:
            return f"{order.slot}: NATS is away; nothing done"
        subject = Subjects(self._record.cluster).supervise(order.what)
        try:
            answer = await self._bus.request(subject, codec.to_json(Asked(slot=order.slot)), timeout=ANSWER)
            return codec.from_json(answer.data, Said).message
        except NobodyThereError:
            return f"{order.slot}: no supervisor lives; nothing done"
        except SilentError:
            return f"{order.slot}: no supervisor answers that has this slot; nothing is known to be done"
        except (BusError, ServiceError, msgspec.DecodeError) as error:
            return f"{order.slot}: {error}"

    async def read_log(self, slot: str) -> None:
        """Read the end of a slot's log."""
        try:
            self._known.log = await asyncio.to_thread(logs.last, self._folder, slot, LOG_LINES)
        except CommandError as error:
            self._known.log = [str(error)]
        self._changed()

    async def _watch(self, bus: Bus, record: ClusterRecord) -> None:
        """Watch over one connection, until the cluster is reached another way."""
        subjects = Subjects(record.cluster)
        bus.on_lost(lambda: self._trouble("NATS is away"))
        bus.on_back(self._wake.set)
        await bus.subscribe(subjects.traffics, self._on_traffic)
        following = asyncio.ensure_future(follow(bus, subjects.event_stream, self._take, newest=EVENTS_KEPT))
        try:
            while True:
                if bus.connected:
                    await self._look(bus, record)
                elif await asyncio.to_thread(self._folder.cluster) != record:
                    return
                if following.done():
                    following.result()
                await self._pause()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _pause(self) -> None:
        """Wait for the next look; what happens in bursts is looked at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PERIOD):
                await self._wake.wait()
                await asyncio.sleep(SOON)
        self._wake.clear()

    async def _look(self, bus: Bus, record: ClusterRecord) -> None:
        """Ask for the status: the supervisor, or where none answers what is written down."""
        try:
            answer = await bus.request(Subjects(record.cluster).supervise("status"), timeout=ANSWER)
            found, alone = codec.from_json(answer.data, Status), False
        except (NobodyThereError, SilentError):
            try:
                async with asyncio.timeout(ANSWER):
                    found, alone = await from_buckets(bus, self._folder, record), True
            except (CommandError, TimeoutError) as error:
                self._trouble(str(error) or "the registry does not answer")
                return
        except (BusError, ServiceError, msgspec.DecodeError) as error:
            self._trouble(f"the supervisor cannot be asked: {error}")
            return
        known = self._known
        known.status, known.heard, known.trouble, known.alone = found, time.monotonic(), "", alone
        await self._ask_for_traffic(bus, record, found)
        known.points = {model: self._ledger.now(model, time.time()) for model in self._ledger.models}
        self._changed()

    async def _ask_for_traffic(self, bus: Bus, record: ClusterRecord, found: Status) -> None:
        """Ask processors of which nothing has been heard: one that is idle says nothing of itself."""
        there = {(slot.slot, slot.generation) for slot in found.slots if slot.role == "processor" and slot.live}
        for slot, _ in there - self._asked:
            subject = Subjects(record.cluster).control(slot, "traffic")
            with contextlib.suppress(BusError, ServiceError):
                await bus.publish(subject, codec.to_json(Control()))
        self._asked = there
        for gone in self._ledger.there - {slot for slot, _ in there}:
            self._ledger.gone(gone)

    async def _on_traffic(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            self._ledger.take(codec.from_msgpack(msg.data, Traffic), time.time())

    def _take(self, told: list[Told], anew: bool) -> None:
        if anew:
            self._known.events.clear()
        self._known.events.extend(one.event for one in told)
        self._wake.set()
        self._changed()

    def _trouble(self, why: str) -> None:
        self._known.trouble = why
        self._changed()
