"""Kill a slot: SIGKILL to its whole process group, as a machine out of memory would."""

import asyncio

from messages.ids import short
from supervisor.drills.faults.fault import PROOF_SECONDS, MissedError, SlotFault


class Kill(SlotFault):
    """SIGKILL to the actor and all of its group."""

    name = "kill"

    async def inject(self) -> None:
        """Send it."""
        self.process.kill()

    async def verify(self) -> str:
        """See that the process is gone."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                await self.process.wait_alone()
        except TimeoutError:
            who = short(self.slot, self.generation)
            raise MissedError(f"{who} (pid {self.process.pid}) is as alive as before") from None
        return f"pid {self.process.pid} is gone"
