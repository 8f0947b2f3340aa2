"""A request belongs to one processor: asked for again, resumed where its client was, claimed by another."""

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.submit import Done, Error
from messages.work import Own
from tests.conftest import eventually
from tests.processor.stage import SECONDS, Stage

pytestmark = pytest.mark.nats


async def test_the_same_client_asking_again_is_told_again(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    await stage.submit("generate", {"token_ids": [1], "id": talk.id}, reply=talk.reply)
    await talk.until(lambda: len(talk.answers) == 2)
    assert talk.answers[0] == talk.answers[1]
    other = await stage.submit("generate", {"token_ids": [1], "id": talk.id})
    error = await other.last()
    assert isinstance(error, Error)
    assert (error.code, error.id) == (409, talk.id)
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)
    assert decode.work.empty()


async def test_a_request_is_resumed_where_the_client_was(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    had = stage.ids("one tw")
    talk = await stage.complete("count: ", max_tokens=20, temperature=0, resume={"attempt": 3, "token_ids": had})
    assert (await talk.accepted()).attempt == 4
    job = await decode.got()
    assert codec.unpack_tokens(job.prompt) == stage.ids("count: ") + had
    assert job.sampling.max_tokens == 20 - len(had)
    await decode.emit(job, stage.ids("o three"), "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert talk.deltas[0].position == len(had)
    assert talk.text == "o three"
    assert done.usage.completion_tokens == len(had) + len(stage.ids("o three"))


async def test_half_a_character_is_carried_over_a_resume(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    ids = stage.ids("€")
    assert len(ids) == 3
    talk = await stage.complete("x", max_tokens=9, resume={"attempt": 1, "token_ids": ids[:2]})
    await decode.emit(await decode.got(), ids[2:], "length")
    await talk.last()
    assert talk.deltas[0].text == "€"


@pytest.mark.parametrize(
    ("more", "had", "reason"),
    [({"max_tokens": 2}, [10, 11], "length"), ({"max_tokens": 9, "stop_token_ids": [12]}, [10, 12], "stop")],
)
async def test_a_client_that_has_it_all_gets_the_last_word_again(
    stage: Stage, more: dict[str, Any], had: list[int], reason: str
) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], resume={"attempt": 1, "token_ids": had}, **more)
    done = await talk.last()
    assert isinstance(done, Done)
    assert (done.finish_reason, done.attempt, done.usage.completion_tokens, talk.deltas) == (reason, 2, 2, [])
    assert decode.work.empty()
    assert len(stage.service.journal) == 0


async def test_resuming_on_the_same_processor_takes_over_from_itself(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=5, temperature=0)
    job = await decode.got()
    await decode.emit(job, [10, 11])
    await talk.tokens_come(2)
    body = {"token_ids": [1], "id": talk.id, "max_tokens": 5, "temperature": 0}
    again = await stage.submit("generate", body | {"resume": {"attempt": 1, "token_ids": [10]}})
    assert (await again.accepted()).attempt == 2
    second = await decode.got()
    await decode.emit(second, [11, 12, 13, 14], "length")
    assert isinstance(await again.last(), Done)
    assert again.deltas[0].position == 1
    assert not any(isinstance(answer, Done | Error) for answer in talk.answers)


async def test_a_higher_claim_takes_a_request_away_without_a_word(stage: Stage, bus: Bus) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    await decode.got()
    own = Own(request=talk.id, attempt=2, owner="demo-processor-1-g1")
    await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(own))
    assert (await decode.aborted()).request == talk.id
    assert len(stage.service.journal) == 0
    assert len(talk.answers) == 1
    tally = stage.service.traffic().kinds["generate"]
    assert (tally.admitted, tally.left, tally.finished, tally.failed) == (1, 1, 0, {})


async def test_the_same_claim_of_an_older_name_wins(stage: Stage, bus: Bus) -> None:
    await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    for owner, left in (("demo-processor-1-g1", 1), ("demo-processor-0-g0", 0)):
        own = Own(request=talk.id, attempt=1, owner=owner)
        await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(own))
        await bus.flush()
        await eventually(lambda left=left: len(stage.service.journal) == left)


async def test_an_owner_says_again_that_it_is_one(stage: Stage, bus: Bus) -> None:
    """Who took the request later, because the client had not heard of the first, has not heard the claim either."""
    await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    heard: asyncio.Queue[Own] = asyncio.Queue()

    async def hear(msg: Msg) -> None:
        heard.put_nowait(codec.from_msgpack(msg.data, Own))

    await bus.subscribe(stage.subjects.own(talk.id), hear)
    await bus.flush()
    later = Own(request=talk.id, attempt=1, owner="demo-processor-1-g1")
    await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(later))
    async with asyncio.timeout(SECONDS):
        claims = [await heard.get(), await heard.get()]
    assert claims[1].owner < later.owner
    assert len(stage.service.journal) == 1
