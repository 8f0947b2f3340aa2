"""The supervisor itself: feeds the deciders with what happens, and has carried out what they command.

Read `run`, then `_feed`, then `_do`. Nothing here decides: what is heard from the bus (`ears`), of processes (`hands`)
and from the clock becomes an event, and what the deciders answer becomes a process or a signal (`hands`), a key, or a
line in the log.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from messages import codec
from messages.bus import BusError
from messages.config import Cluster
from messages.gate import Gate
from messages.lifecycle import Stage
from supervisor import acts, events, restart, roster, world
from supervisor.cards import Cards
from supervisor.counts import Counts
from supervisor.desk import Desk
from supervisor.ears import Ears
from supervisor.ground import Ground
from supervisor.hands import Hands
from supervisor.lives import Lives
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
        self._hands: Hands
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
            self._hands = Hands(ground, self._specs, self._slots, self._cards, self._lives, self._feed, self._own)
            self._begun = True
            try:
                await self._hands.adopt(self._cluster.nats.grace)
                await self._remember_gates()
                ears = Ears(
                    ground, self._specs, self._slots, self._ledger, self._counts, self._lives, self._feed, self._own
                )
                await ears.open()
                desk = Desk(ground, self._slots, lambda: self._world, self._feed)
                await desk.open()
                self._page = await self._make_page(desk)
                background = [
                    self._tasks.create_task(ears.keep()),
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

    async def _remember_gates(self) -> None:
        """Go on from the gates as last written; where nothing was adopted, a cluster begins anew."""
        goes_on = bool(self._slots.running) or self.external
        for alias in self._world.doors:
            there = await self._ground.gates.get(alias)
            if there is not None:
                with contextlib.suppress(msgspec.DecodeError):
                    written = codec.from_json(there[0], Gate)
                    self._world = world.remember(self._world, alias, written, goes_on=goes_on)

    def _lives(self) -> Lives:
        return self._world.lives

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
            case acts.Note():
                self._counts.note(command, self._world.lives.slots[command.slot])
                self._teller.note(command, self._world, self._slots.running.get(command.slot))
            case world.WriteGate(gate, what):
                self._world = world.stamp(self._world, gate.alias, time.time())
                self._teller.gate(gate, what)
            case _:
                self._hands.do(command)

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
                await asyncio.to_thread(self._slots.trim_logs, self._cluster.logs.max_bytes)

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

    def _on_stage(self, slot: str, stage: Stage) -> None:
        if stage.stage == "start":
            self._feed(acts.Began(slot, stage.generation, stage.seconds))
        elif stage.stage == "download":
            self._feed(acts.Downloading(slot, stage.generation))
        self._teller.stage(slot, stage)
        if self._page is not None:
            self._page.changed()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: nats-py swallows a cancellation that meets it while it waits for an answer."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while (left := [task for task in tasks if not task.done()]) and time.monotonic() < deadline:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
