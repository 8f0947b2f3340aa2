"""The verbs by which people handle an engine: pause and resume, flush, profile, sleep and wake. One at a time.

    at work --pause--> paused --resume--> at work
    at work --sleep--> asleep --wake----> at work       only an engine with nothing to do falls asleep

While it rests, what is under way stands still and what comes waits, each until its deadline; health probes wait, too,
and nobody takes it to hang, because its heartbeats say so. The same holds while a trace is recorded, except that work
goes on. A new life begins at work.
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from actors.engines.engine import Engine, VerbError
from messages.bus import ServiceError
from messages.lifecycle import Control

VERBS: Final = frozenset({"pause", "resume", "flush", "profile", "sleep", "wake"})
PROFILE_SECONDS: Final = 5.0
PROFILE_MOST: Final = 60.0
SETTLE_SECONDS: Final = 2.0
SETTLE_PAUSE: Final = 0.05


class Handling:
    """What an engine was told; `resting` is for the heartbeat. Traces go to `folder`."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._doing = ""
        self.resting = ""

    async def carry_out(self, verb: str, asked: Control, in_flight: int) -> str:
        """Do it and say what was done. Raises ServiceError: 409 for what does not fit now, 400 for what cannot be."""
        if self._doing:
            raise ServiceError(409, f"{verb}: {self._doing} is under way; ask again when it is over")
        self._doing = verb
        try:
            return await self._do(verb, asked, in_flight)
        except VerbError as error:
            raise ServiceError(409, f"{verb}: {error}") from None
        finally:
            self._doing = ""

    async def _do(self, verb: str, asked: Control, in_flight: int) -> str:
        match verb:
            case "pause":
                self._must_be("pause", "")
                await self._rest("paused")
                return f"paused, {in_flight} requests under way"
            case "resume":
                self._must_be("resume", "paused")
                await self._work()
                return "at work"
            case "flush":
                await self._settle(0.0 if in_flight else SETTLE_SECONDS)
                return "prefix cache is empty"
            case "profile":
                return await self._profile(asked.seconds or PROFILE_SECONDS)
            case "sleep":
                return await self._sleep(in_flight)
            case _:
                self._must_be("wake", "asleep")
                await self._engine.wake()
                await self._work()
                return "at work"

    def _must_be(self, verb: str, wanted: str) -> None:
        if self.resting != wanted:
            raise ServiceError(409, f"{verb}: it is {self.resting or 'at work'}, not {wanted or 'at work'}")

    async def _rest(self, how: str) -> None:
        self.resting = how
        try:
            await self._engine.pause()
        except BaseException:
            self.resting = ""
            raise

    async def _work(self) -> None:
        await self._engine.resume()
        self.resting = ""

    async def _sleep(self, in_flight: int) -> str:
        """Pause first, so that what comes meanwhile waits instead of finding the memory gone."""
        self._must_be("sleep", "")
        if in_flight:
            raise ServiceError(409, f"sleep: {in_flight} requests are under way")
        await self._settle(SETTLE_SECONDS)
        await self._rest("asleep")
        try:
            await self._engine.sleep()
        except BaseException:
            await self._work()
            raise
        return "asleep; its GPU memory is free"

    async def _settle(self, seconds: float) -> None:
        """Empty the cache, which takes an engine that is through with its last request: its end is told before that.

        Raises VerbError if it still cannot be after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return await self._engine.flush()
            except VerbError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(SETTLE_PAUSE)

    async def _profile(self, seconds: float) -> str:
        if not 0 < seconds <= PROFILE_MOST:
            raise ServiceError(400, f"profile: {seconds:g} s; more than 0 and at most {PROFILE_MOST:g} can be recorded")
        self._must_be("profile", "")
        # Writing the trace takes seconds in which the scheduler does nothing else: no reason to kill it.
        self.resting = "profiling"
        try:
            files = await self._engine.profile(self._folder, seconds)
        finally:
            self.resting = ""
        return f"recorded {seconds:g} s into {self._folder}: {', '.join(files) or 'no file'}"
