"""The life of an actor, once for all roles: start, load, register, be ready, drain, end with a reason.

A role says what it loads, what it registers and what it does while ready; the states, the bus, the registration,
the heartbeats, the control verbs, the signals and the exit are here. Read `run`, then `_live`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import ClassVar, Final, NoReturn

import anyio
import msgspec
import uvloop
from anyio.abc import TaskGroup
from msgspec import Struct
from nats.aio.msg import Msg

from messages import codec, procfs
from messages.bus import Bucket, Bus, BusError, ServiceError, TakenError, error_headers
from messages.config import Cluster, Model, Nats, Part
from messages.ids import Role, Slot, incarnation_of, short
from messages.lifecycle import (
    HEARTBEAT_PERIOD,
    TRANSITIONS,
    Answer,
    Control,
    Event,
    Exit,
    ExitNote,
    Heartbeat,
    Registration,
    Stage,
    StageName,
    State,
)
from messages.subjects import Subjects, last_token

log = logging.getLogger("troupe.actor")

BUS_WAIT: Final = 60.0
CLOSE_SECONDS: Final = 5.0


class Ending(Exception):
    """The actor must end, with this exit code and for this reason."""

    def __init__(self, code: Exit, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Setup(Struct, frozen=True, kw_only=True):
    """All that an actor is told at its start; `folder` is its slot's own, `http_port` a processor's alone."""

    cluster: Cluster
    model: Model
    part: Part
    slot: Slot
    generation: int
    nats: Nats
    folder: Path
    http_port: int = 0


class Actor(ABC):
    """One life of a slot. A role overrides the methods from `load` to `control`; the rest is the same for all."""

    role: ClassVar[Role]

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cluster = setup.cluster
        self.model = setup.model
        self.part = setup.part
        self.slot = str(setup.slot)
        self.generation = setup.generation
        self.incarnation = incarnation_of(self.slot, setup.generation)
        self.http_port = setup.http_port
        self.subjects = Subjects(setup.cluster.cluster)
        self.state = State.STARTING
        self.bus: Bus
        self.registry: Bucket
        self.gates: Bucket
        self.tasks: TaskGroup
        self._began = time.monotonic()
        self._loaded: float | None = None
        self._stages: dict[str, float] = {}
        self._revision = 0
        self._noted = False
        self._terminations = 0
        self._terminated: asyncio.Event
        self._aborted: asyncio.Event

    # What a role says of itself.

    def load(self) -> None:
        """Load what the role needs, blocking, with no event loop running. Raises Ending."""
        return

    async def warm_up(self) -> None:
        """Do once what the first request would else pay for. Raises Ending."""
        return

    @abstractmethod
    def registration(self) -> Registration:
        """Return what is registered; start from `self.plain_registration()`."""

    @abstractmethod
    async def open(self) -> None:
        """Subscribe to the work; called once, after registering, before ready is announced."""

    @abstractmethod
    async def drain(self) -> None:
        """Take nothing new, finish what is there; the caller applies the deadline."""

    async def abort(self) -> None:
        """End what is left at once, each with its error; called when a drain takes too long or is cut short."""
        return

    async def close(self) -> None:
        """Free what the role holds."""
        return

    def heartbeat(self) -> Heartbeat:
        """Return the heartbeat; start from `self.plain_heartbeat()`."""
        return self.plain_heartbeat()

    async def control(self, verb: str, asked: Control) -> str:
        """Carry out a control verb of the role's own; return a word on it. Raises ServiceError."""
        raise ServiceError(400, f"{self.role} has no control verb {verb!r}")

    # The life itself.

    def run(self) -> int:
        """Live from start to end, blocking; return the exit code, which `exit.json` explains."""
        try:
            code, reason = self._run()
        except Ending as ending:
            code, reason = ending.code, ending.reason
        except KeyboardInterrupt:
            code, reason = Exit.OK, "interrupted while starting"
        except Exception as error:
            log.exception("failed")
            code, reason = Exit.INTERNAL, f"{type(error).__name__}: {error}"
        (log.info if code == Exit.OK else log.error)("exit %d: %s", code, reason)
        self._note_exit(code, reason)
        return int(code)

    def _run(self) -> tuple[Exit, str]:
        signal.signal(signal.SIGTERM, _stop_loading)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        uvloop.run(self._try_bus())
        signal.signal(signal.SIGALRM, _load_too_long)
        signal.setitimer(signal.ITIMER_REAL, self.part.load_deadline or self.model.load_deadline)
        self.report("start", "")
        self.state = State.LOADING
        self.load()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return uvloop.run(self._live())

    async def _try_bus(self) -> None:
        """See that the bus is there and fit for us before minutes go into loading; leave no socket behind."""
        bus = await self._connect()
        try:
            await bus.require_jetstream()
            if self.model.context_length and (needs := self.model.context_length * 8) > bus.max_payload:
                raise Ending(
                    Exit.BUS,
                    f"NATS takes messages of {bus.max_payload} bytes, but a context of {self.model.context_length} "
                    f"tokens needs {needs}; raise max_payload there",
                )
            await self._publish_state(bus, State.LOADING, "")
        except BusError as error:
            raise Ending(Exit.BUS, str(error)) from None
        finally:
            await bus.close()

    async def _connect(self) -> Bus:
        try:
            return await Bus.connect(self.setup.nats, name=self.incarnation, wait=BUS_WAIT)
        except BusError as error:
            raise Ending(Exit.BUS, str(error)) from None

    async def _live(self) -> tuple[Exit, str]:
        self._terminated = asyncio.Event()
        self._aborted = asyncio.Event()
        self.take_signals()
        self.bus = await self._connect()
        ending = Ending(Exit.OK, "drained")
        try:
            async with anyio.create_task_group() as self.tasks:
                await self._become_ready()
                await self._terminated.wait()
                ending = await self._wind_down()
                self.tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            ending = _cause(group)
        await self._end(ending)
        return ending.code, ending.reason

    async def _become_ready(self) -> None:
        self.report("warm_up", "")
        await self.warm_up()
        self.registry = await self.bus.bucket(self.subjects.registry_bucket)
        self.gates = await self.bus.bucket(self.subjects.gate_bucket)
        await self.change(State.REGISTERING)
        await self._register()
        await self.bus.subscribe(self.subjects.controls(self.slot), self._on_control)
        await self.open()
        await self.bus.announce(f"troupe-{self.role}", {"slot": self.slot, "generation": str(self.generation)})
        await self.bus.flush()
        await self.change(State.READY)
        self.bus.on_lost(self._on_bus_lost)
        self.bus.on_back(lambda: self.own(self._register))
        self.own(self._beat)
        self.own(self._watch_generation)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stage_lengths().items())
        log.info("ready after %.1f s (%s)", self._loading_seconds(), stages)

    async def _wind_down(self) -> Ending:
        """Drain within the deadline; a second SIGTERM, or the deadline, aborts what is left."""
        await self.change(State.DRAINING)
        deadline = self.part.drain_deadline
        drained = asyncio.ensure_future(self.drain())
        cut = asyncio.ensure_future(self._aborted.wait())
        await asyncio.wait({drained, cut}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if drained.done():
            drained.result()
            return Ending(Exit.OK, "drained")
        await _cancelled(drained)
        await self.abort()
        if self._aborted.is_set():
            return Ending(Exit.ABORTED, "a second SIGTERM cut the drain short")
        return Ending(Exit.DRAIN_DEADLINE, f"not drained within {deadline:g} s; what was left has been aborted")

    async def _end(self, ending: Ending) -> None:
        """Leave in good order, however we got here; each step is bounded and none can stop the others."""
        state = State.STOPPED if ending.code == Exit.OK else State.FAILED
        self._note_exit(ending.code, ending.reason)
        for step in (self._leave_registry, lambda: self.change(state, ending.reason), self.close, self.bus.close):
            try:
                async with asyncio.timeout(CLOSE_SECONDS if self.bus.connected else 1.0):
                    await step()
            except Exception as error:
                log.debug("while ending: %s", error)

    async def change(self, state: State, reason: str = "") -> None:
        """Go to another state: the one place where it changes, checks the table and tells the world."""
        if state not in TRANSITIONS[self.state]:
            if state in (State.STOPPED, State.FAILED):
                state = State.FAILED
            else:
                raise AssertionError(f"{self.slot} cannot go from {self.state} to {state}")
        self.state = state
        if state is State.READY:
            self._loaded = time.monotonic()
        if state in (State.READY, State.DRAINING):
            await self._update_registration()
        await self._publish_state(self.bus, state, reason)

    async def _publish_state(self, bus: Bus, state: State, reason: str) -> None:
        event = Event(
            topic="actor",
            of=self.slot,
            what=state,
            at=time.time(),
            generation=self.generation,
            reason=reason,
            planned=self._terminations > 0,
            detail={"stages": self.stage_lengths()} if state == State.READY else {},
        )
        await bus.publish(self.subjects.event("actor", self.slot), codec.to_json(event))

    # Registration: compare-and-set throughout, so that an older life can never overwrite a newer one.

    def plain_registration(self) -> Registration:
        """What every role registers."""
        return Registration(
            slot=self.slot,
            role=self.role,
            generation=self.generation,
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            model=self.model.name,
            alias=self.model.slug,
            capacity=self.part.capacity,
            load_seconds=round(self._loading_seconds(), 3),
            stages=self.stage_lengths(),
            started=time.time(),
        )

    async def _register(self) -> None:
        key = self.subjects.registration_key(self.role, self.slot)
        value = codec.to_json(self.registration())
        try:
            newest = await self.registry.get(self.subjects.generation_key(self.slot))
            if newest is not None and int(newest[0]) > self.generation:
                raise Ending(Exit.REGISTER, f"{self.slot} is at generation {int(newest[0])} by now; this life is over")
            there = await self.registry.get(key)
            if there is None:
                self._revision = await self.registry.create(key, value)
                return
            other = codec.from_json(there[0], Registration)
            if other.generation > self.generation:
                raise Ending(Exit.REGISTER, f"{short(self.slot, other.generation)} is registered; this life is over")
            self._revision = await self.registry.update(key, value, there[1])
        except TakenError:
            raise Ending(Exit.REGISTER, f"somebody else registered {self.slot} at the same moment") from None
        except (BusError, msgspec.DecodeError) as error:
            raise Ending(Exit.REGISTER, f"cannot register {self.slot}: {error}") from None

    async def _update_registration(self) -> None:
        key = self.subjects.registration_key(self.role, self.slot)
        try:
            self._revision = await self.registry.update(key, codec.to_json(self.registration()), self._revision)
        except TakenError:
            raise Ending(Exit.REGISTER, f"the registration of {self.slot} was taken away") from None

    async def _leave_registry(self) -> None:
        if self._revision:
            with contextlib.suppress(TakenError):
                await self.registry.delete(self.subjects.registration_key(self.role, self.slot), self._revision)

    async def _watch_generation(self) -> None:
        """End as soon as a newer life of this slot is about to start."""
        newest = asyncio.Event()

        def see(value: bytes | None) -> None:
            if value is not None and int(value) > self.generation:
                newest.set()

        key = self.subjects.generation_key(self.slot)
        self.own(lambda: self.registry.keep(key, lambda all: see(all.get(key)), lambda _, value: see(value)))
        await newest.wait()
        raise Ending(Exit.REGISTER, "a newer life of this slot has begun")

    # Background work.

    def own(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run in the background; an exception ends the actor (`Ending` with its own code), a return is its end."""

        async def owned() -> None:
            await work()

        self.tasks.start_soon(owned)

    def plain_heartbeat(self) -> Heartbeat:
        """What every role's heartbeat says."""
        return Heartbeat(
            slot=self.slot,
            generation=self.generation,
            state=self.state,
            capacity=self.part.capacity,
            cpu_seconds=round(time.process_time(), 3),
            rss_bytes=procfs.rss_bytes(),
        )

    def tick(self) -> None:
        """Do what a role must look after twice a second. Raises Ending."""
        return

    async def _beat(self) -> None:
        subject = self.subjects.heartbeat(self.role, self.slot)
        while True:
            self.tick()
            if self.bus.connected:
                await self.bus.publish(subject, codec.to_json(self.heartbeat()))
            await asyncio.sleep(HEARTBEAT_PERIOD)

    def _on_bus_lost(self) -> None:
        grace = self.setup.nats.grace

        async def wait() -> None:
            deadline = time.monotonic() + grace
            while (left := deadline - time.monotonic()) > 0:
                if self.bus.connected:
                    return
                await asyncio.sleep(min(left, 0.5))
            raise Ending(Exit.BUS_LOST, f"NATS has been away for {grace:g} s")

        self.own(wait)

    async def _on_control(self, msg: Msg) -> None:
        """Hand a verb to its own task, so that a slow one keeps no other waiting."""
        self.tasks.start_soon(self._answer_control, msg)

    async def _answer_control(self, msg: Msg) -> None:
        verb = last_token(msg.subject)
        try:
            asked = codec.from_json(msg.data, Control) if msg.data else Control()
            if asked.generation and asked.generation != self.generation:
                raise ServiceError(409, f"this is {short(self.slot, self.generation)}, not #{asked.generation}")
            message = await self._carry_out(verb, asked)
        except msgspec.DecodeError as error:
            await self._respond(msg, b"", error_headers(400, f"control {verb}: {error}"))
        except ServiceError as error:
            await self._respond(msg, b"", error_headers(error.code, error.message))
        else:
            answer = Answer(slot=self.slot, generation=self.generation, state=self.state, message=message)
            await self._respond(msg, codec.to_json(answer))

    async def _carry_out(self, verb: str, asked: Control) -> str:
        if verb == "ping":
            return "here"
        if verb == "drain":
            self.terminate()
            return "draining"
        if verb == "fault" and self.cluster.drills != "allowed":
            raise ServiceError(403, "drills are not allowed here; set `drills: allowed` in the configuration")
        return await self.control(verb, asked)

    async def _respond(self, msg: Msg, payload: bytes, headers: dict[str, str] | None = None) -> None:
        if msg.reply:
            await self.bus.publish(msg.reply, payload, headers=headers)

    # Signals, stages, exit.

    def take_signals(self) -> None:
        """Make SIGTERM ours; called again by engines that install handlers of their own."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.terminate)

    def terminate(self) -> None:
        """Drain; asked a second time, abort what is left."""
        self._terminations += 1
        (self._terminated if self._terminations == 1 else self._aborted).set()

    def report(self, stage: StageName, detail: str) -> None:
        """Note the begin of a stage of loading, and tell whoever reads the slot's pipe."""
        now = time.monotonic() - self._began
        self._stages[stage] = now
        line = codec.to_json(Stage(generation=self.generation, stage=stage, seconds=round(now, 3), detail=detail))
        with contextlib.suppress(OSError):
            pipe = os.open(self.setup.folder / "stages", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, line + b"\n")
            finally:
                os.close(pipe)

    def _loading_seconds(self) -> float:
        """How long this life took until it was ready, or has taken so far."""
        return (time.monotonic() if self._loaded is None else self._loaded) - self._began

    def stage_lengths(self) -> dict[str, float]:
        """How long each stage of loading took, in seconds; the last one until now while it goes on."""
        begins = list(self._stages.items())
        ends = [begin for _, begin in begins[1:]] + [self._loading_seconds()]
        return {name: round(end - begin, 3) for (name, begin), end in zip(begins, ends, strict=True)}

    def _note_exit(self, code: Exit, reason: str) -> None:
        """Say in `exit.json` why we end: a supervisor that is not our parent sees no exit code."""
        if self._noted:
            return
        self._noted = True
        path = self.setup.folder / "exit.json"
        with contextlib.suppress(OSError):
            spare = path.with_suffix(".new")
            spare.write_bytes(codec.to_json(ExitNote(generation=self.generation, code=int(code), reason=reason)))
            spare.replace(path)


async def _cancelled(task: "asyncio.Future[None]") -> None:
    """Cancel until it has ended: nats-py swallows a cancellation that meets it while it flushes."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while not task.done() and time.monotonic() < deadline:
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


def _stop_loading(signum: int, frame: object) -> NoReturn:
    raise Ending(Exit.OK, "stopped while loading")


def _load_too_long(signum: int, frame: object) -> NoReturn:
    raise Ending(Exit.LOAD_DEADLINE, "loading took longer than its deadline")


def _cause(group: BaseExceptionGroup[BaseException]) -> Ending:
    """Find out of what failed (nested groups included) why the actor ends: an ending if there is one."""
    failures = list(_flat(group))
    for failure in failures:
        if isinstance(failure, Ending):
            return failure
    log.error("failed", exc_info=failures[0])
    code = Exit.BUS_LOST if isinstance(failures[0], BusError) else Exit.INTERNAL
    return Ending(code, f"{type(failures[0]).__name__}: {failures[0]}")


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for failure in group.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            yield from _flat(failure)
        else:
            yield failure
