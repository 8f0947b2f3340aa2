"""What a fault is: how it is injected, how it is proven, how it is healed, and when all is well again."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from messages.ids import short
from supervisor import spawner
from supervisor.drills.plan import Step
from supervisor.drills.stage import Stage
from supervisor.spawner import Process

PROOF_SECONDS: Final = 5.0


class ImpossibleError(Exception):
    """This fault cannot be had on this cluster; the text says why. No failure of anybody."""


class MissedError(Exception):
    """The fault did not happen, so whatever the drill shows proves nothing."""


class Fault(ABC):
    """One fault, on one stage. `aim` comes first and harms nothing; `heal` always runs, also where `inject` failed.

    `lossy` says that messages may be lost on their way, `everywhere` that it hits every stream. `lasting` is what the
    cluster must get over by itself: it is taken back only once that has been seen, or has been waited for in vain.
    """

    name: ClassVar[str]
    lossy: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False
    lasting: ClassVar[bool] = False
    held: ClassVar[bool] = False
    """Whether it lasts until we take it back, for as many seconds as its step says."""
    proxied: ClassVar[bool] = False
    """Whether it needs a proxy before NATS."""
    holds_up: ClassVar[bool] = False
    """Whether what its slot has sent may arrive when its sender has long ended."""
    target: ClassVar[str] = ""
    """Whom it is for unless the drill says otherwise; empty for a fault that is for no slot."""

    def __init__(self, stage: Stage, step: Step, slot: str) -> None:
        self.stage = stage
        self.step = step
        self.slot = slot

    @abstractmethod
    async def aim(self) -> str:
        """See that it can be had here, and say in a sentence what it is about to hurt. Raises ImpossibleError."""

    @abstractmethod
    async def inject(self) -> None:
        """Do it."""

    @abstractmethod
    async def verify(self) -> str:
        """Prove that it happened; return the proof. Raises MissedError."""

    async def heal(self) -> str:
        """Take it back, as far as that is for us to do; return how."""
        return "nothing to take back: the cluster mends it itself"

    @abstractmethod
    async def recovered(self, seconds: float) -> None:
        """Wait until the cluster is whole again. Raises observer.Waited."""


class SlotFault(Fault):
    """A fault of one slot's process: the slot is whole again when its next generation is ready."""

    target = "busiest decode"
    generation = 0
    process: Process

    async def aim(self) -> str:
        """Find the slot's process, and hold on to it so that no other can be hit."""
        record = await self.stage.process(self.slot)
        process = await spawner.adopt(record.pid, record.start_time)
        if process is None:
            raise ImpossibleError(f"{self.slot} has no living process")
        self.process, self.generation = process, record.generation
        return f"{self.name} {short(self.slot, self.generation)} (pid {process.pid})"

    async def recovered(self, seconds: float) -> None:
        """Wait until the next generation is ready and the gate lacks nothing."""
        observer = self.stage.observer

        def back() -> bool:
            registration = observer.registry.get(self.slot)
            newer = registration is not None and registration.generation > self.generation
            back = registration is not None and registration.state in ("ready", "standby")
            return newer and back and self.stage.whole()

        await observer.until(back, seconds, f"{self.slot} ready again, and the gate whole")
