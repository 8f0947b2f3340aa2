"""The supervisor itself: feeds the deciders with what happens, and carries out what they command.

Read `run`, then `_feed`, then `_do`. Nothing here decides: what is heard from the bus, from processes and from the
clock becomes an event, and what the deciders answer becomes a process, a signal, a key or a line in the log.
"""

import asyncio
import contextlib
import logging
import math
import random
import signal
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from nats.aio.msg import Msg

from messages import codec, generations
from messages.bus import BusError, NobodyThereError, ServiceError, SilentError
from messages.config import Cluster
from messages.gate import Gate
from messages.ids import short
from messages.lifecycle import Control, Event, Heartbeat, Registration, Stage, State
from messages.subjects import last_token
from messages.telemetry import Traffic
from supervisor import acts, events, restart, roster, spawner, state, understudies, world
from supervisor.cards import Cards
from supervisor.counts import Counts
from supervisor.desk import Desk
from supervisor.forget import forget
from supervisor.ground import Ground
from supervisor.lives import Phase
from supervisor.nvml import Gpus
from supervisor.slots import Slots
from supervisor.spec import Spec
from supervisor.state import Folder
from supervisor.teller import Teller, WhenOpen
from supervisor.traffic import Ledger
from supervisor.world import World

if TYPE_CHECKING:
    from supervisor.dashboard.page import Page
    from supervisor.metrics import Sources

log = logging.getLogger("troupe.supervisor")

TICK: Final = 0.5
LATE: Final = 2 * TICK
"""Seconds between two events after which we were late ourselves: a tick is at most half of that away."""
PING_SECONDS: Final = 2.0
ABORT_PAUSE: Final = 0.2
TRIM_EVERY: Final = 2.0
CANCEL_SECONDS: Final = 5.0


