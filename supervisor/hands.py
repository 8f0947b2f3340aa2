"""The supervisor's hands: carry out what the deciders command of slots, and tell them what has come of it.

What takes time has a task of its own; its outcome is an event, never an answer.
"""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from messages import codec, generations
from messages.bus import BusError, NobodyThereError, ServiceError, SilentError
from messages.ids import short
from messages.lifecycle import Control
from supervisor import acts, roster, spawner, state, understudies
from supervisor.cards import Cards
from supervisor.forget import forget
from supervisor.ground import Ground
from supervisor.lives import Lives
from supervisor.roster import Look, Peek
from supervisor.slots import Slots
from supervisor.spec import Spec
from supervisor.teller import Own
from supervisor.world import Event

log = logging.getLogger("troupe.supervisor")

PING_SECONDS: Final = 2.0
ABORT_PAUSE: Final = 0.2

Errand = acts.Start | acts.Terminate | acts.Kill | acts.Dismiss | acts.Promote | acts.Clear | acts.Forget | Look | Peek
"""What can be commanded of a slot."""


class Hands:
    """What reaches for slots: `lives` returns how they stand now, `feed` takes what happened to the deciders."""

    def __init__(
        self,
        ground: Ground,
        specs: dict[str, Spec],
        slots: Slots,
        cards: Cards,
        lives: Callable[[], Lives],
        feed: Callable[[Event], None],
        own: Own,
    ) -> None:
        self._ground = ground
        self._specs = specs
        self._slots = slots
        self._cards = cards
        self._lives = lives
        self._feed = feed
        self._own = own

    def do(self, errand: Errand) -> None:
        """Carry out one command."""
        match errand:
            case acts.Start(slot):
                self._own(self._start(slot))
            case acts.Terminate(slot, generation, abort):
                self._slots.signal(slot, generation, signal.SIGTERM)
                if abort:
                    asyncio.get_running_loop().call_later(
                        ABORT_PAUSE, self._slots.signal, slot, generation, signal.SIGTERM
                    )
            case acts.Kill(slot, generation):
                self._slots.kill(slot, generation)
            case acts.Clear(slot, generation):
                self._own(self._clear(slot, generation))
            case acts.Forget(slot, generation):
                role = self._specs[slot].role
                self._own(forget(self._ground.registry, self._ground.subjects, role, slot, generation))
            case acts.Dismiss(slot, generation, why):
                self._own(self._dismiss(slot, generation, why))
            case acts.Promote(slot, generation):
                self._own(self._promote(slot, generation))
            case Look(slot, generation):
                self._own(self._look(slot, generation))
            case Peek(slot, generation):
                self._own(self._peek(slot, generation))

    async def adopt(self, patience: float) -> None:
        """Take over what an earlier supervisor left running; end, within some seconds, what is in no cast any more."""
        for slot, record in (await asyncio.to_thread(self._ground.folder.slots)).items():
            spec = self._specs.get(slot)
            if spec is None or spec.external:
                if (stray := await spawner.adopt(record.pid, record.start_time)) is not None:
                    why = "is in the cast no more" if spec is None else "is for another manager to start now"
                    log.warning("%s %s; it is ended", short(slot, record.generation), why)
                    self._own(spawner.end(stray, patience))
            elif (running := await self._slots.adopt(spec)) is not None:
                generation, age = running.record.generation, max(0.0, time.time() - running.record.started)
                log.info("%s runs on (pid %d), adopted", short(slot, generation), running.process.pid)
                self._feed(acts.Adopted(slot, generation, age, running.record.restarts, running.record.reason))
                self._own(self._await_end(slot, generation))

    async def _start(self, slot: str) -> None:
        """Claim a generation and start its process; without the bus there is no generation, and no start."""
        spec, life = self._specs[slot], self._lives().slots[slot]
        path = self._ground.folder.slot(slot) / "process.json"
        known = await asyncio.to_thread(state.read, path, state.ProcessRecord)
        used = max(life.generation, known.generation if known is not None else 0)
        more = ["--http-port", str(self._ground.ports.of[spec.alias])] if spec.http is not None else []
        try:
            generation = await generations.claim(self._ground.registry, self._ground.subjects, slot, used)
        except BusError as error:
            self._feed(acts.StartFailed(slot, str(error), _jitter(), excuse="bus"))
            return
        try:
            more += await self._cards.arguments(spec)
            running = await self._slots.start(spec, generation, more, life.restarts, life.reason)
            self._cards.bind(spec, running.process.pid, generation)
        except (spawner.SpawnError, OSError) as error:
            self._feed(acts.StartFailed(slot, str(error), _jitter()))
            return
        self._feed(acts.Started(slot, generation))
        await self._await_end(slot, generation)

    async def _await_end(self, slot: str, generation: int) -> None:
        process = self._slots.running[slot].process
        await process.wait_alone()
        # Told at once: those who send it work look at the registry.
        self._feed(acts.Gone(slot, generation, process.ended_at))
        end = await self._slots.ended(slot)
        self._feed(acts.Exited(slot, generation, end.code, end.reason, _jitter(), end.how, end.last_lines))

    async def _clear(self, slot: str, generation: int) -> None:
        """Wait until a dead life's GPUs have their memory back, and say who holds it if they have not."""
        held = await self._cards.clear(self._specs[slot], lambda: self._lives().ending != "no")
        self._feed(acts.Cleared(slot, generation, held))

    async def _look(self, slot: str, generation: int) -> None:
        """Look at a slot whose lease is over: at its process first, and if that seems well ask the actor."""
        running = self._slots.running.get(slot)
        found = await running.process.state() if running is not None else None
        answer: Any = "unasked"
        well = self._specs[slot].external or (found is not None and found not in "TZX")
        if well and self._ground.bus.connected:
            try:
                await self._ground.bus.request(self._ground.subjects.control(slot, "ping"), timeout=PING_SECONDS)
                answer = "answered"
            except NobodyThereError:
                answer = "nobody"
            except SilentError:
                answer = "silent" if self._ground.bus.connected else "unasked"
            except ServiceError:
                answer = "answered"
            except BusError:
                answer = "unasked"
        self._feed(roster.Looked(slot, generation, found, answer))

    async def _peek(self, slot: str, generation: int) -> None:
        """Look whether the process of a slot that has not been heard for a moment is stopped: that is proof at once."""
        running = self._slots.running.get(slot)
        if running is not None and (found := await running.process.state()) is not None and found in "TZX":
            self._feed(roster.Looked(slot, generation, found, "unasked"))

    async def _dismiss(self, slot: str, generation: int, why: str) -> None:
        """Ask an external slot's actor to drain, or to exit at once for a reason; who is not there hears nothing."""
        ground = self._ground
        asked = codec.to_json(Control(generation=generation, reason=why))
        try:
            await ground.bus.request(
                ground.subjects.control(slot, "exit" if why else "drain"), asked, timeout=PING_SECONDS
            )
        except (BusError, ServiceError) as error:
            log.warning("%s could not be asked to %s: %s", short(slot, generation), "exit" if why else "drain", error)

    async def _promote(self, slot: str, generation: int) -> None:
        """Call an understudy to work; that it has come is read in the registry."""
        ground, asked = self._ground, codec.to_json(Control(generation=generation))
        try:
            await ground.bus.request(ground.subjects.control(slot, "promote"), asked, timeout=understudies.CALL)
        except (BusError, ServiceError) as error:
            self._feed(acts.Refused(slot, generation, str(error)))


def _jitter() -> float:
    return random.uniform(-1.0, 1.0)
