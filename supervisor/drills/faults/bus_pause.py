"""Pause the NATS server: SIGSTOP for some seconds. Connections stay open, and nothing moves on them."""

import asyncio
import signal
import time

from supervisor.drills.faults.bus_kill import BusFault
from supervisor.drills.faults.fault import PROOF_SECONDS, MissedError


class BusPause(BusFault):
    """SIGSTOP to the embedded NATS server, and SIGCONT when the pause is over."""

    name = "bus_pause"
    held = True

    async def inject(self) -> None:
        """Send it."""
        self.server.signal(signal.SIGSTOP)

    async def verify(self) -> str:
        """See the process in state T."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                while (state := await self.server.state()) != "T":  # noqa: ASYNC110 (nobody announces it)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise MissedError(f"the NATS server (pid {self.server.pid}) runs on in state {state}") from None
        self.injected = time.monotonic()
        return f"pid {self.server.pid} is in state T (stopped) for {self.step.seconds:g} s"

    async def heal(self) -> str:
        """Let it go on."""
        self.server.signal(signal.SIGCONT)
        self.injected = time.monotonic()
        return f"SIGCONT to pid {self.server.pid}"
