"""Kill the supervisor: streams must not notice, and the next supervisor must find everybody and restart nobody."""

import asyncio
import signal

from messages import procfs
from supervisor import spawner
from supervisor.drills.faults.fault import PROOF_SECONDS, Fault, ImpossibleError, MissedError
from supervisor.drills.observer import Waited
from supervisor.spawner import Process

LOOK = 0.2


class SupervisorKill(Fault):
    """SIGKILL to the supervisor; healed by starting the next one on the same folder."""

    name = "supervisor_kill"
    held = True
    supervisor: Process
    struck = False

    async def aim(self) -> str:
        """Find the supervisor; on a cluster that runs already nobody but its owner could start the next one."""
        if self.stage.own is None:
            raise ImpossibleError("only the owner of a running cluster can start its next supervisor; use --config")
        pid = await asyncio.to_thread(self.stage.folder.holder)
        found = await asyncio.to_thread(procfs.process, pid) if pid else None
        supervisor = await spawner.adopt(found.pid, found.start_time) if found is not None else None
        if supervisor is None:
            raise ImpossibleError("no supervisor lives")
        self.supervisor = supervisor
        self.before = await asyncio.to_thread(self._lives)
        return f"kill the supervisor (pid {supervisor.pid})"

    async def inject(self) -> None:
        """Send it."""
        self.struck = True
        self.supervisor.signal(signal.SIGKILL)

    async def verify(self) -> str:
        """See that it is gone."""
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                await self.supervisor.wait_alone()
        except TimeoutError:
            raise MissedError(f"the supervisor (pid {self.supervisor.pid}) is as alive as before") from None
        return f"pid {self.supervisor.pid} is gone"

    async def heal(self) -> str:
        """Start the next supervisor."""
        assert self.stage.own is not None
        if not self.struck:
            return "the supervisor was not struck"
        await self.stage.own.up()
        return "troupe up on the same folder"

    async def recovered(self, seconds: float) -> None:
        """Wait until the next supervisor answers and has everybody ready; see that nobody was started anew."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    status = await self.stage.status()
                    if status is not None and status.supervisor != self.supervisor.pid:
                        if all(slot.state in ("ready", "standby") for slot in status.slots) and self.stage.whole():
                            break
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise Waited(f"not within {seconds:g} s: the next supervisor has everybody ready") from None
        after = await asyncio.to_thread(self._lives)
        if after != self.before:
            changed = [slot for slot in after if after[slot] != self.before.get(slot)]
            raise Waited(f"the next supervisor has started anew what ran: {', '.join(changed)}")

    def _lives(self) -> dict[str, tuple[int, int]]:
        return {slot: (record.pid, record.generation) for slot, record in self.stage.folder.slots().items()}
