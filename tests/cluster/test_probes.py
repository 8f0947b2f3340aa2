"""Health probes in a cluster: shown while all is well, and an engine that hangs without work is found and restarted."""

from asyncio import to_thread
from collections.abc import Iterator
from typing import Any

import pytest

from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.config import Nats
from messages.lifecycle import Control
from messages.subjects import Subjects
from messages.submit import Done
from tests.supervisor.cluster import TINY, Cluster

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

SLOTS = ("demo-prefill-0", "demo-decode-0", "embed-encoder-0")


def configuration() -> dict[str, Any]:
    """A model that generates and one that embeds, probed after half a second without work."""
    model = {"engine": "simulated", "tokenizer": TINY, "load_deadline": 20.0, "probe": {"idle": 0.5, "deadline": 2.0}}
    door = {"processor": {"http": {"enabled": False}}}
    generates = model | {"name": "demo", "cast": door | {"prefill": {}, "decode": {}}}
    embeds = model | {"name": "embed", "cast": door | {"encoder": {}}}
    return {"drills": "allowed", "publisher": {"enabled": False}, "models": [generates, embeds]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("probes"), configuration())
    try:
        made.up()
        assert made.command("status", "--wait-ready", "20").returncode == 0
        yield made
    finally:
        made.close()


def results(cluster: Cluster) -> dict[str, str]:
    """How the last probe of each slot went."""
    return {slot.slot: slot.probe.result for slot in cluster.status().slots if slot.probe is not None}


async def probed(cluster: Cluster) -> None:
    """Wait until every engine has been probed, and see that all is well."""
    found: dict[str, str] = {}

    async def look() -> bool:
        found.update(await to_thread(results, cluster))
        return set(found) == set(SLOTS)

    for _ in range(50):
        if await look():
            break
    assert found == dict.fromkeys(SLOTS, "ok")


async def test_probes_are_shown_and_are_no_requests(cluster: Cluster) -> None:
    await probed(cluster)
    status = await to_thread(cluster.status)
    for slot in status.slots:
        assert slot.in_flight == 0
        assert (slot.probe is not None) == (slot.slot in SLOTS)
        if slot.probe is not None:
            assert slot.probe.age < 10
    text = (await to_thread(cluster.command, "status")).stdout
    assert "PROBE" in text
    assert text.count("ok, ") == len(SLOTS)


@pytest.mark.drill
@pytest.mark.parametrize("slot", SLOTS)
async def test_an_engine_that_hangs_while_idle_is_found_and_started_again(cluster: Cluster, slot: str) -> None:
    record = await to_thread(cluster.state.cluster)
    assert record is not None
    bus = await Bus.connect(Nats(url=record.nats.urls), name="drill", wait=5)
    try:
        before = await to_thread(cluster.slot, slot)
        after = len(cluster.log.lines)
        fault = codec.to_json(Control(fault="hang", seconds=600))
        await bus.request(Subjects(record.cluster).control(slot, "fault"), fault, timeout=2)
        await to_thread(cluster.log.until, f"{slot}#{before.generation}.* hangs while idle", 15, after=after)
        await to_thread(cluster.log.until, f"{slot}#{before.generation + 1} ready", 20, after=after)
    finally:
        await bus.close()
    now = await to_thread(cluster.slot, slot)
    assert "health probe" in now.reason
    others = [each for each in SLOTS if each != slot]
    assert all([(await to_thread(cluster.slot, each)).state == "ready" for each in others])


async def test_afterwards_everybody_answers(cluster: Cluster) -> None:
    record = await to_thread(cluster.state.cluster)
    assert record is not None
    assert (await to_thread(cluster.command, "status", "--wait-ready", "20")).returncode == 0
    async with Client(record.nats.urls) as client:
        last = [answer async for answer in client.generate("demo", [70, 71], max_tokens=3, ignore_eos=True)][-1]
        assert isinstance(last, Done)
        assert last.usage.completion_tokens == 3
        assert len((await client.embed("embed", "a text")).vectors) == 1
