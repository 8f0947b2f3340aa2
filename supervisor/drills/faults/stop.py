"""Stop a slot: SIGSTOP, as a debugger or a machine that swaps itself to death would. It lives, and does nothing."""

import asyncio
import signal

from messages import procfs
from messages.ids import short
from supervisor.drills.faults.fault import PROOF_SECONDS, MissedError, SlotFault

LOOK = 0.01


class Stop(SlotFault):
    """SIGSTOP to the actor."""

    name = "stop"
    lasting = True
    _pid = 0

    async def inject(self) -> None:
        """Send it."""
        self._pid = self.process.pid
        self.process.signal(signal.SIGSTOP)

    async def verify(self) -> str:
        """See the process in state T, or gone already because its supervisor was quicker than we."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                while (state := await self._state()) not in ("T", None, "Z"):  # noqa: ASYNC110 (nobody announces it)
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise MissedError(
                f"{short(self.slot, self.generation)} (pid {self._pid}) runs on in state {state}"
            ) from None
        if state in (None, "Z"):
            return f"pid {self._pid} was stopped, and killed for it before we looked"
        return f"pid {self._pid} is in state {state} (stopped)"

    async def heal(self) -> str:
        """Let it go on, if it is still there."""
        if self.process.ended:
            return f"pid {self._pid or self.process.pid} has been killed and replaced; nothing to let go on"
        self.process.signal(signal.SIGCONT)
        return f"SIGCONT to pid {self.process.pid}"

    async def _state(self) -> str | None:
        found = await asyncio.to_thread(procfs.process, self._pid)
        return found.state if found is not None and found.start_time == self.process.start_time else None
