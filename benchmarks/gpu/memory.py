"""Free memory of a GPU over time, by NVML: sampled in a task, looked up by wall-clock time."""

import asyncio
import bisect
import contextlib
import time
from collections.abc import AsyncIterator

from supervisor import nvml

PERIOD = 0.05
MIB = 1 << 20


class Memory:
    """Samples of how many MiB are free on one GPU; of none where there is no GPU."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._free: list[int] = []

    def add(self, free: int) -> None:
        """Note how many bytes are free now."""
        self._times.append(time.time())
        self._free.append(free // MIB)

    def at(self, when: float) -> int | None:
        """MiB that were free then, by the last sample before it."""
        place = bisect.bisect_right(self._times, when) - 1
        return self._free[place] if place >= 0 else None

    def most(self, begin: float, end: float) -> int | None:
        """The most MiB that were free between two moments."""
        first, last = bisect.bisect_left(self._times, begin), bisect.bisect_right(self._times, end)
        return max(self._free[first:last], default=None)

    def least(self, begin: float, end: float) -> int | None:
        """The fewest MiB that were free between two moments."""
        first, last = bisect.bisect_left(self._times, begin), bisect.bisect_right(self._times, end)
        return min(self._free[first:last], default=None)


@contextlib.asynccontextmanager
async def watched(gpu: int) -> AsyncIterator[Memory]:
    """Sample a GPU, by its index on this machine, while the block runs."""
    memory, gpus = Memory(), nvml.find()

    async def sample() -> None:
        while gpus is not None:
            memory.add(await asyncio.to_thread(gpus.free, gpu))
            await asyncio.sleep(PERIOD)

    task = asyncio.create_task(sample())
    try:
        yield memory
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
