"""What a slot's start and end need of its GPUs: its share of what is free, CPUs near them, and their memory back."""

import asyncio
import logging
from collections.abc import Callable

from messages.ids import short
from supervisor import gpus, nvml
from supervisor.nvml import Gpus
from supervisor.spec import Spec

log = logging.getLogger("troupe.gpus")


class Cards:
    """The GPUs of this supervisor's slots; where the machine cannot be asked, slots start as they would without it."""

    def __init__(self, asked: Gpus | None) -> None:
        self._asked = asked
        self._cards = {card.index: card for card in asked.cards()} if asked is not None else {}
        self._before: dict[str, dict[int, int]] = {}

    async def arguments(self, spec: Spec) -> list[str]:
        """Say what an actor about to be started is told of its GPUs."""
        if not spec.gpus:
            return []
        told = ["--gpus", ",".join(map(str, spec.gpus))]
        free = self._before[spec.slot] = await self._free(spec)
        if spec.share is not None:
            parts = [gpus.fraction(spec.share, self._cards[at].total, free[at]) for at in free] or [spec.share]
            told += ["--memory-fraction", f"{min(parts):.4f}"]
        return told

    def bind(self, spec: Spec, pid: int, generation: int) -> None:
        """Bind a process that has just been started to the CPUs near its GPUs, where the machine tells which."""
        near = frozenset[int]().union(*(self._cards[at].cpus for at in spec.gpus if at in self._cards))
        if spec.near_cpus and near and (bound := nvml.bind(pid, near)):
            log.info("%s is bound to the %d CPUs near its GPUs", short(spec.slot, generation), len(bound))

    async def clear(self, spec: Spec, give_up: Callable[[], bool]) -> str:
        """Wait until the memory that a dead life had is free; return nothing, or who holds it after the deadline."""
        if self._asked is None:
            return ""
        before = self._before.get(spec.slot, {})
        wanted = {
            at: gpus.wanted(spec.share, self._cards[at].total, before.get(at)) for at in spec.gpus if at in self._cards
        }
        return await nvml.cleared(self._asked, wanted, give_up)

    async def _free(self, spec: Spec) -> dict[int, int]:
        asked = self._asked
        if asked is None:
            return {}
        try:
            return {at: await asyncio.to_thread(asked.free, at) for at in spec.gpus if at in self._cards}
        except Exception as error:  # pynvml's errors have no name where it is not installed
            log.warning("%s: its GPUs cannot be asked: %s: %s", spec.slot, type(error).__name__, error)
            return {}
