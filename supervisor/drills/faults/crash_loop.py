"""Kill a slot, and its next lives while they load, so often: each start must be tried again, and the last one holds."""

import asyncio
import signal
from typing import Final

from messages import procfs
from messages.ids import short
from supervisor import spawner
from supervisor.drills.faults.fault import MissedError, SlotFault
from supervisor.drills.history import Happened
from supervisor.drills.observer import Waited

TIMES: Final = 2
SECONDS: Final = 60.0


class CrashLoop(SlotFault):
    """SIGKILL to the actor, and to so many of its next lives before they are ready."""

    name = "crash_loop"

    async def inject(self) -> None:
        """Kill the life that there is."""
        self.process.kill()

    async def verify(self) -> str:
        """Kill each life that is started, and see it die before it was ready."""
        observer, wanted = self.stage.observer, self.step.times or TIMES
        struck: set[int] = set()
        while len(self._deaths()) < wanted:
            try:
                await observer.until(
                    lambda: bool(self._to_strike(struck)) or len(self._deaths()) >= wanted, SECONDS, "the next start"
                )
            except Waited as missed:
                raise MissedError(f"{self.slot}: {missed}") from None
            for event in self._to_strike(struck)[: max(0, wanted - len(struck))]:
                struck.add(event.generation)
                await self._strike(event)
            try:
                await observer.until(lambda: len(self._deaths()) >= len(struck), SECONDS, "its death told")
            except Waited as missed:
                raise MissedError(f"{self.slot}: {missed}") from None
        ready = [event.generation for event in observer.events("restart", self.slot, "ready")]
        if hit := struck.intersection(ready):
            raise MissedError(f"{self.slot} was ready as #{min(hit)} before it could be killed")
        told = ", ".join(short(self.slot, generation) for generation in sorted(struck))
        return f"pid {self.process.pid} is gone, and {told} died while loading"

    def _to_strike(self, struck: set[int]) -> list[Happened]:
        started = self.stage.observer.events("restart", self.slot, "started")
        return [event for event in started if event.generation > self.generation and event.generation not in struck]

    def _deaths(self) -> list[Happened]:
        died = self.stage.observer.events("restart", self.slot, "died")
        return [event for event in died if event.generation > self.generation]

    async def _strike(self, event: Happened) -> None:
        pid = int(event.detail.get("pid", 0))
        found = await asyncio.to_thread(procfs.process, pid) if pid else None
        process = await spawner.adopt(pid, found.start_time) if found is not None else None
        record = await self.stage.process(self.slot)
        if process is not None and record.pid == pid and record.generation == event.generation:
            process.signal(signal.SIGKILL)
