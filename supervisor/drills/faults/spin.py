"""Block a slot's event loop: it computes and does nothing else. Only the simulated engine does so on demand."""

import asyncio
from typing import Final

from messages import codec, procfs
from messages.bus import BusError, ServiceError, SilentError
from messages.ids import short
from messages.lifecycle import Control
from messages.subjects import Subjects
from supervisor.drills.faults.fault import ImpossibleError, MissedError, SlotFault
from supervisor.drills.observer import Waited

SECONDS: Final = 5.0
PING_SECONDS: Final = 1.0
PROOF_SECONDS: Final = 3.0
BUSY: Final = 0.1
"""CPU seconds that a blocked loop must have burnt; beside a ping's time it has `PROOF_SECONDS` for that."""


class Spin(SlotFault):
    """The control verb `fault`, which only a configuration with `drills: allowed` has."""

    name = "spin"
    _refused = ""

    async def aim(self) -> str:
        """See that the engine can show it."""
        if self.stage.model.engine != "simulated":
            raise ImpossibleError("SGLang's engine does not spin on demand; the simulated one does")
        await super().aim()
        return f"block the loop of {short(self.slot, self.generation)} for {self.step.seconds or SECONDS:g} s"

    async def inject(self) -> None:
        """Ask for it; the answer comes when it is over, so it is not waited for."""
        self._cpu = await self._spent()
        asked = codec.to_json(Control(fault="spin", seconds=self.step.seconds or SECONDS, generation=self.generation))
        bus = self.stage.observer.bus
        try:
            await bus.request(self._subject("fault"), asked, timeout=0.1)
            self._refused = "the actor answered at once"
        except SilentError:
            pass
        except (ServiceError, BusError) as error:
            self._refused = str(error)

    async def verify(self) -> str:
        """See that it answers nobody, and burns the CPU meanwhile."""
        who = short(self.slot, self.generation)
        if self._refused:
            raise MissedError(f"{who} does not spin: {self._refused}")
        try:
            await self.stage.observer.bus.request(self._subject("ping"), timeout=PING_SECONDS)
        except SilentError:
            pass
        except (ServiceError, BusError) as error:
            raise MissedError(f"{who} does not spin: {error}") from None
        else:
            raise MissedError(f"{who} answers a ping, so its loop is not blocked")
        # On a machine that is short of CPU it takes a while until it has had its share.
        now = asyncio.get_running_loop().time
        until = now() + PROOF_SECONDS
        while (burnt := await self._spent() - self._cpu) < BUSY:
            if now() >= until:
                raise MissedError(f"{who} has burnt only {burnt:.2f} s of CPU, so it does not spin")
            await asyncio.sleep(0.1)
        return f"{who} answers no ping and has burnt {burnt:.1f} s of CPU"

    async def recovered(self, seconds: float) -> None:
        """Wait until it is heard again, or its next generation is ready."""
        observer, now = self.stage.observer, asyncio.get_running_loop().time()

        def heard() -> bool:
            return observer.heard_at.get(self.slot, 0.0) > now and self.stage.whole()

        try:
            await observer.until(heard, seconds, f"{self.slot} heard again, and the gate whole")
        except Waited:
            await super().recovered(0.0)

    def _subject(self, verb: str) -> str:
        return Subjects(self.stage.record.cluster).control(self.slot, verb)

    async def _spent(self) -> float:
        found = await asyncio.to_thread(procfs.process, self.process.pid)
        return found.cpu_seconds if found is not None else 0.0
