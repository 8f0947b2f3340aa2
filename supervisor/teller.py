"""Tells what happens: to the log, the event stream, the gates' bucket, and to whoever waits for a gate to open."""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from messages import codec
from messages.bus import BusError, ServiceError
from messages.gate import Gate
from messages.ids import short
from messages.lifecycle import Event, Stage
from messages.subjects import Topic
from supervisor.acts import Note
from supervisor.gate import Door
from supervisor.ground import Ground
from supervisor.slots import Running
from supervisor.state import ClusterRecord
from supervisor.world import World

log = logging.getLogger("troupe.supervisor")

RETRY: Final = 0.5
DOWNLOAD_SECONDS: Final = 5.0
"""How often it is said how far a download is."""

Own = Callable[[Coroutine[Any, Any, None]], None]
WhenOpen = Callable[[ClusterRecord, Gate], None]
GATE_WORDS: Final = {"opened": "open", "closed": "closed", "degraded": "open, degraded", "whole": "whole again"}


class Teller:
    """The voice of one supervisor; `own` runs what takes time in the background."""

    def __init__(self, ground: Ground, own: Own, when_open: WhenOpen) -> None:
        self._ground = ground
        self._own = own
        self._when_open = when_open
        self._opened: set[str] = set()
        self._downloads: dict[str, float] = {}
        self.gates_changed = asyncio.Event()

    def publish(self, topic: Topic, of: str, what: str, **more: Any) -> None:
        """Tell the event stream; while the bus is away the client buffers, within its bound."""
        event = Event(topic=topic, of=of, what=what, at=time.time(), **more)

        async def send() -> None:
            with contextlib.suppress(BusError, ServiceError):
                await self._ground.bus.publish(self._ground.subjects.event(topic, of), codec.to_json(event))

        self._own(send())

    def stage(self, slot: str, stage: Stage) -> None:
        """Tell of a stage of loading."""
        of = short(slot, stage.generation)
        log.debug("%s at %.1f s: %s %s", of, stage.seconds, stage.stage, stage.detail)
        if stage.stage == "download" and stage.seconds - self._downloads.get(of, -math.inf) >= DOWNLOAD_SECONDS:
            self._downloads[of] = stage.seconds
            log.info("%s downloads %s", of, stage.detail)
        detail = {"stage": stage.stage, "seconds": stage.seconds, "text": stage.detail}
        self.publish("actor", slot, "stage", generation=stage.generation, detail=detail)

    def note(self, note: Note, world: World, running: Running | None) -> None:
        """Tell what happened to a slot, with the figures that go with it."""
        text, detail = note.text, dict(note.detail)
        entry = world.roster.entries.get(note.slot)
        if note.what in ("ready", "standby") and entry is not None and running is not None and not running.adopted:
            spent = time.monotonic() - world.lives.slots[note.slot].started
            stages = {"process": spent - entry.registration.load_seconds} | entry.registration.stages
            shown = ", ".join(f"{name.replace('_', '-')} {length:.1f}" for name, length in stages.items())
            text = f"{note.what} after {spent:.1f} s ({shown})"
            detail |= {"seconds": round(spent, 3), "stages": entry.registration.stages}
            if "recovery" in detail:
                text += f", {detail['outage']:.1f} s after it died"
        elif note.what == "started" and running is not None:
            text = f"started (pid {running.process.pid}, {running.record.spawn})"
            detail |= {"pid": running.process.pid}
        about = {"slot": note.slot, "generation": note.generation}
        log.log(
            logging.WARNING if note.bad else logging.INFO, "%s %s", short(note.slot, note.generation), text, extra=about
        )
        more = {"generation": note.generation, "reason": note.reason, "planned": note.planned, "detail": detail}
        self.publish("restart", note.slot, note.what, **more)

    def gate(self, gate: Gate, what: str) -> None:
        """Tell that a gate has been decided anew; `keep_gates` writes it."""
        missing = "; ".join(f"{item.what} ({item.why})" for item in gate.missing)
        if what in GATE_WORDS:
            level = logging.INFO if gate.open and not gate.degraded else logging.WARNING
            log.log(level, "gate of %s %s%s", gate.model, GATE_WORDS[what], f": missing {missing}" if missing else "")
        self.publish("gate", gate.alias, what, reason=missing, detail={"epoch": gate.epoch, "open": gate.open})
        if what == "opened":
            self._opened.add(gate.alias)
        self.gates_changed.set()

    async def keep_gates(self, doors: Callable[[], dict[str, Door]]) -> None:
        """Keep the bucket as decided; what could not be written is written when the bus is back. Run it as a task."""
        while True:
            await self.gates_changed.wait()
            self.gates_changed.clear()
            await self.write_gates(doors())

    async def write_gates(self, doors: dict[str, Door]) -> None:
        """Write every gate that the bucket has otherwise, and announce what has opened once that is done."""
        for alias, door in doors.items():
            if door.gate is None:
                continue
            try:
                there = await self._ground.gates.get(alias)
                if there is None or json.loads(there[0]).get("epoch") != door.gate.epoch:
                    await self._ground.gates.put(alias, codec.to_json(door.gate))
            except (BusError, ValueError) as error:
                log.warning("the gate of %s could not be written: %s", door.model, error)
                if self._ground.bus.connected:
                    asyncio.get_running_loop().call_later(RETRY, self.gates_changed.set)
                continue
            if alias in self._opened and door.gate.open:
                self._opened.discard(alias)
                self._when_open(self._ground.record, door.gate)
