"""Restart a slot as its operator would: it finishes what it has, and its next generation takes over."""

from messages.ids import short
from supervisor.drills.faults.fault import PROOF_SECONDS, MissedError, SlotFault
from supervisor.drills.observer import Waited


class Restart(SlotFault):
    """What `troupe restart` does."""

    name = "restart"

    async def inject(self) -> None:
        """Ask the supervisor."""
        await self.stage.order("restart", self.slot)

    async def verify(self) -> str:
        """See it drain."""
        observer = self.stage.observer

        def drains() -> bool:
            events = observer.events("restart", self.slot, "draining", "stopped")
            return any(event.generation == self.generation and event.planned for event in events)

        try:
            await observer.until(drains, PROOF_SECONDS, f"{short(self.slot, self.generation)} drains")
        except Waited as missed:
            raise MissedError(str(missed)) from None
        return f"{short(self.slot, self.generation)} drains, and it is told as planned"
