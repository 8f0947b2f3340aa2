"""When an actor probes its own engine, what it makes of the answers, and that real work never waits for a probe."""

import asyncio
from collections.abc import Callable

import pytest

from actors.engines.engine import ProbeError
from actors.engines.sglang_form import beginning
from actors.probing import AGAIN, Prober
from messages.config import Probe
from messages.lifecycle import Probed

TICK = 0.5


class Answering:
    """An engine that answers probes as the test says."""

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.given_up = 0
        self.answer: Callable[[], None] = lambda: None
        self.free = asyncio.Event()
        self.free.set()

    async def probe(self, rank: int) -> None:
        self.ranks.append(rank)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        self.answer()


class Actor:
    """What an actor does with its prober, on a clock in the test's hands."""

    def __init__(self, ranks: int = 1, **config: float | bool) -> None:
        self.engine = Answering()
        self.now = 100.0
        self.busy = False
        settings = Probe(**({"idle": 5.0, "deadline": 10.0} | config))  # type: ignore[arg-type]
        self.prober = Prober(self.engine, ranks, settings, lambda: self.busy, lambda: self.now)  # type: ignore[arg-type]

    async def lives(self, seconds: float) -> Probed | None:
        """Tick twice a second for so long; return what a heartbeat says then."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.prober.tick()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return self.prober.told()


def result_of(told: Probed | None) -> str:
    assert told is not None
    return told.result


async def test_an_idle_engine_is_probed_each_time_it_has_been_idle_for_long_enough() -> None:
    actor = Actor()
    assert await actor.lives(4.5) is None
    assert actor.engine.ranks == []
    assert result_of(await actor.lives(1)) == "ok"
    told = await actor.lives(3)
    assert told is not None
    assert told.age == 3.5
    await actor.lives(4)
    assert actor.engine.ranks == [0, 0]


async def test_every_dp_rank_is_probed() -> None:
    actor = Actor(ranks=3)
    assert result_of(await actor.lives(6)) == "ok"
    assert actor.engine.ranks == [0, 1, 2]


async def test_while_there_is_work_nothing_is_probed_and_idling_begins_anew_after_it() -> None:
    actor = Actor()
    await actor.lives(4)
    actor.busy = True
    await actor.lives(60)
    actor.busy = False
    await actor.lives(4.5)
    assert actor.engine.ranks == []
    await actor.lives(1)
    assert actor.engine.ranks == [0]


async def test_a_probe_is_given_up_when_work_comes_and_says_nothing_then() -> None:
    actor = Actor()
    actor.engine.free.clear()
    await actor.lives(6)
    actor.prober.work_came()
    actor.busy = True
    assert await actor.lives(30) is None
    assert actor.engine.given_up == 1


async def test_no_answer_within_the_deadline_is_told_once_and_a_late_one_takes_it_back() -> None:
    actor = Actor(ranks=2)
    actor.engine.free.clear()
    assert await actor.lives(14) is None
    told = await actor.lives(3)
    assert told is not None
    assert (told.result, told.failures) == ("silent", 1)
    assert "DP rank 0" in told.message
    told = await actor.lives(60)
    assert told is not None
    assert (told.result, told.failures) == ("silent", 1)
    actor.engine.free.set()
    assert result_of(await actor.lives(1)) == "ok"


async def test_time_in_which_the_actor_did_not_run_does_not_count() -> None:
    actor = Actor()
    actor.engine.free.clear()
    await actor.lives(6)
    actor.now += 3_600
    assert await actor.lives(2) is None
    assert result_of(await actor.lives(9)) == "silent"


async def test_a_failure_is_tried_again_soon_and_counted_until_one_is_well() -> None:
    actor = Actor()

    def fail() -> None:
        raise ProbeError("error 500: out of memory")

    actor.engine.answer = fail
    told = await actor.lives(5.5)
    assert told is not None
    assert (told.result, told.failures, told.message) == ("failed", 1, "DP rank 0: error 500: out of memory")
    told = await actor.lives(AGAIN + TICK)
    assert told is not None
    assert (told.result, told.failures) == ("failed", 2)
    actor.engine.answer = lambda: None
    told = await actor.lives(AGAIN + TICK)
    assert told is not None
    assert (told.result, told.failures) == ("ok", 0)


async def test_real_work_withdraws_a_bad_result() -> None:
    actor = Actor()
    actor.engine.free.clear()
    assert result_of(await actor.lives(20)) == "silent"
    actor.prober.work_came()
    assert actor.prober.told() is None


async def test_it_can_be_switched_off() -> None:
    actor = Actor(enabled=False)
    await actor.lives(60)
    assert actor.engine.ranks == []


class Config:
    """A model's configuration as transformers has it."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("config", "token"),
    [
        (Config(bos_token_id=7), 7),
        (Config(bos_token_id=[8, 9]), 8),
        (Config(bos_token_id=None, eos_token_id=5), 5),
        (Config(bos_token_id=700, eos_token_id=[700], pad_token_id=3), 3),
        (Config(bos_token_id=None, text_config=Config(bos_token_id=4)), 4),
        (Config(), 0),
    ],
)
def test_a_probe_begins_as_texts_do_or_with_what_every_vocabulary_has(config: Config, token: int) -> None:
    assert beginning(config, 512) == token
