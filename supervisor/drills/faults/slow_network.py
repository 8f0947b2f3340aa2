"""Slow every actor's way from and to NATS by some milliseconds, as a network between machines, or a bad one, would."""

import time

from supervisor.drills.faults.bus_cut import proxy_of
from supervisor.drills.faults.fault import Fault, MissedError

MILLISECONDS = 50


class SlowNetwork(Fault):
    """The proxy passes on everything of every actor so many seconds late."""

    name = "slow_network"
    held = True
    everywhere = True
    proxied = True

    async def aim(self) -> str:
        """Find the proxy."""
        proxy_of(self.stage)
        return f"{1_000 * self._delay:.0f} ms more on the way from and to every actor"

    @property
    def _delay(self) -> float:
        return (self.step.times or MILLISECONDS) / 1_000

    async def inject(self) -> None:
        """Slow it."""
        slots = tuple(f"{slot}-g" for slot in self.stage.specs)
        self._hit = proxy_of(self.stage).slow(lambda name: name.startswith(slots), self._delay)

    async def verify(self) -> str:
        """Ping an actor, and see how long that takes now."""
        slot = next(iter(self.stage.observer.registry))
        began = time.monotonic()
        await self.stage.observer.bus.request(self.stage.subjects.control(slot, "ping"), timeout=10 + 4 * self._delay)
        took = time.monotonic() - began
        if not self._hit or took < 2 * self._delay:
            raise MissedError(f"a ping of {slot} takes {took:.3f} s, no longer than before")
        return f"{self._hit} connections are slowed: a ping of {slot} takes {took:.3f} s"

    async def heal(self) -> str:
        """Let everything through as before."""
        proxy_of(self.stage).mend()
        return "the proxy delays nothing any more"

    async def recovered(self, seconds: float) -> None:
        """See that nothing is missing, which it should never have been."""
        await self.stage.observer.until(self.stage.whole, seconds, "the gate open and nothing missing")
