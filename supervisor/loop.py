"""The supervisor itself: feeds the deciders with what happens, and carries out what they command.

Read `run`, then `_feed`, then `_do`. Nothing here decides: what is heard from the bus, from processes and from the
clock becomes an event, and what the deciders answer becomes a process, a signal, a key or a line in the log.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bucket, Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.config import Cluster, Http, Nats
from messages.gate import Gate
from messages.ids import parse_slot, short
from messages.lifecycle import Event as EventMessage
from messages.lifecycle import Heartbeat, Registration, Stage
from messages.subjects import Subjects, Topic, last_token
from messages.supervise import Order, Said, Status
from supervisor import events, generations, report, restart, roster, spawner, state, world
from supervisor.nats_server import NatsServer
from supervisor.ports import Ports, base_url
from supervisor.restart import AT_REST, Phase
from supervisor.slots import Slots
from supervisor.spec import Spec
from supervisor.state import ClusterRecord, Folder
from supervisor.world import World

log = logging.getLogger("troupe.supervisor")

TICK: Final = 0.5
LATE: Final = 2 * TICK
"""Seconds between two events after which we were late ourselves: a tick is at most half of that away."""
BUS_WAIT: Final = 30.0
PING_SECONDS: Final = 2.0
ABORT_PAUSE: Final = 0.2
TRIM_EVERY: Final = 60.0

WhenOpen = Callable[[ClusterRecord, Gate], None]


class StrandedError(Exception):
    """The state folder belongs to another cluster whose processes still run."""


class Supervisor:
    """One supervisor of one host's slots."""

    def __init__(
        self, cluster: Cluster, specs: dict[str, Spec], config: Path, folder: Folder, when_open: WhenOpen
    ) -> None:
        self._cluster = cluster
        self._specs = specs
        self._config = config.resolve()
        self._folder = folder
        self._when_open = when_open
        self._subjects = Subjects(cluster.cluster)
        self._embedded = None if cluster.nats.urls else NatsServer(folder.nats, cluster.nats, cluster.cluster)
        self._nats = cluster.nats
        self._ports = Ports()
        self._world: World = world.begin(specs, time.monotonic(), grace=cluster.nats.grace)
        self._slots: Slots
        self._bus: Bus
        self._registry: Bucket
        self._gates: Bucket
        self._record: ClusterRecord
        self._tasks: asyncio.TaskGroup
        self._began = time.monotonic()
        self._seen = math.inf
        self._wake: asyncio.TimerHandle | None = None
        self._over: asyncio.Event
        self._gate_changed: asyncio.Event
        self._main: asyncio.Task[None] | None = None
        self._begun = False
        self._adopted: set[str] = set()
        self._opened: set[str] = set()

    async def run(self) -> None:
        """Run the cluster until it has been ended. The caller holds the folder.

        Raises ConfigError, PortError, NatsError, BusError or StrandedError where it cannot begin.
        """
        self._main = asyncio.current_task()
        self._over, self._gate_changed = asyncio.Event(), asyncio.Event()
        await asyncio.to_thread(self._check_folder)
        await asyncio.to_thread(self._take_ports)
        try:
            await self._open_bus()
            try:
                await self._watch_over()
            finally:
                await self._bus.close()
        finally:
            self._ports.close()
            if self._world.lives.over:
                await self._stop_embedded()
        await asyncio.to_thread(self._folder.cluster_file.unlink, missing_ok=True)

    def end(self) -> None:
        """End everything, front to back; called a second time, at once. Before anything has begun, just stop."""
        if not self._begun:
            if self._main is not None:
                self._main.cancel()
            return
        again = self._world.lives.ending != "no"
        log.info("%s", "aborting what is left" if again else "ending: draining front to back (once more aborts)")
        self._slots.refuse_forks()
        self._feed(restart.End(abort=again))

    # Beginning.

    def _check_folder(self) -> None:
        """Refuse a folder in which another cluster's processes run; take those of our own as ours."""
        known = self._folder.cluster()
        living = [slot for slot, record in self._folder.slots().items() if spawner.lives(record)]
        if living and known is not None and (known.cluster, known.config) != (self._cluster.cluster, str(self._config)):
            raise StrandedError(
                f"{self._folder.root}: {', '.join(living)} still run, started from {known.config}; "
                "`troupe down` ends them, or use another --state"
            )

    def _anything_runs(self) -> bool:
        return any(spawner.lives(record) for record in self._folder.slots().values())

    def _take_ports(self) -> None:
        known = self._folder.cluster()
        for spec in self._specs.values():
            if spec.http is None or spec.alias in self._ports.of:
                continue
            living = any(
                spawner.lives(record)
                for slot, record in self._folder.slots().items()
                if (named := parse_slot(slot)).alias == spec.alias and named.role == "processor"
            )
            before = known.ports.get(spec.alias) if known is not None else None
            self._ports.take(spec.alias, spec.http, before, living)

    async def _open_bus(self) -> None:
        """Have a server, connect to it, and see that it is fit for us."""
        if self._embedded is not None:
            adopted = await self._embedded.start()
            self._nats = Nats(url=self._embedded.url, max_payload=self._cluster.nats.max_payload)
            how = "runs on" if adopted else "started"
            log.info("NATS server %s (pid %s) at %s", how, self._embedded.pid, self._embedded.url)
        try:
            self._bus = await Bus.connect(self._nats, name="supervisor", wait=BUS_WAIT)
            try:
                await self._bus.require_jetstream()
                await self._open_buckets()
            except BaseException:
                await self._bus.close()
                raise
        except BaseException:
            # Nothing of ours has been started yet; a server that others of ours depend on is left to them.
            if not await asyncio.to_thread(self._anything_runs):
                await self._stop_embedded()
            raise
        await asyncio.to_thread(self._write_record)

    async def _stop_embedded(self) -> None:
        if self._embedded is not None:
            await self._embedded.stop()

    async def _open_buckets(self) -> None:
        self._registry = await self._bus.bucket(self._subjects.registry_bucket)
        self._gates = await self._bus.bucket(self._subjects.gate_bucket)
        await self._bus.ensure_stream(self._subjects.event_stream, [self._subjects.events])

    def _write_record(self) -> None:
        doors: dict[str, Http] = {spec.alias: spec.http for spec in self._specs.values() if spec.http is not None}
        self._record = ClusterRecord(
            cluster=self._cluster.cluster,
            config=str(self._config),
            nats=self._nats,
            embedded=self._embedded is not None,
            http={alias: base_url(http, self._ports.of[alias]) for alias, http in doors.items()},
            models={spec.alias: spec.model for spec in self._specs.values() if spec.model},
            ports=self._ports.of,
            started=time.time(),
        )
        state.write(self._folder.cluster_file, self._record)

    # Running.

    async def _watch_over(self) -> None:
        arguments = ["--config", str(self._config), "--state", str(self._folder.root)]
        if self._embedded is not None:
            arguments += ["--nats", self._nats.urls[0]]
        self._seen = time.monotonic()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._slots = Slots(self._folder, arguments, self._on_stage, self._tasks)
                self._begun = True
                await self._adopt()
                await self._remember_gates()
                await self._bus.subscribe(self._subjects.heartbeats, self._on_heartbeat)
                await self._bus.subscribe(self._subjects.supervises, self._on_order)
                background = [
                    self._tasks.create_task(self._registry.keep(">", self._on_registry, self._on_registration)),
                    self._tasks.create_task(self._write_gates()),
                    self._tasks.create_task(self._tick()),
                ]
                if self._embedded is not None:
                    background.append(self._tasks.create_task(self._embedded.keep()))
                # Only now, when all that runs is known: with the bus there, what does not run is started.
                self._bus.on_lost(lambda: self._feed(events.Bus(up=False)))
                self._bus.on_back(self._on_back)
                self._feed(events.Bus(up=self._bus.connected))
                await self._over.wait()
                await self._last_gates()
                for task in background:
                    task.cancel()
                await self._slots.stop_parents()
        finally:
            if self._begun:
                self._slots.close()

    async def _adopt(self) -> None:
        """Take over what an earlier supervisor left running, and end what is in no cast any more."""
        for slot, record in (await asyncio.to_thread(self._folder.slots)).items():
            spec = self._specs.get(slot)
            if spec is None:
                if (stray := await spawner.adopt(record.pid, record.start_time)) is not None:
                    log.warning("%s is in the cast no more; it is ended", short(slot, record.generation))
                    self._own(spawner.end(stray, self._cluster.nats.grace))
            elif (running := await self._slots.adopt(spec)) is not None:
                generation, age = running.record.generation, max(0.0, time.time() - running.record.started)
                log.info("%s runs on (pid %d), adopted", short(slot, generation), running.process.pid)
                self._adopted.add(slot)
                self._feed(restart.Adopted(slot, generation, age, running.record.restarts, running.record.reason))
                self._own(self._await_end(slot, generation))

    async def _remember_gates(self) -> None:
        """Go on from the gates as last written; where nothing was adopted, a cluster begins anew."""
        goes_on = bool(self._slots.running)
        for alias in self._world.doors:
            there = await self._gates.get(alias)
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
        self._world, commands = world.step(self._world, event, now)
        for command in commands:
            self._do(command)
        self._set_wake(now)
        if self._world.lives.over:
            self._over.set()

    def _do(self, command: world.Command) -> None:
        """Carry out one command."""
        match command:
            case restart.Start(slot):
                self._own(self._start(slot))
            case restart.Terminate(slot, generation, abort):
                self._slots.signal(slot, generation, signal.SIGTERM)
                if abort:
                    asyncio.get_running_loop().call_later(
                        ABORT_PAUSE, self._slots.signal, slot, generation, signal.SIGTERM
                    )
            case restart.Kill(slot, generation):
                self._slots.kill(slot, generation)
            case restart.Forget(slot, generation):
                role = self._specs[slot].role
                self._own(generations.forget(self._registry, self._subjects, role, slot, generation))
            case restart.Note():
                self._note(command)
            case roster.Look(slot, generation):
                self._own(self._look(slot, generation))
            case world.WriteGate(gate, what):
                self._tell_gate(gate, what)
                self._gate_changed.set()

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
                await asyncio.to_thread(self._slots.trim_logs)

    # Processes.

    async def _start(self, slot: str) -> None:
        """Claim a generation and start its process; without the bus there is no generation, and no start."""
        spec, life = self._specs[slot], self._world.lives.slots[slot]
        known = await asyncio.to_thread(state.read, self._folder.slot(slot) / "process.json", state.ProcessRecord)
        used = max(life.generation, known.generation if known is not None else 0)
        more = ["--http-port", str(self._ports.of[spec.alias])] if spec.http is not None else []
        try:
            generation = await generations.claim(self._registry, self._subjects, slot, used)
        except BusError as error:
            self._feed(restart.StartFailed(slot, str(error), _jitter(), excuse="bus"))
            return
        try:
            await self._slots.start(spec, generation, more, life.restarts, life.reason)
        except (spawner.SpawnError, OSError) as error:
            self._feed(restart.StartFailed(slot, str(error), _jitter()))
            return
        self._feed(restart.Started(slot, generation))
        await self._await_end(slot, generation)

    async def _await_end(self, slot: str, generation: int) -> None:
        await self._slots.running[slot].process.wait_alone()
        # Told at once: those who send it work look at the registry.
        self._feed(restart.Gone(slot, generation))
        code, reason = await self._slots.ended(slot)
        self._feed(restart.Exited(slot, generation, code, reason, _jitter()))

    async def _look(self, slot: str, generation: int) -> None:
        """Look at a slot whose lease is over: at its process first, and if that seems well ask the actor."""
        running = self._slots.running.get(slot)
        found = await running.process.state() if running is not None else None
        answer: Any = "unasked"
        if found is not None and found not in "TZX" and self._bus.connected:
            try:
                await self._bus.request(self._subjects.control(slot, "ping"), timeout=PING_SECONDS)
                answer = "answered"
            except NobodyThereError:
                answer = "nobody"
            except SilentError:
                answer = "silent" if self._bus.connected else "unasked"
            except ServiceError:
                answer = "answered"
            except BusError:
                answer = "unasked"
        self._feed(roster.Looked(slot, generation, found, answer))

    def _on_stage(self, slot: str, stage: Stage) -> None:
        detail = {"stage": stage.stage, "seconds": stage.seconds, "text": stage.detail}
        log.debug("%s at %.1f s: %s %s", short(slot, stage.generation), stage.seconds, stage.stage, stage.detail)
        self._publish("actor", slot, "stage", generation=stage.generation, detail=detail)

    # The bus.

    def _on_back(self) -> None:
        self._feed(events.Bus(up=True))
        self._own(self._renew())

    async def _renew(self) -> None:
        """Make anew what a server that lost its store would lack."""
        try:
            await self._open_buckets()
        except BusError as error:
            log.warning("%s", error)
        self._gate_changed.set()

    def _on_registry(self, whole: dict[str, bytes]) -> None:
        """Compare the registry with what runs: a registration of ours that has no process is deleted."""
        found = [registration for key, value in whole.items() if (registration := _registration(key, value))]
        self._feed(roster.Whole({registration.slot: registration for registration in found}))
        for registration in found:
            self._check(registration)

    def _on_registration(self, key: str, value: bytes | None) -> None:
        if value is None:
            if not key.startswith("gen."):
                self._feed(roster.Unregistered(last_token(key)))
        elif registration := _registration(key, value):
            self._feed(roster.Registered(registration))
            self._check(registration)

    def _check(self, registration: Registration) -> None:
        slot = registration.slot
        life = self._world.lives.slots.get(slot)
        running = self._slots.running.get(slot)
        if life is None or life.phase is Phase.STARTING or registration.host != socket.gethostname():
            return
        if running is None or running.record.generation > registration.generation:
            role, generation = life.spec.role, registration.generation
            self._own(generations.forget(self._registry, self._subjects, role, slot, generation))

    async def _on_heartbeat(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            self._feed(roster.Beat(codec.from_json(msg.data, Heartbeat)))

    async def _write_gates(self) -> None:
        """Keep the bucket as decided; what could not be written is written when the bus is back."""
        while True:
            await self._gate_changed.wait()
            self._gate_changed.clear()
            await self._write_gates_once()

    async def _write_gates_once(self) -> None:
        for alias, door in list(self._world.doors.items()):
            if door.gate is None:
                continue
            try:
                there = await self._gates.get(alias)
                if there is None or json.loads(there[0]).get("epoch") != door.gate.epoch:
                    await self._gates.put(alias, codec.to_json(door.gate))
                if alias in self._opened and door.gate.open:
                    self._opened.discard(alias)
                    self._when_open(self._record, door.gate)
            except (BusError, ValueError) as error:
                log.warning("the gate of %s could not be written: %s", door.model, error)
                if self._bus.connected:
                    asyncio.get_running_loop().call_later(TICK, self._gate_changed.set)

    async def _last_gates(self) -> None:
        if self._bus.connected:
            await self._write_gates_once()

    def _tell_gate(self, gate: Gate, what: str) -> None:
        now = time.time()
        self._world = world.stamp(self._world, gate.alias, now)
        missing = "; ".join(f"{item.what} ({item.why})" for item in gate.missing)
        if what != "changed":
            level = logging.INFO if what in ("opened", "whole") else logging.WARNING
            text = {"opened": "open", "closed": "closed", "degraded": "open, degraded", "whole": "whole again"}[what]
            log.log(level, "gate of %s %s%s", gate.model, text, f": missing {missing}" if missing else "")
        self._publish("gate", gate.alias, what, reason=missing, detail={"epoch": gate.epoch, "open": gate.open})
        if what == "opened":
            self._opened.add(gate.alias)

    def _note(self, note: restart.Note) -> None:
        """Write what happened to a slot to the log, and tell it to the event stream."""
        text, detail = note.text, {}
        entry = self._world.roster.entries.get(note.slot)
        running = self._slots.running.get(note.slot)
        if note.what == "ready" and entry is not None and note.slot not in self._adopted:
            spent = time.monotonic() - self._world.lives.slots[note.slot].started
            stages = {"process": spent - entry.registration.load_seconds} | entry.registration.stages
            shown = ", ".join(f"{name.replace('_', '-')} {length:.1f}" for name, length in stages.items())
            text = f"ready after {spent:.1f} s ({shown})"
            detail = {"seconds": round(spent, 3), "stages": entry.registration.stages}
        elif note.what == "started" and running is not None:
            self._adopted.discard(note.slot)
            text = f"started (pid {running.process.pid}, {running.record.spawn})"
            detail = {"pid": running.process.pid}
        log.log(logging.WARNING if note.bad else logging.INFO, "%s %s", short(note.slot, note.generation), text)
        self._publish(
            "restart",
            note.slot,
            note.what,
            generation=note.generation,
            reason=note.reason,
            planned=note.planned,
            detail=detail,
        )

    def _publish(self, topic: Topic, of: str, what: str, **more: Any) -> None:
        """Tell the event stream; while the bus is away the client buffers, within its bound."""
        event = EventMessage(topic=topic, of=of, what=what, at=time.time(), **more)

        async def send() -> None:
            with contextlib.suppress(BusError, ServiceError):
                await self._bus.publish(self._subjects.event(topic, of), codec.to_json(event))

        self._own(send())

    # The command line.

    async def _on_order(self, msg: Msg) -> None:
        """Answer the command line; an order for a slot that is not ours is for another supervisor to answer."""
        if not msg.reply:
            return
        order = last_token(msg.subject)
        try:
            asked = codec.from_json(msg.data, Order) if msg.data else Order()
        except msgspec.DecodeError:
            return
        if order == "status":
            await self._bus.publish(msg.reply, codec.to_json(self.status()))
        elif order in ("drain", "restart") and asked.slot in self._specs:
            await self._bus.publish(msg.reply, codec.to_json(self._carry_out(order, asked.slot)))

    def _carry_out(self, order: str, slot: str) -> Said:
        life = self._world.lives.slots[slot]
        if self._world.lives.ending != "no":
            return Said(done=False, message="the cluster is being ended")
        if order == "drain" and life.phase in AT_REST:
            return Said(done=False, message=f"{slot} is {life.phase} already")
        self._feed(restart.Ask(slot, "drain" if order == "drain" else "restart"))
        verb = "drains, and stays stopped then" if order == "drain" else "drains, and is started again then"
        if life.phase in AT_REST or life.phase is Phase.WAITING:
            verb = "is started" if order == "restart" else "stays stopped"
        return Said(done=True, message=f"{short(slot, life.generation)} {verb}")

    def status(self) -> Status:
        """Report how everything stands."""
        now = time.monotonic()
        found = report.of_world(self._world, self._slots.running, self._record, now)
        found.supervisor = os.getpid()
        found.uptime = round(now - self._began, 1)
        found.nats_up = self._bus.connected
        found.nats_pid = self._embedded.pid if self._embedded is not None else None
        return found


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


__all__ = ["StrandedError", "Supervisor", "WhenOpen"]
