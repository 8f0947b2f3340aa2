"""Greedy streams whose only decode actor is killed at a random moment: each text is the undisturbed run's."""

import asyncio
import logging
import random
import time
from asyncio import to_thread
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from messages.client import Client
from messages.submit import Delta, Done
from tests.cluster.stage import address, configuration, down, running
from tests.supervisor.cluster import Cluster, simulated

log = logging.getLogger("tests.cluster")

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.long]

SEED = 6
DECODE = "demo-decode-0"


class Told(msgspec.Struct):
    """What a client was told of one request: the text, its tokens, and in how many attempts they came."""

    text: str = ""
    token_ids: list[int] = []
    attempts: set[int] = set()
    done: Done | None = None

    @property
    def hit(self) -> bool:
        """Whether it went on elsewhere."""
        return self.done is not None and self.done.attempt > 1


class Crowd:
    """Requests asked at once, and the undisturbed run of each of them."""

    def __init__(self, client: Client, cluster: Cluster, asks: list[dict[str, Any]]) -> None:
        self._client = client
        self._cluster = cluster
        self._asks = asks
        self._chance = random.Random(SEED)
        self.wholes: list[Told] = []
        self.hits = 0

    async def ask(self, ask: dict[str, Any], told: Told) -> Told:
        """Ask one thing, and see that its pieces fit together."""
        fields = {"temperature": 0, "timeout": 300.0, **ask}
        kind = self._client.chat if "messages" in fields else self._client.completion
        async for answer in kind(**fields):
            if isinstance(answer, Delta):
                assert answer.position == len(told.token_ids), "a gap or a double"
                told.text += answer.text
                told.token_ids += answer.token_ids
            else:
                told.done = answer
        return told

    async def undisturbed(self) -> None:
        """Ask everything once while nothing is wrong."""
        self.wholes = await asyncio.gather(*(self.ask(ask, Told()) for ask in self._asks))

    async def struck(self, seconds: float) -> None:
        """Ask everything at once, kill the decode actor when a random part of it all has come, and compare."""
        told = [Told() for _ in self._asks]
        asked = [asyncio.create_task(self.ask(*pair)) for pair in zip(self._asks, told, strict=True)]
        moment = self._chance.random() * 0.95 * sum(len(whole.token_ids) for whole in self.wholes)
        async with asyncio.timeout(seconds):
            while sum(len(one.token_ids) for one in told) < moment and not all(task.done() for task in asked):
                await asyncio.sleep(0.002)
            generation = await to_thread(self._cluster.kill, DECODE)
            await asyncio.gather(*asked)
        for ask, one, whole in zip(self._asks, told, self.wholes, strict=True):
            assert (one.text, one.token_ids) == (whole.text, whole.token_ids), ask
            assert one.done is not None
            assert whole.done is not None
            assert (one.done.finish_reason, one.done.resumed) == (whole.done.finish_reason, False)
            assert one.done.usage.completion_tokens == whole.done.usage.completion_tokens
        self.hits += sum(one.hit for one in told)
        await to_thread(self._cluster.log.until, f"{DECODE}#{generation + 1} ready after", seconds)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One processor, one prefill, one decode actor, which may be killed as often as it takes."""
    cluster = Cluster(tmp_path_factory.mktemp("one"), simulated() | {"restart": {"intensity": 100, "backoff_max": 0.2}})
    try:
        cluster.up()
        yield cluster
        down(cluster)
    finally:
        cluster.close()


@pytest.mark.timeout(400)
async def test_two_hundred_streams_with_a_kill_at_a_random_moment_each(cluster: Cluster) -> None:
    asks = [{"model": "demo", "prompt": f"prompt number {number}", "max_tokens": 150} for number in range(10)]
    for ask in asks[::4]:
        ask["frequency_penalty"] = 0.5
    async with Client((await to_thread(address, cluster)).nats) as client:
        crowd = Crowd(client, cluster, asks)
        await crowd.undisturbed()
        # Two end by a stop string in the middle of their texts: what comes before the seam counts for it as well.
        for ask, whole in zip(asks[1::4], crowd.wholes[1::4], strict=True):
            ask["stop"] = whole.text[-12:-8]
        await crowd.undisturbed()
        assert len({whole.text for whole in crowd.wholes}) == len(asks)
        began, rounds = time.monotonic(), 0
        while crowd.hits < 200:
            await crowd.struck(30)
            rounds += 1
            assert rounds < 60, f"only {crowd.hits} streams were hit"
        log.info("%d streams hit in %d kills, %.0f s", crowd.hits, rounds, time.monotonic() - began)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of configs/demo.yaml: the real SGLang on a CPU."""
    yield from running(tmp_path_factory.mktemp("demo"), configuration("demo.yaml"), seconds=180)


@pytest.mark.sglang
@pytest.mark.timeout(1_500)
async def test_thirty_streams_of_sglang_counting_to_500_with_a_kill_at_a_random_moment_each(real: Cluster) -> None:
    asks = [{"messages": f"Count from {first} to 500.", "max_tokens": 2_200} for first in (1, 2, 3, 5, 10)]
    async with Client((await to_thread(address, real)).nats) as client:
        crowd = Crowd(client, real, [{"model": "troupe-small-chat", **ask} for ask in asks])
        await crowd.undisturbed()
        for whole, first in zip(crowd.wholes, (1, 2, 3, 5, 10), strict=True):
            numbers = [int(number) for number in whole.text.replace(".", "").split(", ")]
            assert numbers == list(range(first, 501)), "the undisturbed run has a number missing or twice"
        while crowd.hits < 30:
            await crowd.struck(300)
            log.info("%d streams hit", crowd.hits)


@pytest.mark.sglang
@pytest.mark.timeout(600)
async def test_sglang_generates_anew_what_has_penalties_or_a_grammar(real: Cluster) -> None:
    say = {"model": "troupe-small-chat", "messages": "Count from 1 to 50.", "max_tokens": 150, "ignore_eos": True}
    asks = [
        say | {"frequency_penalty": 0.6, "presence_penalty": 0.3},
        say | {"repetition_penalty": 1.2, "min_tokens": 140, "ignore_eos": False},
        say | {"regex": r"(\d{3}-){40}", "ignore_eos": False, "max_tokens": 300},
    ]
    async with Client((await to_thread(address, real)).nats) as client:
        crowd = Crowd(client, real, asks)
        await crowd.undisturbed()
        assert crowd.wholes[0].text != crowd.wholes[1].text
        while crowd.hits < 6:
            await crowd.struck(120)
