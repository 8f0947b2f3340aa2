"""The supervisor's ears: what the registry, heartbeats and actors say on the bus becomes events for the deciders."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import BusError, ServiceError
from messages.lifecycle import Event as ActorEvent
from messages.lifecycle import Heartbeat, Registration, State
from messages.subjects import last_token
from messages.telemetry import Traffic
from supervisor import acts, roster
from supervisor.counts import Counts
from supervisor.forget import forget
from supervisor.ground import Ground
from supervisor.lives import Lives, Phase
from supervisor.slots import Slots
from supervisor.spec import Spec
from supervisor.teller import Own
from supervisor.traffic import Ledger
from supervisor.world import Event

log = logging.getLogger("troupe.supervisor")


class Ears:
    """What listens to the bus: `lives` returns how slots stand now, `feed` takes what was heard to the deciders."""

    def __init__(
        self,
        ground: Ground,
        specs: dict[str, Spec],
        slots: Slots,
        ledger: Ledger,
        counts: Counts,
        lives: Callable[[], Lives],
        feed: Callable[[Event], None],
        own: Own,
    ) -> None:
        self._ground = ground
        self._specs = specs
        self._slots = slots
        self._ledger = ledger
        self._counts = counts
        self._lives = lives
        self._feed = feed
        self._own = own

    async def open(self) -> None:
        """Listen to what is said once: heartbeats, events and counts."""
        bus, subjects = self._ground.bus, self._ground.subjects
        await bus.subscribe(subjects.heartbeats, self._on_heartbeat)
        await bus.subscribe(subjects.events_of("actor"), self._on_actor)
        await bus.subscribe(subjects.traffics, self._on_traffic)

    async def keep(self) -> None:
        """Listen to the registry, for ever."""
        await self._ground.registry.keep(">", self._on_registry, self._on_registration)

    def _on_registry(self, whole: dict[str, bytes]) -> None:
        """Compare the registry with what runs: a registration of ours that has no process is deleted."""
        found = [registration for key, value in whole.items() if (registration := _registration(key, value))]
        for slot in self._ledger.there - {registration.slot for registration in found}:
            self._ledger.gone(slot)
        self._feed(roster.Whole({registration.slot: registration for registration in found}))
        for registration in found:
            self._check(registration)

    def _on_registration(self, key: str, value: bytes | None) -> None:
        if value is None:
            if not key.startswith("gen."):
                self._ledger.gone(last_token(key))
                self._feed(roster.Unregistered(last_token(key)))
        elif registration := _registration(key, value):
            self._feed(roster.Registered(registration))
            self._check(registration)

    def _check(self, registration: Registration) -> None:
        slot = registration.slot
        if registration.role == "processor" and not self._ledger.knows(slot, registration.generation):
            self._own(self._ask_traffic(slot))
        life = self._lives().slots.get(slot)
        running = self._slots.running.get(slot)
        if life is None or life.spec.external:
            return
        if life.phase is Phase.STARTING or registration.host != socket.gethostname():
            return
        if running is None or running.record.generation > registration.generation:
            ground, generation = self._ground, registration.generation
            self._own(forget(ground.registry, ground.subjects, life.spec.role, slot, generation))

    async def _ask_traffic(self, slot: str) -> None:
        """Have a processor tell what it has counted; one that cannot be asked now tells when there is something new."""
        with contextlib.suppress(BusError, ServiceError):
            await self._ground.bus.publish(self._ground.subjects.control(slot, "traffic"))

    async def _on_actor(self, msg: Msg) -> None:
        """Take in what the actors of external slots say before they can register."""
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            event = codec.from_json(msg.data, ActorEvent)
            if event.of in self._specs and self._specs[event.of].external:
                state_ = State(event.what)
                if state_ not in (State.READY, State.DRAINING):
                    self._feed(acts.Seen(event.of, event.generation, state_))

    async def _on_traffic(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            self._ledger.take(codec.from_msgpack(msg.data, Traffic), time.time())

    async def _on_heartbeat(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            beat = codec.from_json(msg.data, Heartbeat)
            self._feed(roster.Beat(beat))
            if (spec := self._specs.get(beat.slot)) is not None:
                self._counts.beat(beat, (spec.model, spec.role))


def _registration(key: str, value: bytes) -> Registration | None:
    if key.startswith("gen."):
        return None
    try:
        return codec.from_json(value, Registration)
    except msgspec.DecodeError as error:
        log.warning("registration %s cannot be read: %s", key, error)
        return None
