"""Cut one slot off from NATS, as a pulled cable would: its connection stays open, and nothing goes through any more."""

import asyncio
import time
from typing import Final

from messages.ids import incarnation_of, short
from supervisor.drills.faults.fault import ImpossibleError, MissedError, SlotFault
from supervisor.drills.proxy import Proxy
from supervisor.drills.stage import Stage

SILENCE: Final = 1.6
"""Seconds without a heartbeat, of which there are two a second, that prove the cut."""
UNDER_WAY: Final = 0.5


def proxy_of(stage: Stage) -> Proxy:
    """Return the proxy that the drill's own cluster has before its NATS. Raises ImpossibleError where there is none."""
    if stage.own is None or stage.own.proxy is None:
        raise ImpossibleError("it needs a proxy before NATS, which only a cluster of the drill's own has; use --config")
    return stage.own.proxy


class BusCut(SlotFault):
    """The proxy passes nothing on for this one incarnation, and lets in no new connection of it."""

    name = "bus_cut"
    held = True
    lossy = True
    proxied = True
    holds_up = True
    _hit = 0
    _healed = 0.0

    async def aim(self) -> str:
        """Find the proxy, and the slot's connection through it."""
        proxy = proxy_of(self.stage)
        await super().aim()
        if not any(connection.name == self._name for connection in proxy.connections):
            raise ImpossibleError(f"{short(self.slot, self.generation)} has no connection through the proxy")
        return f"cut {short(self.slot, self.generation)} (pid {self.process.pid}) off from NATS"

    @property
    def _name(self) -> str:
        return incarnation_of(self.slot, self.generation)

    async def inject(self) -> None:
        """Cut it."""
        name = self._name
        self._hit = proxy_of(self.stage).cut(lambda other: other == name)
        self._struck = time.monotonic()

    async def verify(self) -> str:
        """See that no heartbeat comes, while others do."""
        await asyncio.sleep(SILENCE)
        observer, who = self.stage.observer, short(self.slot, self.generation)
        beat = observer.heard.get(self.slot)
        since = self._struck + UNDER_WAY
        ours = beat is not None and beat.generation == self.generation
        heard = ours and observer.heard_at[self.slot] > since
        others = any(at > since for slot, at in observer.heard_at.items() if slot != self.slot)
        if not self._hit or heard or not others:
            raise MissedError(f"{who} is heard as before" if heard else f"nobody is heard, not only {who}")
        return f"{self._hit} connection of {who} is cut: no heartbeat for {SILENCE:g} s, and others are heard"

    async def heal(self) -> str:
        """Let everything through again."""
        self._healed = time.monotonic()
        proxy = proxy_of(self.stage)
        proxy.mend()
        return f"the proxy lets everything through again; it had refused {proxy.held_back} connections"

    async def recovered(self, seconds: float) -> None:
        """Wait until the slot is heard again, in this life or its next."""
        observer, since = self.stage.observer, self._healed

        def back() -> bool:
            registration, beat = observer.registry.get(self.slot), observer.heard.get(self.slot)
            if registration is None or beat is None or registration.state != "ready":
                return False
            heard = observer.heard_at[self.slot] > since and beat.generation == registration.generation
            return heard and self.stage.whole()

        await observer.until(back, seconds, f"{self.slot} heard again, and the gate whole")
