"""Processes killed and stopped under load, with the simulated engine: what died comes back, and no request is lost."""

import os
import signal
import time
from asyncio import to_thread
from collections.abc import Iterator

import pytest

from tests.cluster.stage import configuration, kill, loaded, log, running
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.timeout(120)]

PROMPTS = ["one", "two words", "a third prompt", "and, at last, a fourth one that is longer than the others"]
TOKENS = 120
TIMES = [1, pytest.param(3, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of configs/simulated.yaml."""
    yield from running(tmp_path_factory.mktemp("six"), configuration("simulated.yaml"))


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("role", ["decode", "prefill", "processor"])
async def test_one_of_a_role_is_killed_and_then_all_of_it(cluster: Cluster, role: str, times: int) -> None:
    one, other = f"demo-{role}-0", f"demo-{role}-1"
    async with loaded(cluster, PROMPTS, tokens=TOKENS, may_close=role == "processor") as load:
        for _ in range(times):
            await kill(cluster, load, one)
        await kill(cluster, load, one, other)
    if role == "decode":
        assert any(record.attempts > 1 for record in load.records), "no stream was hit"


@pytest.mark.parametrize("times", [2])
async def test_the_nats_server_is_killed(cluster: Cluster, times: int) -> None:
    server, before = await to_thread(cluster.nats), await to_thread(cluster.records)
    async with loaded(cluster, PROMPTS, tokens=TOKENS, lossy=True) as load:
        for _ in range(times):
            await load.until_streaming()
            after, struck = len(cluster.log.lines), time.monotonic()
            os.kill((await to_thread(cluster.nats)).pid, signal.SIGKILL)
            await to_thread(cluster.log.until, f"NATS server is back on .*:{server.port}", 15, after=after)
            log.info("the server is back %.2f s after it was struck", time.monotonic() - struck)
            await load.until_answered(12)
    assert (await to_thread(cluster.command, "status", "--wait-ready", "20")).returncode == 0
    assert await to_thread(cluster.records) == before, "an actor died too"


async def test_the_supervisor_is_killed_and_the_next_one_adopts_everybody(cluster: Cluster) -> None:
    before, server = await to_thread(cluster.records), await to_thread(cluster.nats)
    async with loaded(cluster, PROMPTS, tokens=TOKENS) as load:
        for _ in range(2):
            await load.until_streaming()
            await to_thread(cluster.log.kill)
            await load.until_answered(6)
            await _take_over(cluster, list(before))
            await load.until_answered(6)
            assert await to_thread(cluster.records) == before
            assert (await to_thread(cluster.nats)).pid == server.pid
        await kill(cluster, load, "demo-decode-0")


async def test_a_stopped_decode_actor_is_killed_and_its_streams_go_on(cluster: Cluster) -> None:
    async with loaded(cluster, PROMPTS, tokens=TOKENS) as load:
        await kill(cluster, load, "demo-decode-1", number=signal.SIGSTOP)
    assert any(record.attempts > 1 for record in load.records), "no stream was hit"


async def _take_over(cluster: Cluster, slots: list[str]) -> None:
    await to_thread(cluster.up, ready=False)
    for slot in slots:
        await to_thread(cluster.log.until, f"{slot}#.* ready", 15)
