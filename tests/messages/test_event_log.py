"""The event history is read without loss or doubles: what was there, what comes, over reconnects and lost stores."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.event_log import Told, follow
from messages.lifecycle import Event
from messages.subjects import Subjects
from tests.conftest import NatsServer, eventually

pytestmark = pytest.mark.nats

SUBJECTS = Subjects()
STREAM = SUBJECTS.event_stream


class Reader:
    """What `follow` has told."""

    def __init__(self, bus: Bus, newest: int = 0, since: float | None = None) -> None:
        self.told: list[Told] = []
        self.begun = 0
        self.first: list[str] | None = None
        self._task = asyncio.ensure_future(follow(bus, STREAM, self._take, newest=newest, since=since))

    def _take(self, told: list[Told], anew: bool) -> None:
        if anew:
            self.begun += 1
            self.told.clear()
        self.told += told
        if self.first is None:
            self.first = self.said

    @property
    def said(self) -> list[str]:
        return [one.event.what for one in self.told]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=5)


@pytest.fixture
async def stream(bus: Bus) -> AsyncIterator[Bus]:
    await bus.ensure_stream(STREAM, [SUBJECTS.events])
    yield bus


async def say(bus: Bus, *whats: str) -> None:
    for what in whats:
        event = Event(topic="restart", of="demo-decode-0", what=what, at=time.time())
        await bus.publish(SUBJECTS.event("restart", "demo-decode-0"), codec.to_json(event))
    await bus.flush()


async def test_history_comes_first_and_then_what_comes(stream: Bus) -> None:
    await say(stream, "a", "b", "c")
    await stream.publish(SUBJECTS.event("restart", "demo-decode-0"), b"no event")
    whole, newest, none = Reader(stream), Reader(stream, newest=2), Reader(stream, since=time.time() + 60)
    try:
        await eventually(lambda: whole.first == ["a", "b", "c"] and newest.first == ["c"] and none.first == [])
        await say(stream, "d")
        await eventually(lambda: whole.said == ["a", "b", "c", "d"] and newest.said == ["c", "d"])
        assert [one.seq for one in whole.told] == [1, 2, 3, 5]
    finally:
        for reader in (whole, newest, none):
            await reader.stop()


async def test_an_empty_stream_is_told_at_once(stream: Bus) -> None:
    reader = Reader(stream)
    try:
        await eventually(lambda: reader.first == [])
        await say(stream, "a")
        await eventually(lambda: reader.said == ["a"])
        assert reader.begun == 1
    finally:
        await reader.stop()


async def test_nothing_is_lost_or_doubled_when_the_server_dies(tmp_path: Path, nats_server: NatsServer) -> None:
    bus = await Bus.connect(Nats(url=nats_server.url), name="test", wait=5)
    await bus.ensure_stream(STREAM, [SUBJECTS.events])
    reader = Reader(bus)
    try:
        await say(bus, "a", "b")
        await eventually(lambda: reader.said == ["a", "b"])
        await asyncio.to_thread(nats_server.stop)
        await asyncio.to_thread(nats_server.start)
        await eventually(lambda: bus.connected, 10)
        await say(bus, "c")
        await eventually(lambda: reader.said == ["a", "b", "c"], 10)
        assert reader.begun == 1
        # The store is lost: what was told counts no more.
        await asyncio.to_thread(nats_server.stop)
        await asyncio.to_thread(shutil.rmtree, tmp_path / "jetstream")
        await asyncio.to_thread(nats_server.start)
        await eventually(lambda: bus.connected, 10)
        with contextlib.suppress(Exception):
            await bus.ensure_stream(STREAM, [SUBJECTS.events])
        await say(bus, "x")
        await eventually(lambda: reader.said == ["x"], 15)
        assert reader.begun >= 2
    finally:
        await reader.stop()
        await bus.close()
