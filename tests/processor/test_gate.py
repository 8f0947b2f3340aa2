"""What a processor holds and what it lets finish: at a closed gate, with nobody ready, at its bounds, draining."""

import asyncio

import pytest

from messages import codec
from messages.submit import Done, Error
from tests.conftest import NatsServer
from tests.processor.stage import SECONDS, Stage, raised

pytestmark = pytest.mark.nats


async def test_held_requests_are_answered_in_order_when_the_gate_opens(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 3}) as stage:
        await stage.gate(False)
        talks = [await stage.generate([number]) for number in (1, 2, 3)]
        for talk in talks:
            await talk.accepted()
        refused = await (await stage.generate([4])).last()
        assert isinstance(refused, Error)
        assert (refused.code, refused.retry_after) == (503, 2.0)
        assert "demo-decode-0: loading" in refused.message
        decode = await stage.gpu("decode")
        assert decode.work.empty()
        await stage.gate(True, 2)
        for number, talk in enumerate(talks, 1):
            job = await decode.got()
            assert codec.unpack_tokens(job.prompt) == [number]
            await decode.emit(job, [9], "stop")
            assert isinstance(await talk.last(), Done)


async def test_an_open_gate_with_nobody_ready_holds_too(stage: Stage) -> None:
    talk = await stage.generate([1])
    await talk.accepted()
    decode = await stage.gpu("decode")
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_held_request_ends_at_its_deadline(stage: Stage) -> None:
    await stage.gate(False, 2)
    error = await (await stage.generate([1], timeout=0.1)).last()
    assert isinstance(error, Error)
    assert error.code == 408
    assert len(stage.service.line) == 0


async def test_no_queue_means_refusing(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 0}) as stage:
        closed = await (await stage.generate([1])).last()
        await stage.gate(True)
        nobody = await (await stage.generate([1])).last()
        decode = await stage.gpu("decode", capacity=1)
        taken = await stage.generate([1])
        job = await decode.got()
        full = await (await stage.generate([2])).last()
        await decode.emit(job, [5], "stop")
        assert isinstance(await taken.last(), Done)
    assert isinstance(closed, Error)
    assert isinstance(nobody, Error)
    assert isinstance(full, Error)
    assert [closed.code, nobody.code, full.code] == [503, 503, 429]
    assert closed.retry_after == nobody.retry_after == full.retry_after == 2.0


async def test_requests_in_flight_are_bounded(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"in_flight": 1}) as stage:
        await stage.gate(True)
        await (await stage.generate([1])).accepted()
        error = await (await stage.generate([2])).last()
    assert isinstance(error, Error)
    assert (error.code, error.retry_after) == (429, 2.0)


async def test_a_gate_that_closes_lets_finish_what_is_in(stage: Stage) -> None:
    decode = await stage.gpu("decode", 0)
    talk = await stage.generate([1], max_tokens=4, temperature=0)
    await decode.emit(await decode.got(), [5])
    await talk.tokens_come(1)
    await stage.gate(False, 2)
    other = await stage.gpu("decode", 1)
    await decode.die()
    await other.emit(await other.got(), [6], "stop")
    assert isinstance(await talk.last(), Done)


async def test_draining_finishes_what_is_there_and_takes_nothing_new(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    job = await decode.got()
    await stage.nats.shut()
    draining = asyncio.ensure_future(stage.service.drain())
    await stage.bus.flush()
    assert (await stage.generate([2])).answers == []
    status, body, headers = await stage.post("/v1/completions", {"model": "demo", "prompt": "x"})
    assert (status, headers["Retry-After"]) == (503, "2")
    assert "draining" in body["error"]["message"]
    assert not draining.done()
    await decode.emit(job, [5], "stop")
    assert isinstance(await talk.last(), Done)
    await asyncio.wait_for(draining, SECONDS)


async def test_aborting_gives_each_its_error(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talks = [await stage.generate([number + 1]) for number in range(3)]
    for _ in talks:
        await decode.got()
    await stage.service.abort()
    for talk in talks:
        error = await talk.last()
        assert isinstance(error, Error)
        assert error.code == 503
