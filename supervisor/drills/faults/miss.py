"""The control: strikes a bystander of its own in the place of the slot, which a drill must notice."""

import asyncio
import contextlib

from supervisor.drills.faults.kill import Kill


class Miss(Kill):
    """SIGKILL to a process that has nothing to do with the cluster."""

    name = "miss"

    async def inject(self) -> None:
        """Start a bystander, and kill that."""
        bystander = await asyncio.create_subprocess_exec("sleep", "60")
        with contextlib.suppress(ProcessLookupError):
            bystander.kill()
        await bystander.wait()
