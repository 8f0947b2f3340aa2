"""Drain a slot as its operator would: it finishes what it has and stops, and is brought back by a restart."""

from messages.ids import short
from supervisor.drills.faults.fault import MissedError, SlotFault
from supervisor.drills.history import Happened
from supervisor.drills.observer import Waited


class Drain(SlotFault):
    """What `troupe drain` does."""

    name = "drain"
    held = True

    async def inject(self) -> None:
        """Ask the supervisor."""
        await self.stage.order("drain", self.slot)

    async def verify(self) -> str:
        """See it stop by its own will."""
        observer, seconds = self.stage.observer, self.stage.specs[self.slot].drain_deadline + 10.0
        try:
            await observer.until(lambda: bool(self._stops()), seconds, f"{self.slot} stopped")
        except Waited as missed:
            raise MissedError(str(missed)) from None
        [stopped, *_] = self._stops()
        return f"{short(self.slot, self.generation)} stopped: {stopped.reason or 'drained'}"

    def _stops(self) -> list[Happened]:
        events = self.stage.observer.events("restart", self.slot, "stopped")
        return [event for event in events if event.generation == self.generation]

    async def heal(self) -> str:
        """Have it started again, if it was stopped."""
        if not self._stops():
            return f"{self.slot} was not stopped, so it needs no start"
        await self.stage.order("restart", self.slot)
        return f"troupe restart {self.slot}"
