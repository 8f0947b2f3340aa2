"""Kill the NATS server: SIGKILL to the embedded one, which its supervisor starts again on the same port and store."""

import asyncio
import signal
import time

from supervisor import spawner
from supervisor.drills.faults.fault import PROOF_SECONDS, Fault, ImpossibleError, MissedError
from supervisor.drills.observer import Waited
from supervisor.drills.stage import StageError
from supervisor.spawner import Process


class BusFault(Fault):
    """A fault of the NATS server: all is well when everybody has been heard again, and nobody was started anew."""

    lossy = True
    everywhere = True
    server: Process
    injected = 0.0
    losses = 0

    async def aim(self) -> str:
        """Find the embedded server's process."""
        try:
            record = await self.stage.nats()
        except StageError as error:
            raise ImpossibleError(str(error)) from None
        server = await spawner.adopt(record.pid, record.start_time)
        if server is None:
            raise ImpossibleError("the NATS server does not run")
        self.server = server
        self.losses = self.stage.observer.losses
        self.before = {slot: self.stage.observer.generation(slot) for slot in self.stage.observer.registry}
        return f"{self.name}: the NATS server (pid {server.pid}), and with it every connection"

    async def recovered(self, seconds: float) -> None:
        """Wait until every slot is heard again."""
        observer, struck = self.stage.observer, self.injected

        def heard() -> bool:
            slots = self.before
            return observer.bus.connected and all(observer.heard_at.get(slot, 0.0) > struck for slot in slots)

        await observer.until(lambda: heard() and self.stage.whole(), seconds, "every slot heard again over NATS")


class BusKill(BusFault):
    """SIGKILL to the embedded NATS server."""

    name = "bus_kill"

    async def inject(self) -> None:
        """Send it."""
        self.server.signal(signal.SIGKILL)

    async def verify(self) -> str:
        """See that it is gone, and that a connection broke."""
        observer, losses = self.stage.observer, self.losses
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                await self.server.wait_alone()
                # What is heard from here on was said through the next server.
                self.injected = time.monotonic()
                await observer.until(
                    lambda: observer.losses > losses, PROOF_SECONDS, "the observer's connection broken"
                )
        except Waited as missed:
            raise MissedError(f"the NATS server (pid {self.server.pid}) is gone, but {missed}") from None
        except TimeoutError:
            raise MissedError(f"the NATS server (pid {self.server.pid}) is as alive as before") from None
        return f"pid {self.server.pid} is gone, and the observer's own connection broke"
