"""Processors that go elsewhere on suspicion alone, in real processes; and what only takes long is left alone."""

import asyncio
import signal
import time
from asyncio import to_thread
from collections.abc import Iterator

import pytest

from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.lifecycle import Control
from messages.subjects import Subjects
from messages.submit import Delta, Done
from tests.cluster.stage import address
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.timeout(90)]

TOKENS = 300
GAP = 8.0
"""Seconds, on a machine that may be busy; it is two where it is not."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A prefill that takes 0.3 s for a prompt, two decode actors."""
    text = simulated(decode={"count": 2})
    text["models"][0]["simulated"] = {"ttft": 0.3, "itl": 0.005}
    made = Cluster(tmp_path_factory.mktemp("doubts"), text)
    try:
        made.up()
        yield made
    finally:
        made.close()


async def inject(cluster: Cluster, slot: str, fault: str, seconds: float) -> None:
    """Have an engine show a fault."""
    bus = await Bus.connect((await to_thread(address, cluster)).nats, name="test", wait=5)
    try:
        asked = codec.to_json(Control(fault=fault, seconds=seconds))
        await bus.request(Subjects().control(slot, "fault"), asked, timeout=10)
    finally:
        await bus.close()


class Stream:
    """One greedy request, and when its pieces came."""

    def __init__(self, client: Client, prompt: str) -> None:
        self._client = client
        self._prompt = prompt
        self.token_ids: list[int] = []
        self.gap = 0.0
        self.done: Done | None = None

    async def run(self) -> "Stream":
        last = time.monotonic()
        fields = {"max_tokens": TOKENS, "temperature": 0, "timeout": 60.0}
        async for answer in self._client.completion("demo", self._prompt, **fields):
            if isinstance(answer, Delta):
                assert answer.position == len(self.token_ids)
                self.token_ids += answer.token_ids
                self.gap, last = max(self.gap, time.monotonic() - last), time.monotonic()
            else:
                self.done = answer
        return self

    @property
    def moved(self) -> bool:
        return self.done is not None and self.done.attempt > 1


async def under_way(client: Client) -> tuple[list[Stream], "asyncio.Future[list[Stream]]"]:
    """Eight streams, so many that both decode actors have some, each of which has its first tokens."""
    streams = [Stream(client, f"prompt {number}") for number in range(8)]
    running = asyncio.gather(*(stream.run() for stream in streams))
    async with asyncio.timeout(30):
        while not all(stream.token_ids for stream in streams) and not running.done():
            await asyncio.sleep(0.01)
    return streams, running


async def test_a_prefill_of_twice_the_time_of_a_stall_is_left_alone(cluster: Cluster) -> None:
    after = len(cluster.log.lines)
    await inject(cluster, "demo-prefill-0", "slow", 3.0)
    async with Client((await to_thread(address, cluster)).nats) as client:
        began = time.monotonic()
        stream = await Stream(client, "a prompt that takes three seconds").run()
    assert stream.done is not None
    assert (stream.done.attempt, time.monotonic() - began > 2.9) == (1, True)
    assert not [line for line in cluster.log.lines[after:] if "stalled" in line or "died" in line]


async def test_without_a_supervisor_streams_leave_a_stopped_and_a_hanging_actor(cluster: Cluster) -> None:
    """Nobody kills what hangs, nobody takes a registration away: what moves, moves on suspicion."""
    async with Client((await to_thread(address, cluster)).nats) as client:
        _, running = await under_way(client)
        wholes = [stream.token_ids for stream in await running]
        await to_thread(cluster.log.kill)
        _, running = await under_way(client)
        await to_thread(cluster.kill, "demo-decode-0", signal.SIGSTOP)
        try:
            streams = await asyncio.wait_for(running, 60)
        finally:
            await to_thread(cluster.kill, "demo-decode-0", signal.SIGCONT)
        assert [stream.token_ids for stream in streams] == wholes
        assert any(stream.moved for stream in streams), "nobody was at the stopped one"
        assert not all(stream.moved for stream in streams), "who was not hit moved as well"
        assert max(stream.gap for stream in streams) < GAP
        _, running = await under_way(client)
        await inject(cluster, "demo-decode-1", "hang", 60.0)
        streams = await asyncio.wait_for(running, 60)
        assert [stream.token_ids for stream in streams] == wholes
        assert any(stream.moved for stream in streams), "nobody was at the hanging one"
        assert max(stream.gap for stream in streams) < GAP
