"""Which slot gets a request: one that refuses, is silent, full or gone is left for another, or waited for."""

import pytest

from messages.bus import error_headers
from messages.submit import Done, Error
from tests.conftest import NatsServer, eventually
from tests.processor.stage import Stage, accept, refuse, silent

pytestmark = pytest.mark.nats


@pytest.mark.parametrize("code", [409, 429, 503])
async def test_a_refusal_leads_at_once_to_another_slot(stage: Stage, code: int) -> None:
    full = await stage.gpu("decode", 0, act=refuse(code))
    talk = await stage.generate([1], max_tokens=3)
    assert (await full.got()).attempt == 1
    other = await stage.gpu("decode", 1)
    job = await other.got()
    assert job.attempt == 2
    await other.emit(job, [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_refusal_of_the_request_itself_is_told(stage: Stage) -> None:
    await stage.gpu("decode", act=refuse(400))
    error = await (await stage.generate([1])).last()
    assert isinstance(error, Error)
    assert (error.code, "says 400" in error.message) == (400, True)


async def test_nobody_there_leads_at_once_to_another_slot(stage: Stage) -> None:
    gone = await stage.gpu("decode", 0)
    await gone.deafen()
    talk = await stage.generate([1], max_tokens=3)
    await talk.accepted()
    other = await stage.gpu("decode", 1)
    await other.emit(await other.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_silent_slot_is_left_for_another_and_told_to_abort(stage: Stage) -> None:
    mute = await stage.gpu("decode", 0, act=silent)
    talk = await stage.generate([1], max_tokens=3)
    await mute.got()
    other = await stage.gpu("decode", 1)
    await other.emit(await other.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)
    assert (await mute.aborted()).attempt == 1


async def test_a_refused_request_waits_for_a_change_and_does_not_spin(stage: Stage) -> None:
    decode = await stage.gpu("decode", act=refuse(429))
    talk = await stage.generate([1], max_tokens=3)
    await decode.got()
    await eventually(lambda: len(stage.service.dispatcher.waiting) == 1)
    attempts = stage.service.dispatcher.attempts
    for _ in range(5):
        await stage.bus.flush()
    assert stage.service.dispatcher.attempts == attempts
    decode.act = lambda gpu, job: None
    await decode.beat(in_flight=0)
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_full_actor_is_not_asked_but_waited_for(stage: Stage) -> None:
    decode = await stage.gpu("decode", capacity=1)
    first = await stage.generate([1], max_tokens=3)
    job = await decode.got()
    second = await stage.generate([2], max_tokens=3)
    await second.accepted()
    assert decode.work.empty()
    await decode.emit(job, [5], "stop")
    assert isinstance(await first.last(), Done)
    await decode.emit(await decode.got(), [6], "stop")
    assert isinstance(await second.last(), Done)


async def test_the_load_decides_between_slots(stage: Stage) -> None:
    busy, idle = await stage.gpu("decode", 0, capacity=64), await stage.gpu("decode", 1, capacity=64)
    await busy.beat(in_flight=40, queued=10, kv_used=90, kv_total=100)
    await idle.beat(in_flight=2, kv_used=1, kv_total=100)
    await eventually(lambda: all(seat.beat is not None for seat in stage.service.view.seats.values()))
    for number in range(8):
        await stage.generate([number + 1])
    for _ in range(8):
        await idle.got()
    assert busy.work.empty()


async def test_what_nobody_answered_is_asked_again_when_nats_is_back(stage: Stage, nats_server: NatsServer) -> None:
    decode = await stage.gpu("decode", act=silent)
    stage.service.asks._seconds = 60.0
    talk = await stage.generate([1], max_tokens=3)
    first = await decode.got()
    decode.act = accept
    nats_server.stop()
    nats_server.start()
    again = await decode.got()
    assert (again.request, again.attempt) == (first.request, first.attempt)
    await decode.emit(again, [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_what_is_answered_to_the_first_time_of_asking_counts_no_more_when_it_was_asked_again(
    stage: Stage, nats_server: NatsServer
) -> None:
    """A seat that is back after us refuses, or is not there, the first time, and works on what it hears the second."""
    decode = await stage.gpu("decode", act=silent)
    stage.service.asks._seconds = 60.0
    talk = await stage.generate([1], max_tokens=3)
    first = await decode.got()
    reply = decode.reply_to(first)
    nats_server.stop()
    nats_server.start()
    again = await decode.got()
    await stage.bus.publish(reply, b"", headers=error_headers(429, "full"))
    await decode.accept_late(again)
    await decode.emit(again, [5], "stop")
    done = await talk.last()
    assert isinstance(done, Done)
    assert done.attempt == first.attempt, "it has not gone on elsewhere"


async def test_who_is_not_there_when_asked_again_is_told_to_abort_what_it_may_have_heard(
    stage: Stage, nats_server: NatsServer
) -> None:
    """One that drains hears no more work, and waits for what it has taken on."""
    draining = await stage.gpu("decode", act=silent)
    stage.service.asks._seconds = 60.0
    talk = await stage.generate([1], max_tokens=3)
    first = await draining.got()
    await draining.take_no_work()
    nats_server.stop()
    nats_server.start()
    abort = await draining.aborted()
    assert (abort.request, abort.attempt) == (first.request, first.attempt)
    other = await stage.gpu("decode", 1)
    elsewhere = await other.got()
    assert elsewhere.attempt > first.attempt
    await other.emit(elsewhere, [5], "stop")
    assert isinstance(await talk.last(), Done)
