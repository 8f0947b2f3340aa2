"""What people tell the real SGLang: pause, resume, flush, profile, and why this one cannot sleep."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus, ServiceError
from messages.config import Nats
from messages.lifecycle import Answer, Control, Heartbeat
from messages.work import Decode
from tests.engines.test_contract import WHOLE, job, whole
from tests.harness import Cast, Desk

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(180)]


@pytest.fixture
async def desk(sglang_engines: Cast) -> AsyncIterator[Desk]:
    """A processor's place, with every slot ready."""
    bus = await Bus.connect(Nats(url=sglang_engines.url), name="desk", wait=5)
    await sglang_engines.until_ready(bus, WHOLE, seconds=60)
    made = Desk(bus, sglang_engines.subjects, "test-verbs-0-g1")
    await made.open()
    yield made
    await bus.close()


async def tell(desk: Desk, verb: str, asked: Control | None = None) -> str:
    """Tell the whole engine; what it answers. Raises ServiceError where it refuses."""
    subject = desk.subjects.control(WHOLE, verb)
    answer = await desk.bus.request(subject, codec.to_json(asked or Control()), timeout=60)
    return codec.from_json(answer.data, Answer).message


async def stands_still(desk: Desk) -> None:
    """Wait until an engine with work has told three times in a row that it rests and has taken no step."""
    beats: asyncio.Queue[Heartbeat] = asyncio.Queue()

    async def hear(msg: Msg) -> None:
        beats.put_nowait(codec.from_json(msg.data, Heartbeat))

    subscription = await desk.bus.subscribe(desk.subjects.heartbeat("decode", WHOLE), hear)
    row: list[int] = []
    try:
        async with asyncio.timeout(30):
            while len(row) < 3:
                beat = await beats.get()
                if beat.resting != "paused" or not beat.in_flight or beat.steps not in row[:1]:
                    row.clear()
                if beat.resting == "paused" and beat.in_flight:
                    row.append(beat.steps)
    finally:
        await desk.bus.finish(subscription)


async def test_a_paused_stream_stands_still_what_comes_waits_and_both_go_on(desk: Desk) -> None:
    prompt = list(range(30, 70))
    expected = await whole(desk, prompt, 300)
    one, other = job(Decode, desk, prompt, 300, ttl=120.0), job(Decode, desk, prompt, 300, ttl=120.0)
    await desk.ask(WHOLE, one)
    async with asyncio.timeout(30):
        while not desk.tokens[f"{one.request}:0"]:
            async with desk._changed:
                await desk._changed.wait()
    assert await tell(desk, "pause") == "paused, 1 requests under way"
    await desk.ask(WHOLE, other)
    await stands_still(desk)
    assert 0 < len(desk.tokens[f"{one.request}:0"]) < 300
    assert desk.tokens[f"{other.request}:0"] == []
    with pytest.raises(ServiceError, match="409.*pause: it is paused, not at work"):
        await tell(desk, "pause")
    assert await tell(desk, "resume") == "at work"
    for asked in (one, other):
        assert (await desk.finished(asked.request, seconds=60)).reason == "length"
        assert desk.tokens[f"{asked.request}:0"] == expected


async def test_a_paused_stream_can_be_aborted(desk: Desk) -> None:
    asked = job(Decode, desk, list(range(40, 90)), 900, ttl=120.0)
    await desk.ask(WHOLE, asked)
    await tell(desk, "pause")
    await desk.bus.request(
        desk.subjects.control(WHOLE, "abort"), codec.to_json(Control(request=asked.request)), timeout=5
    )
    assert (await desk.finished(asked.request, seconds=20)).reason == "abort"
    await tell(desk, "resume")
    assert len(await whole(desk, list(range(40, 90)), 8)) == 8


async def test_flush_empties_the_prefix_cache_of_an_idle_engine_alone(desk: Desk) -> None:
    prompt = [random.Random(12).randrange(10, 500) for _ in range(64)]

    async def cached() -> int:
        asked = job(Decode, desk, prompt, 4)
        await desk.ask(WHOLE, asked)
        return (await desk.finished(asked.request, seconds=30)).cached_tokens

    await cached()
    assert await cached() >= 48
    assert await tell(desk, "flush") == "prefix cache is empty"
    assert await cached() == 0
    busy = job(Decode, desk, prompt, 900)
    await desk.ask(WHOLE, busy)
    with pytest.raises(ServiceError, match="409.*flush: SGLang empties its cache only while it has nothing to do"):
        await tell(desk, "flush")
    await desk.bus.request(
        desk.subjects.control(WHOLE, "abort"), codec.to_json(Control(request=busy.request)), timeout=5
    )
    await desk.finished(busy.request, seconds=20)


async def test_a_profile_is_a_file_in_the_slots_folder(desk: Desk) -> None:
    recording = asyncio.create_task(tell(desk, "profile", Control(seconds=1.0)))
    await whole(desk, list(range(20, 50)), 32)
    said = await recording
    assert said.startswith("recorded 1 s into ")
    assert "no file" not in said
    with pytest.raises(ServiceError, match="400.*at most 60"):
        await tell(desk, "profile", Control(seconds=61))


async def test_an_engine_that_was_not_started_for_it_says_what_sleeping_needs(desk: Desk) -> None:
    with pytest.raises(ServiceError, match="409.*sleep: .*enable_memory_saver: true"):
        await tell(desk, "sleep")
    with pytest.raises(ServiceError, match="409.*wake: it is at work, not asleep"):
        await tell(desk, "wake")
    assert len(await whole(desk, list(range(20, 50)), 8)) == 8
