"""Both doors under fuzzed submits: each is answered once or counted, no actor dies, who behaves notices nothing.

A submit is a function of seed and number: `python -m tests.fuzz.show nats 1 4711` prints the one that a failure names.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from messages import codec, procfs
from messages.bus import Bus
from messages.client import Client
from messages.config import Nats
from messages.lifecycle import Heartbeat
from messages.submit import Delta
from tests.fuzz import bodies, over_http, over_nats
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

SEED = int(os.environ.get("FUZZ_SEED", "1"))
FEW = 20_000
MANY = int(os.environ.get("FUZZ_COUNT", "1000000"))
LONG = pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(7_200)])
LINES = 24
GROWTH = 32 << 20
"""How much the processor's memory may grow after the first fifth: its allocator's breathing, but no leak."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A processor and an engine that is as fast as it can be."""
    configuration = simulated(prefill={"count": 0}, decode={"capacity": 256})
    quick = {"ttft": 0.0, "itl": 0.0}
    configuration["models"][0] |= {"simulated": quick, "context_length": 256}
    made = Cluster(tmp_path, configuration)
    try:
        made.up()
        yield made
    finally:
        made.close()


class Beside:
    """Two clients that behave, one at each door: what they were told, and how long the slowest answer took."""

    def __init__(self, url: str, http: str) -> None:
        self._url = url
        self._http = http
        self.answers = {"nats": 0, "http": 0}
        self.slowest = 0.0

    async def over_nats(self, wanted: str | None) -> str:
        async with Client(self._url) as client:
            while True:
                began = time.monotonic()
                told = [answer async for answer in client.chat("demo", "Hello!", max_tokens=16, temperature=0)]
                text = "".join(answer.text for answer in told if isinstance(answer, Delta))
                self._note("nats", began)
                if wanted is None:
                    return text
                assert text == wanted
                await asyncio.sleep(0.02)

    async def over_http(self, wanted: str) -> None:
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        async with aiohttp.ClientSession() as session:
            while True:
                began = time.monotonic()
                async with session.post(f"{self._http}/v1/chat/completions", json=body) as answer:
                    told = await answer.json()
                self._note("http", began)
                assert answer.status == 200, told
                assert told["choices"][0]["message"]["content"] == wanted
                await asyncio.sleep(0.02)

    def _note(self, door: str, began: float) -> None:
        self.answers[door] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)


class Watch:
    """The processor's own account, from its heartbeats."""

    def __init__(self) -> None:
        self.beat: Heartbeat | None = None
        self._fresh = asyncio.Event()

    async def on_beat(self, msg: Any) -> None:
        self.beat = codec.from_json(msg.data, Heartbeat)
        self._fresh.set()

    async def until(self, check: Callable[[Heartbeat], bool], seconds: float = 15.0) -> Heartbeat:
        """Wait for a heartbeat that says so."""
        async with asyncio.timeout(seconds):
            while True:
                self._fresh.clear()
                await self._fresh.wait()
                if self.beat is not None and check(self.beat):
                    return self.beat


@asynccontextmanager
async def minded(cluster: Cluster) -> AsyncIterator[tuple[Beside, Watch, str, str]]:
    """Run two clients that behave beside the body, and judge afterwards whether anything was disturbed."""
    record = await asyncio.to_thread(cluster.state.cluster)
    assert record is not None
    url, http = record.nats.urls[0], (await asyncio.to_thread(cluster.status)).http["demo"].rstrip("/")
    before = await asyncio.to_thread(cluster.records)
    beside, watch = Beside(url, http), Watch()
    bus = await Bus.connect(Nats(url=url), name="test", wait=5)
    await bus.subscribe("troupe.v1.hb.processor.*", watch.on_beat)
    wanted = await beside.over_nats(None)
    tasks = [asyncio.ensure_future(beside.over_nats(wanted)), asyncio.ensure_future(beside.over_http(wanted))]
    try:
        yield beside, watch, url, http
        for task in tasks:
            assert not task.done(), task.exception()
        assert min(beside.answers.values()) > 5, beside.answers
        assert beside.slowest < 30, beside.slowest
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await watch.until(lambda beat: beat.in_flight == 0 and beat.queued == 0)
        finally:
            await bus.close()
    assert await asyncio.to_thread(cluster.records) == before
    told = await asyncio.to_thread(_log_of, cluster)
    assert "Traceback" not in told, told[max(0, told.index("Traceback") - 500) :][:3_000]


