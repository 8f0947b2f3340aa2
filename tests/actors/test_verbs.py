"""Telling an engine to sleep and to wake: what is asked of it in which order, and what a failure leaves behind.

No engine here has a GPU's memory to give back, so one that only writes down what it is told stands in for it.
"""

from pathlib import Path
from typing import Any, cast

import pytest

from actors.engines.engine import Engine, VerbError
from actors.verbs import Handling
from messages.bus import ServiceError
from messages.lifecycle import Control


class Told:
    """An engine that writes down what it is told; `failing` are the verbs that it does not do, so many times."""

    def __init__(self, **failing: int) -> None:
        self.told: list[str] = []
        self.failing = failing

    def _do(self, verb: str) -> None:
        self.told.append(verb)
        if self.failing.get(verb, 0):
            self.failing[verb] -= 1
            raise VerbError("not now")

    async def pause(self) -> None:
        self._do("pause")

    async def resume(self) -> None:
        self._do("resume")

    async def flush(self) -> None:
        self._do("flush")

    async def sleep(self) -> None:
        self._do("sleep")

    async def wake(self) -> None:
        self._do("wake")

    async def profile(self, folder: Path, seconds: float) -> list[str]:
        self._do("profile")
        return [f"{folder.name}-{seconds:g}"]


def handling(told: Told) -> Handling:
    return Handling(cast(Engine, cast(Any, told)), Path("traces"))


async def test_it_is_paused_before_its_memory_goes_and_at_work_after_it_came_back() -> None:
    told = Told()
    made = handling(told)
    assert await made.carry_out("sleep", Control(), 0) == "asleep; its GPU memory is free"
    assert (made.resting, told.told) == ("asleep", ["flush", "pause", "sleep"])
    for verb in ("sleep", "pause", "resume", "profile"):
        with pytest.raises(ServiceError, match=f"{verb}: it is asleep"):
            await made.carry_out(verb, Control(), 0)
    assert await made.carry_out("wake", Control(), 0) == "at work"
    assert (made.resting, told.told[3:]) == ("", ["wake", "resume"])


async def test_it_does_not_fall_asleep_over_work() -> None:
    told = Told()
    with pytest.raises(ServiceError, match="409.*2 requests are under way"):
        await handling(told).carry_out("sleep", Control(), 2)
    assert told.told == []


async def test_it_is_given_a_moment_to_be_through_with_its_last_request() -> None:
    told = Told(flush=2)
    await handling(told).carry_out("sleep", Control(), 0)
    assert told.told == ["flush", "flush", "flush", "pause", "sleep"]


async def test_flush_waits_for_that_moment_too_but_not_for_work() -> None:
    told = Told(flush=2)
    assert await handling(told).carry_out("flush", Control(), 0) == "prefix cache is empty"
    told = Told(flush=1)
    with pytest.raises(ServiceError, match="409.*flush: not now"):
        await handling(told).carry_out("flush", Control(), 1)
    assert told.told == ["flush"]


async def test_one_that_cannot_sleep_is_at_work_again() -> None:
    told = Told(sleep=1)
    made = handling(told)
    with pytest.raises(ServiceError, match="409.*sleep: not now"):
        await made.carry_out("sleep", Control(), 0)
    assert (made.resting, told.told) == ("", ["flush", "pause", "sleep", "resume"])


async def test_one_that_does_not_wake_stays_asleep_and_can_be_woken_again() -> None:
    told = Told(wake=1)
    made = handling(told)
    await made.carry_out("sleep", Control(), 0)
    with pytest.raises(ServiceError, match="409.*wake: not now"):
        await made.carry_out("wake", Control(), 0)
    assert made.resting == "asleep"
    assert await made.carry_out("wake", Control(), 0) == "at work"


async def test_a_trace_goes_where_it_belongs_and_lasts_five_seconds_unless_told_otherwise() -> None:
    made = handling(Told())
    assert await made.carry_out("profile", Control(), 0) == "recorded 5 s into traces: traces-5"
    assert await made.carry_out("profile", Control(seconds=0.5), 0) == "recorded 0.5 s into traces: traces-0.5"
