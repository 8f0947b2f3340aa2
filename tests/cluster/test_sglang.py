"""The real SGLang on a CPU, one prefill and one decode: killed under load, whole or in its computing process alone."""

import os
import signal
import time
from asyncio import to_thread
from collections.abc import Iterator

import msgspec
import pytest

from actors.engines.sglang_arguments import free_port
from tests.cluster.load import Load
from tests.cluster.stage import back, configuration, kill, loaded, running, scheduler
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.drill, pytest.mark.timeout(400)]

PROMPTS = ["Once upon a time", "one two three", "The answer to everything is", "Hello!"]
TOKENS = 48
LIMIT = 90.0
PREFILL, DECODE = "demo-prefill-0", "demo-decode-0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of configs/demo.yaml, with a bootstrap port that stays the same, as behind a firewall."""
    config = msgspec.yaml.decode(configuration("demo.yaml"))
    prefill = config["models"][0]["cast"]["prefill"]
    prefill["args"] = {"disaggregation_bootstrap_port": free_port("127.0.0.1")}
    yield from running(tmp_path_factory.mktemp("demo"), config, seconds=180)


async def strike_scheduler(cluster: Cluster, load: Load, slot: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the process in which SGLang computes, and to no other."""
    await load.until_streaming(LIMIT)
    pid, record = await to_thread(scheduler, cluster, slot), await to_thread(cluster.record, slot)
    after, struck, generation = len(cluster.log.lines), time.monotonic(), record.generation
    os.kill(pid, number)
    await back(cluster, {slot: generation}, after, struck, seconds=LIMIT)
    await load.until_answered(4, LIMIT)


async def test_actors_and_schedulers_are_killed_and_one_is_stopped(cluster: Cluster) -> None:
    async with loaded(cluster, PROMPTS, tokens=TOKENS, nats=4, http=2, limit=LIMIT) as load:
        await kill(cluster, load, DECODE)
        await strike_scheduler(cluster, load, PREFILL)
        await strike_scheduler(cluster, load, DECODE, signal.SIGSTOP)
    assert any(record.attempts > 1 for record in load.records), "no stream was hit"


async def test_a_prefill_that_is_back_on_the_same_port_is_met_there_and_decode_stays_as_it_is(cluster: Cluster) -> None:
    async with loaded(cluster, PROMPTS, tokens=TOKENS, nats=4, http=2, limit=LIMIT) as load:
        decode = await to_thread(cluster.record, DECODE)
        for _ in range(2):
            await kill(cluster, load, PREFILL)
    assert await to_thread(cluster.record, DECODE) == decode


@pytest.mark.long
@pytest.mark.parametrize("slot", [PREFILL, DECODE])
async def test_the_only_one_of_a_role_is_struck_in_every_way_and_twice(cluster: Cluster, slot: str) -> None:
    async with loaded(cluster, PROMPTS, tokens=TOKENS, nats=4, http=2, limit=LIMIT) as load:
        for _ in range(2):
            await kill(cluster, load, slot)
            await strike_scheduler(cluster, load, slot)
        await kill(cluster, load, slot, number=signal.SIGSTOP)