def _log_of(cluster: Cluster) -> str:
    return "".join(path.read_text(errors="replace") for path in (cluster.state.root / "slots").glob("*/log*"))


class Memory:
    """The processor's memory, from the first fifth on."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._pid = cluster.record("demo-processor-0").pid
        self._from = count // 5
        self.first = self.last = 0

    def look(self, number: int) -> None:
        if number == self._from:
            self.first = procfs.rss_bytes(self._pid)

    def judge(self) -> None:
        self.last = procfs.rss_bytes(self._pid)
        assert self.last - self.first < GROWTH, f"{self.first >> 20} MiB have become {self.last >> 20}"


@pytest.mark.parametrize("count", [FEW, LONG])
async def test_over_nats(cluster: Cluster, count: int, record_property: Callable[[str, object], None]) -> None:
    shared = bodies.pool(SEED)
    async with minded(cluster) as (beside, watch, url, _):
        memory = await asyncio.to_thread(Memory, cluster, count)
        wire = over_nats.Wire(SEED)
        await wire.connect(url)
        began, mute, stolen = time.monotonic(), 0, set[int]()
        try:
            for number in range(count):
                await asyncio.to_thread(memory.look, number) if number == count // 5 else None
                submit = over_nats.make(SEED, number, shared)
                mute += submit.reply is not None
                if submit.shared:
                    stolen.add(number)
                await wire.send(number, submit)
                if number % 256 == 0:
                    wire.drop(stolen)
                    stolen &= set(wire.open)
                    assert not wire.wrong, wire.wrong[:5]
            await wire.settle(stolen)
            seconds = time.monotonic() - began
            beat = await watch.until(lambda beat: beat.unanswerable >= mute)
        finally:
            await wire.close()
        assert not wire.wrong, wire.wrong[:5]
        assert beat.unanswerable == mute
        await asyncio.to_thread(memory.judge)
    lost = count - mute - wire.answered
    assert 0 <= lost <= count // 50, f"{lost} requests were taken over by others"
    assert wire.codes[200] > count // 10
    record_property(
        "figures", f"{seconds:.0f} s, {wire.codes}, {mute} mute, {lost} taken over, {vars(memory)}, {vars(beside)}"
    )


@pytest.mark.parametrize("count", [FEW, LONG])
async def test_over_http(cluster: Cluster, count: int, record_property: Callable[[str, object], None]) -> None:
    shared = bodies.pool(SEED)
    tally = over_http.Tally()
    numbers = iter(range(count))
    async with minded(cluster) as (beside, _, _, http):
        memory = await asyncio.to_thread(Memory, cluster, count)

        async def one() -> None:
            line = over_http.Line(http, tally)
            for number in numbers:
                await asyncio.to_thread(memory.look, number) if number == count // 5 else None
                await line.send(f"submit {number} of seed {SEED}", over_http.make(SEED, number, shared))
                if tally.wrong:
                    break
            await line.close()

        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(LINES)))
        seconds = time.monotonic() - began
        await asyncio.to_thread(memory.judge)
    assert not tally.wrong, tally.wrong[:5]
    assert sum(tally.statuses.values()) + tally.closed + tally.left >= count
    assert tally.closed + tally.left < count // 5
    assert tally.statuses[200] > count // 10
    record_property("figures", f"{seconds:.0f} s, {vars(tally)}, {vars(memory)}, {vars(beside)}")
