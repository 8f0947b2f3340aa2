"""The publisher's role: one a host; it follows the engines of its host by their registrations, through every restart.

KV events go from the engines' ZMQ sockets to `kv.<slot>`, load figures from their heartbeats to `load.<slot>`, and
both, with what SGLang itself counts, to Prometheus. Nothing waits for it: without it requests are served as before.
"""

import asyncio
import contextlib
import logging
import socket
import time
from functools import partial
from typing import ClassVar, Final

import msgspec
import zmq
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from prometheus_client.core import Metric

from actors.actor import Actor
from actors.ending import Ending
from actors.publisher import metrics
from actors.publisher.door import MetricsDoor
from actors.publisher.kv import KvWay
from actors.publisher.slots import Watched
from actors.publisher.source import Source, replay
from actors.setup import Setup
from messages import codec
from messages.bus import BusError, ServiceError, error_headers
from messages.ids import Role, short
from messages.lifecycle import Event, Exit, Heartbeat, KvSource, Registration, State
from messages.subjects import last_token
from messages.telemetry import Again, KvEvents

log = logging.getLogger("troupe.publisher")

SLOTS: Final = 1_024
"""Slots that are remembered; beyond it those that left first are forgotten."""
CONFIRM_SECONDS: Final = 0.25
ASKERS: Final = 4
"""Receivers that are served at once with what they have missed; the others wait."""


