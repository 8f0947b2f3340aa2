"""Kill only the process in which SGLang computes: its actor lives on, an engine less."""

import asyncio
import os
import signal
from pathlib import Path

from messages import procfs
from messages.ids import short
from supervisor import spawner
from supervisor.drills.faults.fault import PROOF_SECONDS, ImpossibleError, MissedError, SlotFault
from supervisor.spawner import Process


class EngineKill(SlotFault):
    """SIGKILL to SGLang's scheduler, and to no other."""

    name = "engine_kill"
    engine: Process

    async def aim(self) -> str:
        """Find the scheduler below the actor; the simulated engine has no process of its own."""
        if self.stage.model.engine == "simulated":
            raise ImpossibleError("the simulated engine has no process of its own: it lives and dies with its actor")
        await super().aim()
        pid = await asyncio.to_thread(_scheduler, self.process.pid)
        found = await asyncio.to_thread(procfs.process, pid) if pid else None
        engine = await spawner.adopt(found.pid, found.start_time) if found is not None else None
        if engine is None:
            raise ImpossibleError(f"no scheduler was found below {self.slot} (pid {self.process.pid})")
        self.engine = engine
        return f"kill the scheduler (pid {engine.pid}) of {short(self.slot, self.generation)}"

    async def inject(self) -> None:
        """Send it."""
        self.engine.signal(signal.SIGKILL)

    async def verify(self) -> str:
        """See that the scheduler is gone."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                await self.engine.wait_alone()
        except TimeoutError:
            raise MissedError(f"the scheduler of {self.slot} (pid {self.engine.pid}) is as alive as before") from None
        return f"scheduler pid {self.engine.pid} is gone, below actor pid {self.process.pid}"


def _scheduler(actor: int) -> int:
    for pid in procfs.descendants(actor):
        try:
            if b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getpgid(pid):
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0
