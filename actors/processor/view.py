"""What a processor knows of the others: who is registered and alive, how loaded they are, whether the gate is open.

Pure: told of registrations, heartbeats, the gate and the time, it keeps the roster and calls back when somebody is
lost, suspected to hang (`suspicion.py`), or something changed. A lease is `LEASE` seconds since the last heartbeat on
our own clock; all leases start anew in full when our own bus comes back, because the silence may have been ours.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from actors.processor.suspicion import Ears, Signs
from messages import codec
from messages.config import Watch
from messages.gate import Gate
from messages.ids import Role, incarnation_of, short
from messages.lifecycle import LEASE, Heartbeat, Registration, State

log = logging.getLogger("troupe.view")

ROUTED: Final[tuple[Role, ...]] = ("prefill", "decode", "encoder")


class Seat:
    """One life of a slot that can be given work.

    `own` counts the attempts that we have there now, `own_at_beat` those at its last heartbeat: the difference is
    what its figures do not show yet. `version` changes whenever it may have become able to take more. `suspect` says
    why it is thought to hang, empty while it is trusted.
    """

    __slots__ = ("beat", "incarnation", "lease", "own", "own_at_beat", "registration", "signs", "suspect", "version")

    def __init__(self, registration: Registration, now: float) -> None:
        self.registration = registration
        self.incarnation = incarnation_of(registration.slot, registration.generation)
        self.lease = now + LEASE
        self.beat: Heartbeat | None = None
        self.signs = Signs(registration.role, now)
        self.suspect = ""
        self.own = 0
        self.own_at_beat = 0
        self.version = 0

    @property
    def load(self) -> float:
        """Requests in flight and waiting there, as a part of its capacity, and the part of its KV pool in use."""
        beat = self.beat
        capacity = self.registration.capacity or 1
        if beat is None:
            return self.own / capacity
        there = max(beat.in_flight + self.own - self.own_at_beat, self.own)
        return (there + beat.queued) / capacity + (beat.kv_used / beat.kv_total if beat.kv_total else 0.0)

    @property
    def full(self) -> bool:
        """Whether what we alone have there is all that it takes."""
        return self.own >= (self.registration.capacity or 1)

    def __str__(self) -> str:
        return short(self.registration.slot, self.registration.generation)

    def ready(self, now: float) -> bool:
        """Whether it takes work: registered as ready, heard of lately, and not suspected to hang."""
        return self.registration.state is State.READY and self.lease > now and not self.suspect


class View:
    """The roster and gate of one model as this processor sees them.

    `on_lost` is called with a seat whose life is over; `on_doubt` with one that is suspected to hang, or trusted again;
    `on_change` when waiting requests may now find a place; `on_gate` when the gate may have changed. `suspicions`
    counts the seats that were suspected, `false_alarms` those of them that then showed life.
    """

    def __init__(
        self,
        alias: str,
        *,
        on_lost: Callable[[Seat], None],
        on_change: Callable[[], None],
        on_gate: Callable[[], None],
        on_doubt: Callable[[Seat], None] = lambda seat: None,
        watch: Watch | None = None,
    ) -> None:
        self._alias = alias
        self._watch = watch or Watch()
        self._ears = Ears()
        self._on_lost = on_lost
        self._on_doubt = on_doubt
        self._on_change = on_change
        self._on_gate = on_gate
        self._newest: dict[str, int] = {}
        self.seats: dict[str, Seat] = {}
        self.gate: Gate | None = None
        self.suspicions = 0
        self.false_alarms = 0

    def by_role(self, role: Role, now: float) -> list[Seat]:
        """List the seats of a role that take work."""
        return [seat for seat in self.seats.values() if seat.registration.role == role and seat.ready(now)]

    def has_role(self, role: Role) -> bool:
        """Whether anybody of a role is registered, ready or not."""
        return any(seat.registration.role == role for seat in self.seats.values())

    @property
    def open(self) -> bool:
        """Whether new requests are admitted; the last gate seen counts, whoever is gone since."""
        return self.gate is not None and self.gate.open

    # What is told.

    def registry(self, values: dict[str, bytes], now: float) -> None:
        """Take in the whole registry; whoever is not in it any more is lost."""
        for key in [key for key in self._keys() if key not in values]:
            self._remove(key.partition(".")[2])
        for key, value in values.items():
            self._take(key, value, now)
        self._on_change()

    def registry_change(self, key: str, value: bytes | None, now: float) -> None:
        """Take in one change of the registry."""
        if value is None:
            if key.partition(".")[0] in ROUTED:
                self._remove(key.partition(".")[2])
            return
        self._take(key, value, now)
        self._on_change()

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """Take in a heartbeat: a lease renewed, and the load."""
        seat = self.seats.get(beat.slot)
        if seat is None or seat.registration.generation != beat.generation:
            return
        seat.beat = beat
        seat.lease = now + LEASE
        seat.own_at_beat = seat.own
        seat.signs.beat(beat, now, self._watch)
        self._judge(seat, now)
        if beat.in_flight < (beat.capacity or seat.registration.capacity):
            seat.version += 1
        self._on_change()

    def heard(self, now: float) -> None:
        """Take in that a heartbeat came, our own or another's: our bus is well, now if not before."""
        if self._ears.hear(now):
            self._anew(now)

    def tick(self, now: float, frames: Callable[[str], int]) -> None:
        """Look who is not heard any more, every `suspicion.TICK` seconds.

        `frames` says how many frames have come from an incarnation.
        """
        if self._ears.look(now) or self._ears.deaf(now):
            self._anew(now)
            return
        for seat in list(self.seats.values()):
            seat.signs.frames(frames(seat.incarnation), now)
            self._judge(seat, now)

    def away(self) -> None:
        """Our own bus is away."""
        self._ears.away = True

    def freed(self, seat: Seat) -> None:
        """Take in that an attempt of ours has left a seat."""
        seat.own -= 1
        seat.version += 1

    def gates(self, values: Iterable[bytes]) -> None:
        """Take in the whole gate bucket, of which only this model's counts; an absent gate leaves the last one."""
        for value in values:
            self.gate_change(value)

    def gate_change(self, value: bytes | None) -> None:
        """Take in a change of the gate; its deletion leaves the last one."""
        if value is None:
            return
        try:
            gate = codec.from_json(value, Gate)
        except msgspec.DecodeError as error:
            log.warning("the gate cannot be read and stays as it was: %s", error)
            return
        if gate.alias == self._alias:
            self.gate = gate
            self._on_gate()

    def back(self, now: float) -> None:
        """Our own bus is back: every lease starts anew, in full."""
        self._ears.away = False
        for seat in self.seats.values():
            seat.lease = now + LEASE
        self._anew(now)

    def _anew(self, now: float) -> None:
        """We could not hear: whoever is trusted stays so, and nobody's silence counts up to now."""
        for seat in self.seats.values():
            if not seat.suspect:
                seat.signs.anew(now)

    def _judge(self, seat: Seat, now: float) -> None:
        """Suspect a seat, or trust it again."""
        why = seat.signs.verdict(now, self._watch)
        if bool(why) is bool(seat.suspect):
            return
        seat.suspect = why
        seat.version += 1
        if why:
            self.suspicions += 1
            log.warning("%s may hang: %s", seat.incarnation, why)
            self._on_doubt(seat)
        else:
            self.false_alarms += 1
            log.warning("%s shows life: it is trusted again", seat.incarnation)
            self._on_doubt(seat)
            self._on_change()

    def _keys(self) -> list[str]:
        return [f"{seat.registration.role}.{slot}" for slot, seat in self.seats.items()]

    def _take(self, key: str, value: bytes, now: float) -> None:
        kind, _, slot = key.partition(".")
        if kind == "gen":
            self._take_generation(slot, value)
        elif kind in ROUTED:
            try:
                registration = codec.from_json(value, Registration)
            except msgspec.DecodeError as error:
                log.warning("the registration of %s cannot be read: %s", slot, error)
                return
            if registration.alias == self._alias and registration.generation >= self._newest.get(slot, 0):
                self._seat(registration, now)

    def _seat(self, registration: Registration, now: float) -> None:
        seat = self.seats.get(registration.slot)
        if seat is not None and seat.registration.generation == registration.generation:
            seat.registration = registration
            seat.version += 1
            return
        if seat is not None:
            self._remove(registration.slot)
        self.seats[registration.slot] = Seat(registration, now)

    def _take_generation(self, slot: str, value: bytes) -> None:
        """A newer life is about to start, so the one we know is over."""
        if value.isdigit():
            self._newest[slot] = int(value)
            seat = self.seats.get(slot)
            if seat is not None and seat.registration.generation < int(value):
                self._remove(slot)

    def _remove(self, slot: str) -> None:
        if (seat := self.seats.pop(slot, None)) is not None:
            self._on_lost(seat)