class Publisher(Actor):
    """Tells of a host's engines."""

    role: ClassVar[Role] = "publisher"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._config = setup.cluster.publisher
        self._slots: dict[str, Watched] = {}
        self._heard: dict[str, list[Subscription]] = {}
        self._running: dict[asyncio.Task[None], Source] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._host = socket.gethostname()
        self._way: KvWay
        self._changed: asyncio.Event
        self._published: asyncio.Event
        self._askers: asyncio.Semaphore
        self._door: MetricsDoor | None = None

    def registration(self) -> Registration:
        """Say where the metrics are."""
        address = self._door.address if self._door is not None else None
        return msgspec.structs.replace(self.plain_registration(), http=address)

    async def open(self) -> None:
        """Open the door, then follow the registry."""
        self._changed, self._published = asyncio.Event(), asyncio.Event()
        self._askers = asyncio.Semaphore(ASKERS)
        self._way = KvWay(self.bus)
        if self._config.http.enabled:
            self._door = MetricsDoor(self._config.http, self._metrics, self._folders)
            try:
                await self._door.open()
            except OSError as error:
                raise Ending(Exit.CONFIG, f"publisher.http: cannot listen: {error}") from error
        self.bus.on_back(self._on_back)
        await self.bus.subscribe(self.subjects.events_of("actor"), self._on_event)
        self.own(self._follow)
        self.own(self._confirm)
        self.own(lambda: self.registry.keep(">", self._on_registry, self._on_registration))

    # Who is there.

    def _on_registry(self, values: dict[str, bytes]) -> None:
        there = {last_token(key) for key in values}
        for name, slot in self._slots.items():
            if name not in there:
                slot.leave()
        for key, value in values.items():
            self._on_registration(key, value)
        self._changed.set()

    def _on_registration(self, key: str, value: bytes | None) -> None:
        if key.startswith("gen."):
            return
        if value is None:
            if (known := self._slots.get(last_token(key))) is not None:
                known.leave()
                self._changed.set()
            return
        try:
            registration = codec.from_json(value, Registration)
        except msgspec.DecodeError as error:
            log.warning("the registration %s cannot be read: %s", key, error)
            return
        if self._config.engines == "host" and registration.host != self._host:
            return
        slot = self._slots.setdefault(registration.slot, Watched(registration))
        slot.register(registration)
        self._changed.set()

    async def _follow(self) -> None:
        """Bring what is followed in line with who is registered, at every change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for slot in list(self._slots.values()):
                await self._follow_slot(slot)
            await self._forget()

    async def _follow_slot(self, slot: Watched) -> None:
        if slot.name not in self._heard and slot.there:
            role = slot.registration.role
            self._heard[slot.name] = [
                await self.bus.subscribe(self.subjects.heartbeat(role, slot.name), self._on_heartbeat)
            ]
            if slot.registration.kv_sources and self._config.events == "nats":
                again = await self.bus.subscribe(self.subjects.kv_again(slot.name), self._on_again)
                self._heard[slot.name].append(again)
        wanted = slot.registration.kv_sources if slot.there and slot.registration.events == "nats" else []
        if slot.sources and (not wanted or slot.followed != slot.generation):
            for source in slot.sources.values():
                source.stop()
            slot.sources = {}
            slot.followed = 0
        if slot.followed == slot.generation or not wanted:
            return
        slot.followed = slot.generation
        for at in wanted:
            self._start(slot, at)

    def _start(self, slot: Watched, at: KvSource) -> None:
        """Follow one DP rank of one life."""
        name = f"{slot} rank {at.dp_rank}" if len(slot.registration.kv_sources) > 1 else str(slot)
        subject = self.subjects.kv(slot.name)
        take = partial(self._take, subject, slot.name, slot.generation, at.dp_rank)
        source = slot.sources[at.dp_rank] = Source(name, at, self._context, take)
        log.info("%s: following its KV events at %s", name, at.endpoint)
        self.own(partial(self._run_source, source))

    async def _run_source(self, source: Source) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = source
        try:
            await source.run()
        finally:
            del self._running[task]

    async def _forget(self) -> None:
        """Forget the slots that left first, where there are too many to remember."""
        gone = [name for name, slot in self._slots.items() if not slot.there]
        for name in gone[: max(0, len(self._slots) - SLOTS)]:
            del self._slots[name]
            for subscription in self._heard.pop(name, []):
                await self.bus.finish(subscription)

    async def _on_event(self, msg: Msg) -> None:
        """Know the state of a slot that is not registered: loading, stopped, failed."""
        slot = self._slots.get(last_token(msg.subject))
        if slot is None:
            return
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            event = codec.from_json(msg.data, Event)
            if event.generation >= slot.generation:
                slot.state = State(event.what)

    # Load figures.

    async def _on_heartbeat(self, msg: Msg) -> None:
        slot = self._slots.get(last_token(msg.subject))
        if slot is None:
            return
        try:
            load = slot.hear(codec.from_json(msg.data, Heartbeat))
        except msgspec.DecodeError as error:
            log.warning("a heartbeat of %s cannot be read: %s", slot, error)
            return
        if load is not None:
            with contextlib.suppress(BusError):
                await self.bus.publish(self.subjects.load(slot.name), codec.to_msgpack(load))

    # KV events.

    async def _take(
        self, subject: str, slot: str, generation: int, rank: int, seq: int, payload: bytes, replayed: bool, lost: int
    ) -> None:
        """Send one batch on its way."""
        batch = KvEvents(slot=slot, generation=generation, dp_rank=rank, seq=seq, at=0.0, lost=lost, replayed=replayed)
        await self._way.send(subject, self._way.unpack(batch, payload))
        self._published.set()

    async def _confirm(self) -> None:
        """Learn how far NATS surely has everything: what is not confirmed is sent again when it has been away."""
        while True:
            await self._published.wait()
            self._published.clear()
            await asyncio.sleep(CONFIRM_SECONDS)
            reconnects = self.bus.reconnects
            sent = [(source, source.next) for source in self._running.values()]
            with contextlib.suppress(BusError):
                await self.bus.flush()
                if self.bus.reconnects == reconnects:
                    for source, upto in sent:
                        source.confirmed = upto

    def _on_back(self) -> None:
        for source in self._running.values():
            source.go_back()

    async def _on_again(self, msg: Msg) -> None:
        """Hand a receiver that has missed some to a task of its own."""
        self.own(partial(self._serve, msg))

    async def _serve(self, msg: Msg) -> None:
        if not msg.reply:
            return
        try:
            asked = codec.from_msgpack(msg.data, Again)
            at = self._source_of(last_token(msg.subject.rpartition(".")[0]), asked)
            take = partial(
                self._take, msg.reply, last_token(msg.subject.rpartition(".")[0]), asked.generation, asked.dp_rank
            )
            async with self._askers:
                await replay(self._context, at, asked.start, take)
            await self.bus.publish(msg.reply)
        except msgspec.DecodeError as error:
            await self._refuse(msg, 400, str(error))
        except ServiceError as error:
            await self._refuse(msg, error.code, error.message)
        except BusError as error:
            log.debug("one who asked for KV events is not answered: %s", error)

    def _source_of(self, name: str, asked: Again) -> KvSource:
        slot = self._slots.get(name)
        if slot is None or not slot.there:
            raise ServiceError(503, f"{name} is not there")
        if slot.generation != asked.generation:
            raise ServiceError(409, f"this is {slot}, not {short(name, asked.generation)}")
        for at in slot.registration.kv_sources:
            if at.dp_rank == asked.dp_rank and at.replay:
                return at
        raise ServiceError(404, f"{slot} has no DP rank {asked.dp_rank} that says its events again")

    async def _refuse(self, msg: Msg, code: int, message: str) -> None:
        with contextlib.suppress(BusError):
            await self.bus.publish(msg.reply, headers=error_headers(code, message))

    # Metrics.

    def _metrics(self) -> list[Metric]:
        return metrics.ours(self._slots.values(), self._way.unreadable, time.monotonic())

    def _folders(self) -> dict[str, str]:
        """The engines' Prometheus files: of those that are registered, for a dead one's figures mean nothing."""
        return {
            name: slot.registration.metrics
            for name, slot in self._slots.items()
            if slot.there and slot.registration.metrics
        }

    # The end.

    async def drain(self) -> None:
        """Hand on what has come, and have NATS take it."""
        for source in list(self._running.values()):
            source.stop()
        while self._running:
            await asyncio.wait(self._running)
        with contextlib.suppress(BusError):
            await self.bus.flush()

    async def close(self) -> None:
        """Close the door and the sockets."""
        if self._door is not None:
            await self._door.close()
        self._context.destroy(linger=0)
