"""The publisher beside the real SGLang: every KV event on NATS, through restarts of the engine and of the publisher."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from messages import procfs
from messages.bus import Bus
from messages.telemetry import Change, Stored
from tests.conftest import NatsServer, eventually
from tests.harness import Cast, Desk, Prefork
from tests.publisher.conftest import ENGINE, PUBLISHER, configuration, generate
from tests.publisher.listeners import Receiver, reference

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(120)]

READY = 60.0


class Forked:
    """Engines forked from the parent that has imported SGLang; none is left behind."""

    def __init__(self, parent: Prefork, cast: Cast) -> None:
        self._parent = parent
        self._cast = cast
        self.pids: dict[str, int] = {}

    def start(self, slot: str, generation: int = 1) -> None:
        """Fork one."""
        self.pids[slot] = self._parent.spawn(self._cast, slot, generation)

    def kill(self, slot: str) -> None:
        """Kill one, with all that it has started, and hear of its end."""
        os.killpg(self.pids.pop(slot), signal.SIGKILL)
        self._parent.until_exit()

    def stop(self) -> None:
        """Kill all."""
        for slot in list(self.pids):
            self.kill(slot)


@pytest.fixture
def sglang_cast(tmp_path: Path, nats_server: NatsServer) -> Iterator[Cast]:
    """A cast with SGLang and a publisher."""
    made = Cast(tmp_path, nats_server.url, configuration("sglang"))
    yield made
    made.stop()


@pytest.fixture
def forked(sglang_cast: Cast, parent: Prefork) -> Iterator[Forked]:
    """Its engines."""
    made = Forked(parent, sglang_cast)
    yield made
    made.stop()


def hashes(events: list[list[Change]]) -> set[int]:
    """All blocks that were stored."""
    return {name for batch in events for event in batch if isinstance(event, Stored) for name in event.hashes}


async def test_kv_events_are_complete_and_metrics_are_there_through_restarts(
    sglang_cast: Cast, bus: Bus, forked: Forked
) -> None:
    cast = sglang_cast
    receiver = Receiver(bus, cast.subjects)
    await receiver.open()
    desk = Desk(bus, cast.subjects)
    await desk.open()
    forked.start(ENGINE)
    at = (await cast.until_ready(bus, ENGINE, seconds=READY))[ENGINE]
    await generate(desk, ENGINE, list(range(10, 90)))
    cast.start(PUBLISHER)
    publisher = (await cast.until_ready(bus, PUBLISHER))[PUBLISHER]
    long = asyncio.ensure_future(generate(desk, ENGINE, list(range(50, 100)), 800))
    await eventually(lambda: any(load.ranks[0].kv_used for load in receiver.loads.get(ENGINE, [])))
    await asyncio.gather(*(generate(desk, ENGINE, list(range(20 + n, 120 + n)), 40) for n in range(8)))
    await long
    await eventually(lambda: receiver.loads[ENGINE][-1].idle)
    expected = await reference(at).events()
    assert len(hashes(expected)) > 40
    await eventually(lambda: receiver.events(ENGINE, 1) == expected)
    busy = max(receiver.loads[ENGINE], key=lambda load: load.ranks[0].kv_used).ranks[0]
    assert 0 < busy.kv_used <= busy.kv_total == at.total_blocks
    assert receiver.loads[ENGINE][-1].ranks[0].kv_used == 0

    os.killpg(cast.processes[PUBLISHER].pid, signal.SIGKILL)
    cast.processes[PUBLISHER].wait(5)
    await generate(desk, ENGINE, list(range(200, 300)))
    cast.start(PUBLISHER, 2)
    publisher = (await cast.until_ready(bus, PUBLISHER, generation=2))[PUBLISHER]
    await generate(desk, ENGINE, list(range(300, 400)))
    await eventually(lambda: receiver.loads[ENGINE][-1].idle)
    expected = await reference(at).events()
    await eventually(lambda: receiver.events(ENGINE, 1) == expected)

    text = await asyncio.to_thread(lambda: urlopen(f"{publisher.http}/metrics", timeout=5).read().decode())
    found = {
        sample.name: sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.labels.get("slot") == ENGINE
    }
    assert found["sglang:max_total_num_tokens"] == at.total_blocks * at.block_size
    assert found["sglang:queue_time_seconds_count"] >= 10
    assert found["troupe_kv_event_batches_total"] == len(expected)
    assert found["troupe_kv_event_batches_lost_total"] == 0

    forked.kill(ENGINE)
    forked.start(ENGINE, 2)
    again = (await cast.until_ready(bus, ENGINE, generation=2, seconds=READY))[ENGINE]
    await generate(desk, ENGINE, list(range(10, 90)))
    await eventually(lambda: len(hashes(receiver.events(ENGINE, 2))) >= 5)
    assert receiver.events(ENGINE, 2) == await reference(again).events()
    assert receiver.events(ENGINE, 1) == expected
    assert receiver.holes == 0
    assert not any(batch.lost for batches in receiver.batches.values() for batch in batches)
    files = {name for name in os.listdir(again.metrics) if name.endswith(".db")}
    children = await asyncio.to_thread(procfs.descendants, forked.pids[ENGINE])
    alive = {str(pid) for pid in [forked.pids[ENGINE], *children]}
    assert files
    assert {name.removesuffix(".db").rpartition("_")[2] for name in files} <= alive, "no dead process's files are left"


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_every_dp_rank_is_followed(tmp_path: Path, nats_server: NatsServer, bus: Bus) -> None:
    written = configuration("sglang")
    # SGLang gives each rank a NUMA node's cores; where there are fewer nodes than ranks it wants to be told.
    written["models"][0] |= {"args": {"dp_size": 2}, "env": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}}
    cast = Cast(tmp_path, nats_server.url, written)
    try:
        receiver, desk = Receiver(bus, cast.subjects), Desk(bus, cast.subjects)
        await receiver.open()
        await desk.open()
        cast.start(ENGINE)
        cast.start(PUBLISHER)
        at = (await cast.until_ready(bus, ENGINE, PUBLISHER, seconds=250))[ENGINE]
        for begin in range(8):
            await generate(desk, ENGINE, list(range(20 + begin, 120 + begin)), 20)
        await eventually(lambda: receiver.loads[ENGINE][-1].idle)
        assert [rank.dp_rank for rank in receiver.loads[ENGINE][-1].ranks] == [0, 1]
        for rank in (0, 1):
            expected = await reference(at, rank).events()
            assert hashes(expected), "each rank has had some of the requests"
            await eventually(lambda rank=rank, expected=expected: receiver.events(ENGINE, 1, rank) == expected)
    finally:
        cast.stop()
