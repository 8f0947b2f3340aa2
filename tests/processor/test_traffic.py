"""What a processor tells of its traffic and of a request's way: counted as clients saw it, and nothing of the text."""

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from actors.processor.meter import FIRST_STATIONS, KEPT, STATIONS, Meter
from messages import codec
from messages.submit import Done, Error, Usage
from messages.telemetry import BOUNDS, Tally, Traffic, Way
from tests.conftest import eventually
from tests.processor.stage import SECONDS, Stage, refuse

pytestmark = pytest.mark.nats


def tally(stage: Stage, kind: str) -> Tally:
    return stage.service.traffic().kinds[kind]


def way(stage: Stage, request: str) -> Way:
    found = stage.service.meter.way(request)
    assert found is not None
    return found


async def test_requests_are_counted_by_kind_and_by_how_they_end(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([5, 6, 7], max_tokens=8)
    job = await decode.got()
    await decode.emit(job, [1])
    await talk.tokens_come(1)
    await decode.emit(job, [2, 3], "stop")
    await talk.last()
    counted = tally(stage, "generate")
    assert (counted.admitted, counted.finished, counted.prompt_tokens, counted.completion_tokens) == (1, 1, 3, 3)
    measured = {measure: sum(getattr(counted, measure).counts) for measure in BOUNDS}
    assert measured == {"ttft": 1, "itl": 2, "queue_wait": 1, "e2e": 1}
    assert 0 < counted.ttft.sum <= counted.e2e.sum

    talk = await stage.complete("Hello!", max_tokens=8)
    job = await decode.got()
    await stage.bus.publish(stage.subjects.cancel(talk.id))
    assert isinstance(await talk.last(), Error)
    talk = await stage.complete("Hello!", max_tokens=8)
    job = await decode.got()
    await decode.emit(job, [1], "error", 400, "the text of the prompt")
    await talk.last()
    counted = tally(stage, "completion")
    assert (counted.admitted, counted.finished, counted.cancelled, counted.failed) == (2, 0, 1, {400: 1})
    assert "the text" not in str(way(stage, talk.id))

    talk = await stage.submit("chat", {"messages": [], "temperature": -1})
    await talk.last()
    assert stage.service.traffic().refused == {400: 1}
    assert sum(kind.admitted for kind in stage.service.traffic().kinds.values()) == 3


async def test_choices_are_one_request_with_all_their_tokens(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("Hello!", n=2, max_tokens=4)
    for _ in range(2):
        await decode.emit(await decode.got(), [4, 5, 6, 7], "length")
    last = await talk.last()
    assert isinstance(last, Done)
    counted = tally(stage, "completion")
    assert (counted.admitted, counted.finished) == (1, 1)
    assert (counted.prompt_tokens, counted.completion_tokens) == (last.usage.prompt_tokens, 8)
    assert (way(stage, talk.id).tokens, way(stage, talk.id).code) == (8, 200)


async def test_a_way_tells_where_a_request_waited_and_why_it_went_on_elsewhere(stage: Stage) -> None:
    talk = await stage.generate([5, 6, 7], max_tokens=8)
    await talk.accepted()
    full = await stage.gpu("decode", 0, act=refuse(429))
    await full.got()
    first = await stage.gpu("decode", 1)
    await full.die()
    job = await first.got()
    await first.emit(job, [1, 2])
    await talk.tokens_come(2)
    second = await stage.gpu("decode", 2)
    await first.die()
    await second.emit(await second.got(), [3], "stop")
    await talk.last()
    told = way(stage, talk.id)
    passed = [(station.what, station.where) for station in told.stations if station.what != "accepted"]
    assert passed == [
        ("submitted", []),
        ("queued", []),
        ("routed", ["demo-decode-0#1"]),
        ("refused", ["demo-decode-0#1"]),
        ("queued", []),
        ("routed", ["demo-decode-1#1"]),
        ("first_token", []),
        ("migrated", ["demo-decode-1#1"]),
        ("routed", ["demo-decode-2#1"]),
        ("finished", []),
    ]
    assert [station.why for station in told.stations if station.what == "migrated"] == ["died"]
    times = [station.at for station in told.stations]
    assert times == sorted(times)
    assert (told.code, told.tokens, told.attempt) == (200, 3, job.attempt + 1)
    assert tally(stage, "generate").migrated == 1


async def test_it_tells_what_is_new_once_a_second_and_nothing_while_nothing_is(stage: Stage) -> None:
    heard: asyncio.Queue[Traffic] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        heard.put_nowait(codec.from_msgpack(msg.data, Traffic))

    await stage.bus.subscribe(stage.subjects.traffics, take)
    await stage.bus.flush()
    teller = stage.service.teller
    teller.tick()
    async with asyncio.timeout(SECONDS):
        assert (await heard.get()).kinds == {}
    decode = await stage.gpu("decode")
    talk = await stage.generate([5, 6, 7], max_tokens=8)
    await decode.emit(await decode.got(), [1], "stop")
    await talk.last()
    teller.tick()
    teller.tell()
    teller.tell(again=False)
    teller.tell()
    async with asyncio.timeout(SECONDS):
        told = [await heard.get(), await heard.get()]
    await stage.bus.flush()
    assert heard.empty(), "too early for a tick, and nothing new"
    assert [one.kinds["generate"].finished for one in told] == [1, 1]
    assert (told[0].slot, told[0].generation, told[0].model, told[0].frames) == ("demo-processor-0", 1, "demo", 1)


async def test_what_waits_is_told_of(stage: Stage) -> None:
    talk = await stage.generate([5, 6, 7], max_tokens=8)
    await talk.accepted()
    await eventually(lambda: stage.service.traffic().queued == 1)
    assert stage.service.traffic().in_flight == 1


def done(**usage: Any) -> Done:
    return Done(id="x", attempt=1, finish_reason="stop", usage=Usage(**usage))


def test_ways_are_kept_up_to_a_bound_and_each_is_bounded() -> None:
    meter = Meter("demo-processor-0-g1", "demo")
    for number in range(KEPT + 5):
        trail = meter.trail(str(number), "chat", 1)
        meter.admitted(trail)
        trail.over(done(prompt_tokens=1, completion_tokens=0))
    assert meter.way("4") is None
    assert meter.way("5") is not None
    for attempt in range(200):
        trail.note("refused", ("demo-decode-0#1",), "x" * 1_000, attempt)
    told = meter.way(str(KEPT + 4))
    assert told is not None
    assert (len(told.stations), told.untold) == (STATIONS, 202 - STATIONS)
    assert [station.attempt for station in told.stations[-2:]] == [198, 199]
    assert told.stations[FIRST_STATIONS - 1].attempt == FIRST_STATIONS - 3
    assert len(told.stations[-1].why) == 200


def test_a_prompt_that_only_the_engine_knows_is_counted_at_the_end() -> None:
    meter = Meter("demo-processor-0-g1", "demo")
    trail = meter.trail("a", "chat", 0)
    meter.admitted(trail)
    trail.over(done(prompt_tokens=12, completion_tokens=0))
    told = meter.traffic(queued=0, in_flight=0, suspicions=0, false_alarms=0, frames=0, missed=0, repeated=0)
    assert told.kinds["chat"].prompt_tokens == 12
