"""Processes killed and stopped under load, with the simulated engine: what died comes back, and no request is lost."""

import asyncio
import os
import signal
import time
from asyncio import to_thread
from collections.abc import Iterator
from functools import partial

import pytest

from messages.ids import new_request_id
from supervisor.drills import figures
from supervisor.drills.asking import Asker, Witness
from supervisor.drills.observer import Observer
from supervisor.drills.records import Record
from tests.cluster.stage import address, configuration, kill, loaded, log, running
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.timeout(120)]

PROMPTS = ["one", "two words", "a third prompt", "and, at last, a fourth one that is longer than the others"]
DECODE = ["demo-decode-0", "demo-decode-1"]
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


async def test_streams_wait_for_the_next_supervisor_where_nobody_is_left_who_generates(cluster: Cluster) -> None:
    before = await to_thread(cluster.records)
    async with loaded(cluster, PROMPTS, tokens=TOKENS) as load:
        await load.until_streaming()
        await to_thread(cluster.log.kill)
        generations = {slot: await to_thread(cluster.kill, slot) for slot in DECODE}
        await load.until(lambda: load.silent(1.0), load.limit, "all streams have stopped")
        waiting = [record for record in load.records if record.streaming]
        assert waiting, "no stream was hit"
        await to_thread(cluster.up, ready=False)
        for slot, generation in generations.items():
            await to_thread(cluster.log.until, f"{slot}#{generation + 1} ready after", 30)
        await load.until_answered(6)
    # Their texts, last words and deadlines have been judged with all others.
    assert {record.outcome for record in waiting} == {"done"}
    assert all(record.attempts > 1 for record in waiting if record.door == "nats")
    after = await to_thread(cluster.records)
    assert {slot for slot in before if after[slot] != before[slot]} == set(DECODE)


async def test_a_request_that_two_actors_have_died_of_is_not_tried_again_and_is_named(cluster: Cluster) -> None:
    where = await to_thread(address, cluster)
    before = await to_thread(cluster.records)
    async with Witness(where.nats, prefix=where.cluster) as client, Observer(where) as observer:
        [model] = where.models.values()
        asker = Asker(model, ["a long answer"], tokens=3_000, http="", client=client)
        poisonous = Record(new_request_id(), "nats", 0, time.monotonic(), 60.0, client="client-0-nats")
        asking = asyncio.create_task(asker.over_nats(poisonous))
        killed: list[str] = []
        while len(killed) < 2:
            left = [slot for slot in DECODE if slot not in killed]
            await observer.until(partial(_at_one, observer, left), 30, f"the stream at one of {left}")
            [slot] = [slot for slot in left if observer.streams(slot)]
            await to_thread(cluster.kill, slot)
            killed.append(slot)
        await asyncio.wait_for(asking, 30)
        deaths = partial(_told, observer, "died", killed)
        await observer.until(deaths, 30, "both deaths told")
        await observer.until(partial(_told, observer, "ready", killed), 30, "both ready again")
        [named] = figures.poisoned([poisonous], observer.lines)
    assert (poisonous.outcome, poisonous.code, poisonous.attempts) == ("error", 500, 2)
    assert (named.request, named.client) == (poisonous.id, "client-0-nats")
    assert named.deaths == [f"{slot}#{before[slot][1]} (killed by SIGKILL)" for slot in killed]
    assert (await to_thread(cluster.command, "status", "--wait-ready", "20")).returncode == 0


def _at_one(observer: Observer, slots: list[str]) -> bool:
    return any(observer.streams(slot) for slot in slots)


def _told(observer: Observer, what: str, slots: list[str]) -> bool:
    return all(observer.events("restart", slot, what) for slot in slots)


async def test_a_stopped_decode_actor_is_killed_and_its_streams_go_on(cluster: Cluster) -> None:
    async with loaded(cluster, PROMPTS, tokens=TOKENS) as load:
        await kill(cluster, load, "demo-decode-1", number=signal.SIGSTOP)
    assert any(record.attempts > 1 for record in load.records), "no stream was hit"


async def _take_over(cluster: Cluster, slots: list[str]) -> None:
    await to_thread(cluster.up, ready=False)
    for slot in slots:
        await to_thread(cluster.log.until, f"{slot}#.* ready", 15)
