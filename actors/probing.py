"""Health probes: the smallest possible request to one's own engine, whenever it has been idle for long enough.

Life of a probe: begun by the actor's tick when there has been no work for `idle` seconds, on one DP rank after the
other; given up the moment real work comes, so that neither waits for the other; told in the heartbeats when it has been
answered, has failed, or has had no answer within its deadline. What follows from that is the supervisor's to decide.

Its deadline counts only the time in which this actor itself ran: one that was stopped, or starved, proves nothing about
its engine.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from actors.engines.engine import Engine, EngineDiedError, ProbeError
from messages.config import Probe
from messages.lifecycle import Probed

log = logging.getLogger("troupe.probe")

AWAKE: Final = 1.0
"""Seconds between two ticks, at most, that count as time in which the actor ran: it ticks twice a second."""
AGAIN: Final = 2.0
"""Seconds after which a probe that failed is repeated, before anybody draws conclusions from it."""


class Prober:
    """The probes of one engine with so many DP ranks; `busy` says whether it has real work."""

    def __init__(
        self,
        engine: Engine,
        ranks: int,
        config: Probe,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._ranks = ranks
        self._config = config
        self._busy = busy
        self._clock = clock
        self._ticked = clock()
        self._idle = 0.0
        self._task: asyncio.Task[None] | None = None
        self._rank = 0
        self._awake = 0.0
        self._at = 0.0
        self._last: Probed | None = None
        self._failures = 0
        self._silent = False

    def tick(self) -> None:
        """Begin a probe if it is time for one, or see whether one that is under way takes too long."""
        now = self._clock()
        passed, self._ticked = min(now - self._ticked, AWAKE), now
        if not self._config.enabled or self._busy():
            self._idle = 0.0
        elif self._task is not None:
            self._awake += passed
            if self._awake >= self._config.deadline and not self._silent:
                self._silent = True
                self._failures += 1
                within = f"{self._config.deadline:g} s"
                self._note("silent", self._awake, f"no answer from DP rank {self._rank} within {within}")
        else:
            self._idle += passed
            if self._idle >= (min(AGAIN, self._config.idle) if self._failures else self._config.idle):
                self._idle = self._awake = 0.0
                self._silent = False
                self._task = asyncio.get_running_loop().create_task(self._probe())
                self._task.add_done_callback(self._done)

    def work_came(self) -> None:
        """Give up a probe that is under way: it must not stand in the way of real work, nor wait behind it.

        A bad result is withdrawn with it: what becomes of real work is the better evidence from now on.
        """
        self._idle = 0.0
        if self._failures:
            self._failures, self._last = 0, None
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()

    def told(self) -> Probed | None:
        """Say how the last probe went, for a heartbeat; None before the first one."""
        if self._last is not None:
            self._last.age = round(self._clock() - self._at, 1)
        return self._last

    async def close(self) -> None:
        """End what is under way."""
        self.work_came()

    async def _probe(self) -> None:
        began = self._clock()
        for rank in range(self._ranks):
            self._rank, self._awake = rank, 0.0
            await self._engine.probe(rank)
        self._failures = 0
        self._note("ok", self._clock() - began, "")

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._task is not task:
            return
        self._task = None
        if isinstance(error, ProbeError | EngineDiedError):
            self._failures += 1
            self._note("failed", 0.0, f"DP rank {self._rank}: {error}")
        elif error is not None:
            log.error("a health probe failed in a way of its own", exc_info=error)
            self._failures += 1
            self._note("failed", 0.0, f"DP rank {self._rank}: {type(error).__name__}: {error}")

    def _note(self, result: str, seconds: float, message: str) -> None:
        self._at = self._clock()
        self._last = Probed(result=result, seconds=round(seconds, 3), failures=self._failures, message=message[:300])
        if message:
            log.warning("health probe %s: %s", result, message)
