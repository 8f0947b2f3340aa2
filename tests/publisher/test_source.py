"""One rank's KV events, followed over real ZMQ sockets: each batch once, in order, what was missed had again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from actors.kv_wire import decode
from actors.publisher.source import Source, replay
from messages.lifecycle import KvSource
from messages.telemetry import Stored
from tests.conftest import eventually
from tests.publisher.fake_engine import FakeEngine, Form

pytestmark = pytest.mark.timeout(30)


class Taker:
    """What a source has handed on: (number, replayed, lost), and the blocks."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bool, int]] = []
        self.blocks: list[int] = []
        self.slow = 0.0

    async def take(self, seq: int, payload: bytes, replayed: bool, lost: int) -> None:
        self.taken.append((seq, replayed, lost))
        for event in decode(payload)[1]:
            assert isinstance(event, Stored)
            self.blocks += event.hashes
        await asyncio.sleep(self.slow)

    @property
    def numbers(self) -> list[int]:
        return [seq for seq, _, _ in self.taken]


@asynccontextmanager
async def followed(at: KvSource, taker: Taker) -> AsyncIterator[Source]:
    """A source that runs; at the end it is stopped, and must have ended well."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    source = Source("test", at, context, taker.take)
    running = asyncio.ensure_future(source.run())
    try:
        yield source
        source.stop()
        await asyncio.wait_for(running, 5)
    finally:
        running.cancel()
        await asyncio.wait({running})
        context.destroy(linger=0)


@pytest.mark.parametrize("form", ["0.5.17", "0.5.23"])
@pytest.mark.parametrize("where", ["ipc", "tcp://127.0.0.1", "tcp://[::1]"])
async def test_what_was_before_and_what_comes_is_taken_once_and_in_order(
    where: str, form: Form, tmp_path: Path
) -> None:
    taker = Taker()
    async with FakeEngine(where, tmp_path, form=form) as engine:
        assert ("[::1]" in engine.source.endpoint) == ("[" in where)
        engine.publish(5)
        async with followed(engine.source, taker):
            await eventually(lambda: len(taker.taken) == 5)
            engine.publish(20)
            await eventually(lambda: len(taker.taken) == 25)
    assert taker.numbers == taker.blocks == list(range(25))
    assert all(replayed for _, replayed, _ in taker.taken[:5])
    assert not any(lost for _, _, lost in taker.taken)


@pytest.mark.parametrize("form", ["0.5.17", "0.5.23"])
async def test_a_hole_is_noticed_and_filled_before_what_comes_after_it(form: Form, tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path, form=form) as engine:
        engine.publish(1)
        async with followed(engine.source, taker) as source:
            await eventually(lambda: engine.replays >= 2)
            engine.publish(3)
            engine.publish(4, reaches=False)
            engine.publish(2)
            await eventually(lambda: len(taker.taken) == 10)
            assert source.lost == 0
            assert source.replayed >= 4
    assert taker.numbers == taker.blocks == list(range(10))


async def test_what_the_engine_keeps_no_more_is_said_to_be_lost(tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path, keep=3) as engine:
        engine.publish(10)
        async with followed(engine.source, taker) as source:
            await eventually(lambda: len(taker.taken) == 3)
            await eventually(lambda: engine.replays >= 2)
            engine.publish(8, reaches=False)
            engine.publish(1)
            await eventually(lambda: len(taker.taken) == 6)
            assert source.lost == 7 + 6
    assert [(seq, lost) for seq, _, lost in taker.taken] == [(7, 7), (8, 0), (9, 0), (16, 6), (17, 0), (18, 0)]


async def test_without_a_replay_socket_a_hole_is_lost(tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path) as engine:
        at = KvSource(endpoint=engine.source.endpoint)
        async with followed(at, taker) as source:

            def first_has_come() -> bool:
                engine.publish()
                return bool(taker.taken)

            await eventually(first_has_come)
            missed = engine.published
            engine.publish(2, reaches=False)
            engine.publish(1)
            await eventually(lambda: taker.numbers[-1] == missed + 2)
            assert source.lost == taker.numbers[0] + 2
    assert taker.taken[-1] == (missed + 2, False, 2)


async def test_thousands_are_replayed_though_the_engines_socket_drops_what_we_are_too_slow_for(tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path) as engine:
        engine.publish(6_000)
        async with followed(engine.source, taker) as source:
            await eventually(lambda: len(taker.taken) >= 6_000, 15)
            assert source.lost == 0
    assert taker.numbers == list(range(6_000))


async def test_what_is_not_confirmed_is_handed_on_again_when_the_bus_is_back(tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path) as engine:
        engine.publish(10)
        async with followed(engine.source, taker) as source:
            await eventually(lambda: len(taker.taken) == 10)
            source.confirmed = 6
            source.go_back()
            source.confirmed = 10
            await eventually(lambda: len(taker.taken) == 14)
    assert taker.numbers == [*range(10), *range(6, 10)]


async def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    taker = Taker()
    async with FakeEngine("ipc", tmp_path) as engine:
        engine.publish(1)
        async with followed(engine.source, taker):
            await eventually(lambda: engine.replays >= 2)
            engine.publish_frames(b"only one")
            engine.publish_frames(b"", b"no number", b"payload")
            engine.publish(1)
            await eventually(lambda: len(taker.taken) == 2)
    assert taker.numbers == [0, 1]


async def test_stopped_it_hands_on_what_has_come(tmp_path: Path) -> None:
    taker = Taker()
    taker.slow = 0.01
    async with FakeEngine("ipc", tmp_path) as engine:
        engine.publish(1)
        async with followed(engine.source, taker):
            await eventually(lambda: engine.replays >= 2)
            engine.publish(30)
            await eventually(lambda: len(taker.taken) > 1)
    assert taker.numbers == list(range(31))


async def test_one_who_asks_gets_all_from_where_he_asks(tmp_path: Path) -> None:
    taker = Taker()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    async with FakeEngine("ipc", tmp_path, keep=8) as engine:
        engine.publish(12)
        await replay(context, engine.source, 9, taker.take)
        assert taker.taken == [(9, True, 0), (10, True, 0), (11, True, 0)]
        taker.taken.clear()
        await replay(context, engine.source, 0, taker.take)
        assert taker.taken[0] == (4, True, 4)
    context.destroy(linger=0)
