"""The life of an actor, once for all roles: start, load, register, be ready, drain, end with a reason.

A role says what it loads, what it registers and what it does while ready; the states, the bus, the registration,
the heartbeats, the control verbs, the signals and the exit are here. Read `run`, then `_live`.
"""

import asyncio
import contextlib
import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final, NoReturn

import anyio
import uvloop
from anyio.abc import TaskGroup
from msgspec import Struct

from actors import account, garbage
from actors.controls import Controls, set_level
from actors.ending import Ending, cancelled, cause_of, note_exit
from actors.lifeline import check_payload, connect, until_back
from actors.registrar import Registrar
from actors.setup import Setup
from actors.stages import Stages
from messages import codec
from messages.bus import Bucket, Bus, BusError, ServiceError
from messages.ids import Role, incarnation_of
from messages.lifecycle import (
    HEARTBEAT_PERIOD,
    TRANSITIONS,
    Control,
    Exit,
    Heartbeat,
    Registration,
    StageName,
    State,
)
from messages.subjects import Subjects

log = logging.getLogger("troupe.actor")

CLOSE_SECONDS: Final = 5.0


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
        self.stages = Stages(setup.folder / "stages", setup.generation)
        self._registrar: Registrar | None = None
        self._turn = asyncio.Lock()
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

    async def stand_by(self) -> None:
        """Begin what has to be looked after from registering on, work or none; called once."""
        return

    @abstractmethod
    async def open(self) -> None:
        """Subscribe to the work; called once, after `stand_by`, before ready is announced."""

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

    def ping(self, asked: Control) -> str:
        """Say that we are here, and where the ping names a request, that it is ours (ServiceError 404 if not)."""
        return "here"

    async def control(self, verb: str, asked: Control) -> str | Struct:
        """Carry out a control verb of the role's own; return a word on it, or an answer whole. Raises ServiceError."""
        raise ServiceError(400, f"{self.role} has no control verb {verb!r}")

    # The life itself.

    def run(self) -> int:
        """Live from start to end, blocking; return the exit code, which `exit.json` explains."""
        try:
            ending = self._run()
        except Ending as early:
            ending = early
        except Exception as error:
            log.exception("failed")
            ending = Ending(Exit.INTERNAL, f"{type(error).__name__}: {error}")
        (log.info if ending.code == Exit.OK else log.error)("exit %d: %s", ending.code, ending.reason)
        note_exit(self.setup.folder, self.generation, ending)
        return int(ending.code)

    def _run(self) -> Ending:
        signal.signal(signal.SIGTERM, _stop_loading)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        uvloop.run(self._try_bus())
        signal.signal(signal.SIGALRM, _load_too_long)
        self._begin_load_deadline()
        self.stages.report("start", "")
        self.state = State.LOADING
        self.load()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return uvloop.run(self._live())

    def report(self, stage: StageName, detail: str) -> None:
        """Tell of a stage of loading; while bytes of a download still come, the load deadline begins anew."""
        if stage == "download":
            self._begin_load_deadline()
        self.stages.report(stage, detail)

    def _begin_load_deadline(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.part.load_deadline or self.model.load_deadline)

    async def _try_bus(self) -> None:
        """See that the bus is there and fit for us before minutes go into loading; leave no socket behind."""
        bus = await connect(self.setup.nats, self.incarnation)
        try:
            await bus.require_jetstream()
            check_payload(bus, self.model.context_length or 0)
            await self._publish_state(bus, State.LOADING, "")
        except BusError as error:
            raise Ending(Exit.BUS, str(error)) from None
        finally:
            await bus.close()

    async def _live(self) -> Ending:
        self._terminated = asyncio.Event()
        self._aborted = asyncio.Event()
        self.take_signals()
        self.bus = await connect(self.setup.nats, self.incarnation)
        ending = Ending(Exit.OK, "drained")
        try:
            async with anyio.create_task_group() as self.tasks:
                await self._become_ready()
                await self._terminated.wait()
                ending = await self._wind_down()
                self.tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            ending = cause_of(group)
        await self._end(ending)
        return ending

    async def _become_ready(self) -> None:
        self.stages.report("warm_up", "")
        await self.warm_up()
        if self._terminated.is_set():
            raise Ending(Exit.OK, "stopped while loading")
        garbage.settle()
        check_payload(self.bus, self.registration().context_length)
        self.registry = await self.bus.bucket(self.subjects.registry_bucket)
        self.gates = await self.bus.bucket(self.subjects.gate_bucket)
        self._registrar = registrar = Registrar(
            self.registry,
            self.subjects,
            self.role,
            self.slot,
            self.generation,
            self.registration,
            restores=self.part.spawn == "external",
        )
        self.stages.report("register", "")
        await self.change(State.REGISTERING)
        await registrar.register()
        controls = Controls(self.bus, self.tasks, self.slot, self.generation, lambda: self.state, self._carry_out)
        await self.bus.subscribe(self.subjects.controls(self.slot), controls.take)
        await self.stand_by()
        await self.bus.announce(f"troupe-{self.role}", {"slot": self.slot, "generation": str(self.generation)})
        if self.part.understudies:
            # Whoever of them works is told so: an actor cannot know how many others do.
            await self.bus.flush()
            async with self._turn:
                # The call may come before our own write has been answered.
                await self.change(State.STANDBY)
        else:
            await self.open()
            await self.bus.flush()
            await self.change(State.READY)
        self.bus.on_lost(self._on_bus_lost)
        self.bus.on_back(lambda: self.own(registrar.restore))
        self.own(self._beat)
        self.own(registrar.watch)
        if self.part.spawn == "external":
            self.own(registrar.keep)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.lengths.items())
        log.info("%s after %.1f s (%s)", self.state, self.stages.total, stages)

    async def _promote(self) -> str:
        """Go to work in the place of one that is gone. Raises ServiceError where there is no going.

        Whoever was taken for dead meanwhile has lost its registration, and ends (`Registrar.update`): so nobody works
        whom the others take for gone.
        """
        async with self._turn:
            if self.state is State.READY:
                return "at work already"
            if self.state is not State.STANDBY or self._terminations:
                raise ServiceError(503, f"{self.slot} is {'ending' if self._terminations else self.state}")
            assert self._registrar is not None
            await self.change(State.REGISTERING)
            await self._registrar.update()
            await self.open()
            # Should NATS be gone in the middle of it: subscriptions and registration are made good when it is back.
            with contextlib.suppress(BusError):
                await self.bus.flush()
            await self.change(State.READY)
        log.info("at work: stands in for one that is gone")
        return "at work"

    async def _wind_down(self) -> Ending:
        """Drain within the deadline; a second SIGTERM, or the deadline, aborts what is left."""
        async with self._turn:
            await self.change(State.DRAINING)
        deadline = self.part.drain_deadline
        drained = asyncio.ensure_future(self.drain())
        cut = asyncio.ensure_future(self._aborted.wait())
        await asyncio.wait({drained, cut}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if drained.done():
            drained.result()
            return Ending(Exit.OK, "drained")
        await cancelled(drained, CLOSE_SECONDS)
        await self.abort()
        if self._aborted.is_set():
            return Ending(Exit.ABORTED, "a second SIGTERM cut the drain short")
        return Ending(Exit.DRAIN_DEADLINE, f"not drained within {deadline:g} s; what was left has been aborted")

    async def _end(self, ending: Ending) -> None:
        """Leave in good order, however we got here; each step is bounded and none can stop the others."""
        state = State.STOPPED if ending.code == Exit.OK else State.FAILED
        note_exit(self.setup.folder, self.generation, ending)
        leave = self._registrar.leave if self._registrar is not None else _nothing
        for step in (leave, lambda: self.change(state, ending.reason), self.close, self.bus.close):
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
        if state in (State.READY, State.STANDBY):
            self.stages.end()
        if state in (State.READY, State.STANDBY, State.DRAINING) and self._registrar is not None:
            await self._registrar.update()
        await self._publish_state(self.bus, state, reason)

    async def _publish_state(self, bus: Bus, state: State, reason: str) -> None:
        event = account.change(self.setup, state, self.stages, reason=reason, planned=self._terminations > 0)
        await bus.publish(self.subjects.event("actor", self.slot), codec.to_json(event))

    def plain_registration(self) -> Registration:
        """What every role registers."""
        return account.registration(self.setup, self.state, self.stages)

    # Background work.

    def own(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run in the background; an exception ends the actor (`Ending` with its own code), a return is its end."""

        async def owned() -> None:
            await work()

        self.tasks.start_soon(owned)

    def plain_heartbeat(self) -> Heartbeat:
        """What every role's heartbeat says."""
        return account.heartbeat(self.setup, self.state, self.bus)

    def tick(self) -> None:
        """Do what a role must look after twice a second. Raises Ending."""
        return

    async def _beat(self) -> None:
        subject = self.subjects.heartbeat(self.role, self.slot)
        while True:
            self.tick()
            if self.bus.connected:
                with contextlib.suppress(BusError):
                    await self.bus.publish(subject, codec.to_json(self.heartbeat()))
            await asyncio.sleep(HEARTBEAT_PERIOD)

    def _on_bus_lost(self) -> None:
        self.own(lambda: until_back(self.bus, self.setup.nats.grace))

    async def _carry_out(self, verb: str, asked: Control) -> str | Struct:
        if verb == "ping":
            return self.ping(asked)
        if verb == "drain":
            self.terminate()
            return "draining"
        if verb == "promote":
            return await self._promote()
        if verb == "log-level":
            return set_level(asked.level)
        if verb == "exit":
            self.own(lambda: _exit(asked.reason))
            return "exits"
        if verb == "fault" and self.cluster.drills != "allowed":
            raise ServiceError(403, "drills are not allowed here; set `drills: allowed` in the configuration")
        return await self.control(verb, asked)

    # Signals.

    def take_signals(self) -> None:
        """Make SIGTERM ours; called again by engines that install handlers of their own."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.terminate)

    def terminate(self) -> None:
        """Drain; asked a second time, abort what is left."""
        self._terminations += 1
        (self._terminated if self._terminations == 1 else self._aborted).set()


async def _nothing() -> None:
    return


async def _exit(reason: str) -> NoReturn:
    raise Ending(Exit.ABORTED, f"told to exit: {reason or 'no reason given'}")


def _stop_loading(signum: int, frame: object) -> NoReturn:
    raise Ending(Exit.OK, "stopped while loading")


def _load_too_long(signum: int, frame: object) -> NoReturn:
    raise Ending(Exit.LOAD_DEADLINE, "loading took longer than its deadline")