class Supervisor:
    """One supervisor of one host's slots."""

    def __init__(
        self,
        cluster: Cluster,
        specs: dict[str, Spec],
        config: Path,
        folder: Folder,
        when_open: WhenOpen,
        gpus: Gpus | None = None,
    ) -> None:
        self._specs = specs
        self._grace = cluster.nats.grace
        self._log_bytes = cluster.logs.max_bytes
        self._cluster = cluster
        self._ground = Ground(cluster, specs, config, folder)
        self._when_open = when_open
        self._cards = Cards(gpus)
        self._world: World = world.begin(specs, time.monotonic(), grace=cluster.nats.grace, watch=cluster.watch)
        self._ledger = Ledger(time.time())
        self._counts = Counts()
        self._started = time.time()
        self._tasks: asyncio.TaskGroup
        self._slots: Slots
        self._teller: Teller
        self._seen = math.inf
        self._wake: asyncio.TimerHandle | None = None
        self._over: asyncio.Event
        self._main: asyncio.Task[None] | None = None
        self._page: Page | None = None
        self._begun = False

    @property
    def external(self) -> bool:
        """Whether there are slots that other managers start."""
        return any(spec.external for spec in self._specs.values())

    async def run(self) -> None:
        """Run the cluster until it has been ended. The caller holds the folder.

        Raises ConfigError, PortError, NatsError, BusError or StrandedError where it cannot begin.
        """
        self._main = asyncio.current_task()
        self._over = asyncio.Event()
        await self._ground.open()
        try:
            await self._watch_over()
        finally:
            await self._ground.close(ended=self._world.lives.over and not self.external)

    def end(self) -> None:
        """End everything, front to back; called a second time, at once. Before anything has begun, just stop."""
        if not self._begun:
            if self._main is not None:
                self._main.cancel()
            return
        again = self._world.lives.ending != "no"
        log.info("%s", "aborting what is left" if again else "ending: draining front to back (once more aborts)")
        self._slots.refuse_forks()
        self._feed(acts.End(abort=again))

    async def _watch_over(self) -> None:
        ground = self._ground
        self._seen = time.monotonic()
        async with asyncio.TaskGroup() as self._tasks:
            self._teller = Teller(ground, self._own, self._when_open)
            self._slots = Slots(ground.folder, ground.arguments, self._on_stage, self._tasks)
            self._begun = True
            try:
                await self._adopt()
                await self._remember_gates()
                await ground.bus.subscribe(ground.subjects.heartbeats, self._on_heartbeat)
                await ground.bus.subscribe(ground.subjects.events_of("actor"), self._on_actor)
                await ground.bus.subscribe(ground.subjects.traffics, self._on_traffic)
                desk = Desk(ground, self._slots, lambda: self._world, self._feed)
                await desk.open()
                self._page = await self._make_page(desk)
                background = [
                    self._tasks.create_task(ground.registry.keep(">", self._on_registry, self._on_registration)),
                    self._tasks.create_task(self._teller.keep_gates(lambda: self._world.doors)),
                    self._tasks.create_task(self._tick()),
                ]
                if self._page is not None:
                    await self._page.open()
                    background.append(self._tasks.create_task(self._page.keep()))
                if ground.embedded is not None:
                    background.append(self._tasks.create_task(ground.embedded.keep()))
                # Only now, when all that runs is known: with the bus there, what does not run is started.
                ground.bus.on_lost(lambda: self._feed(events.Bus(up=False)))
                ground.bus.on_back(self._on_back)
                self._feed(events.Bus(up=ground.bus.connected))
                await self._over.wait()
                if ground.bus.connected:
                    await self._teller.write_gates(self._world.doors)
                await _cancelled(background)
                await self._slots.stop_parents()
            finally:
                self._slots.close()
                if self._page is not None:
                    await self._page.close(ended=self._world.lives.over)

    async def _make_page(self, desk: Desk) -> "Page | None":
        """Make the page, if there is to be one; without it neither it nor its HTTP server is loaded."""
        if self._ground.listener is None:
            return None
        from supervisor import metrics
        from supervisor.dashboard import token
        from supervisor.dashboard.page import Page

        secret = await asyncio.to_thread(token.have, self._ground.folder.token_file)
        log.info("the page is at %s", self._ground.record.dashboard)
        page = Page(
            self._ground, self._cluster, self._ground.listener, secret, desk, self._teller, self._ledger, self._own
        )
        page.server.add("GET", "/metrics", lambda request: metrics.answer(request, self._sources()))
        return page

    def _sources(self) -> "Sources":
        """All that Prometheus is told."""
        from supervisor.metrics import Sources

        return Sources(
            world=self._world,
            ledger=self._ledger,
            counts=self._counts,
            bus=self._ground.bus,
            started=self._started,
        )

    async def _adopt(self) -> None:
        """Take over what an earlier supervisor left running, and end what is in no cast any more."""
        for slot, record in (await asyncio.to_thread(self._ground.folder.slots)).items():
            spec = self._specs.get(slot)
            if spec is None or spec.external:
                if (stray := await spawner.adopt(record.pid, record.start_time)) is not None:
                    why = "is in the cast no more" if spec is None else "is for another manager to start now"
                    log.warning("%s %s; it is ended", short(slot, record.generation), why)
                    self._own(spawner.end(stray, self._grace))
            elif (running := await self._slots.adopt(spec)) is not None:
                generation, age = running.record.generation, max(0.0, time.time() - running.record.started)
                log.info("%s runs on (pid %d), adopted", short(slot, generation), running.process.pid)
                self._feed(acts.Adopted(slot, generation, age, running.record.restarts, running.record.reason))
                self._own(self._await_end(slot, generation))

    async def _remember_gates(self) -> None:
        """Go on from the gates as last written; where nothing was adopted, a cluster begins anew."""
        goes_on = bool(self._slots.running) or self.external
        for alias in self._world.doors:
            there = await self._ground.gates.get(alias)
            if there is not None:
                with contextlib.suppress(msgspec.DecodeError):
                    written = codec.from_json(there[0], Gate)
                    self._world = world.remember(self._world, alias, written, goes_on=goes_on)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run in the background; a failure there is a failure of the supervisor, told and not swallowed."""
        self._tasks.create_task(work)

    def _feed(self, event: world.Event) -> None:
        """Let the deciders take in an event, and carry out what they command."""
        now = time.monotonic()
        if now - self._seen > LATE:
            log.debug("late by %.1f s ourselves; leases start anew", now - self._seen)
            self._seen = now
            self._feed(roster.Late())
        self._seen = now
        lives = self._world.lives
        self._world, commands = world.step(self._world, event, now)
        for command in commands:
            self._do(command)
        if self._page is not None and (commands or not isinstance(event, events.Tick | roster.Beat)):
            self._page.changed()
        if self._world.lives is not lives or isinstance(event, events.Tick | events.Bus):
            self._set_wake(now)
        if self._world.lives.over:
            self._over.set()

    def _do(self, command: world.Command) -> None:
        """Carry out one command."""
        match command:
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
            case acts.Note():
                self._counts.note(command, self._world.lives.slots[command.slot])
                self._teller.note(command, self._world, self._slots.running.get(command.slot))
            case roster.Look(slot, generation):
                self._own(self._look(slot, generation))
            case roster.Peek(slot, generation):
                self._own(self._peek(slot, generation))
            case world.WriteGate(gate, what):
                self._world = world.stamp(self._world, gate.alias, time.time())
                self._teller.gate(gate, what)

    def _set_wake(self, now: float) -> None:
        """Have the deciders woken when the next thing is due, if that is before the next tick."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        due = restart.next_wake(self._world.lives)
        if due < now + TICK:
            delay = max(0.001, due - now)
            self._wake = asyncio.get_running_loop().call_later(delay, self._feed, events.Tick())

    async def _tick(self) -> None:
        trimmed = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            self._feed(events.Tick())
            if time.monotonic() - trimmed > TRIM_EVERY:
                trimmed = time.monotonic()
                await asyncio.to_thread(self._slots.trim_logs, self._log_bytes)

    # Processes.

    async def _start(self, slot: str) -> None:
        """Claim a generation and start its process; without the bus there is no generation, and no start."""
        spec, life = self._specs[slot], self._world.lives.slots[slot]
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
        held = await self._cards.clear(self._specs[slot], lambda: self._world.lives.ending != "no")
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

    # The bus.

    def _on_back(self) -> None:
        self._feed(events.Bus(up=True))
        self._own(self._renew())

    async def _renew(self) -> None:
        """Make anew what a server that lost its store would lack."""
        try:
            await self._ground.renew()
        except BusError as error:
            log.warning("%s", error)
        self._teller.gates_changed.set()

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
        life = self._world.lives.slots.get(slot)
        running = self._slots.running.get(slot)
        if life is None or life.spec.external:
            return
        if life.phase is Phase.STARTING or registration.host != socket.gethostname():
            return
        if running is None or running.record.generation > registration.generation:
            ground, generation = self._ground, registration.generation
            self._own(forget(ground.registry, ground.subjects, life.spec.role, slot, generation))

    def _on_stage(self, slot: str, stage: Stage) -> None:
        if stage.stage == "start":
            self._feed(acts.Began(slot, stage.generation, stage.seconds))
        elif stage.stage == "download":
            self._feed(acts.Downloading(slot, stage.generation))
        self._teller.stage(slot, stage)
        if self._page is not None:
            self._page.changed()

    async def _on_actor(self, msg: Msg) -> None:
        """Take in what the actors of external slots say before they can register."""
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            event = codec.from_json(msg.data, Event)
            if event.of in self._specs and self._specs[event.of].external:
                state_ = State(event.what)
                if state_ not in (State.READY, State.DRAINING):
                    self._feed(acts.Seen(event.of, event.generation, state_))

    async def _ask_traffic(self, slot: str) -> None:
        """Have a processor tell what it has counted; one that cannot be asked now tells when there is something new."""
        with contextlib.suppress(BusError, ServiceError):
            await self._ground.bus.publish(self._ground.subjects.control(slot, "traffic"))

    async def _on_traffic(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            self._ledger.take(codec.from_msgpack(msg.data, Traffic), time.time())

    async def _on_heartbeat(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            beat = codec.from_json(msg.data, Heartbeat)
            self._feed(roster.Beat(beat))
            if (spec := self._specs.get(beat.slot)) is not None:
                self._counts.beat(beat, (spec.model, spec.role))


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: nats-py swallows a cancellation that meets it while it waits for an answer."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while (left := [task for task in tasks if not task.done()]) and time.monotonic() < deadline:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)


def _registration(key: str, value: bytes) -> Registration | None:
    if key.startswith("gen."):
        return None
    try:
        return codec.from_json(value, Registration)
    except msgspec.DecodeError as error:
        log.warning("registration %s cannot be read: %s", key, error)
        return None


def _jitter() -> float:
    return random.uniform(-1.0, 1.0)
