"""Requests over NATS as clients see them: accepted, deltas, one last word, by one actor or by prefill and decode."""

import asyncio

import pytest

from messages import codec
from messages.frames import Finish
from messages.submit import Answer, Delta, Done, Error
from messages.work import Decode, Prefill
from tests.conftest import eventually
from tests.processor.stage import SECONDS, Stage

pytestmark = pytest.mark.nats


async def test_a_request_from_its_prompt_to_its_last_word(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("abc", max_tokens=9, temperature=0, top_k=5, stop_token_ids=[7])
    accepted = await talk.accepted()
    assert (accepted.id, accepted.attempt, accepted.owner) == (talk.id, 1, "demo-processor-0-g1")
    job = await decode.got()
    assert isinstance(job, Decode)
    assert codec.unpack_tokens(job.prompt) == stage.ids("abc")
    assert (job.sampling.max_tokens, job.sampling.temperature, job.sampling.top_k) == (9, 0, 5)
    assert 7 in job.sampling.stop_token_ids
    assert (job.generation, job.out, job.bootstrap) == (1, "demo-processor-0-g1", None)
    await decode.emit(job, stage.ids("hello "))
    await talk.tokens_come(len(stage.ids("hello ")))
    await decode.emit(job, stage.ids("world"), "stop")
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, talk.token_ids) == ("hello world", stage.ids("hello ") + stage.ids("world"))
    assert (done.finish_reason, done.resumed) == ("stop", False)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(stage.ids("abc")), len(talk.token_ids))
    assert done.usage.cached_tokens == 3


async def test_chat_is_rendered_and_msgpack_answered_in_kind(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    reply = stage.bus.inbox()
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(msg: object) -> None:
        answers.put_nowait(getattr(msg, "data", b""))

    await stage.bus.subscribe(reply, take)
    subject = stage.subjects.submit("demo", "chat")
    headers = {"content-type": codec.MSGPACK}
    await stage.bus.publish(subject, codec.to_msgpack(body), reply=reply, headers=headers)
    job = await decode.got()
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert codec.unpack_tokens(job.prompt) == stage.ids(rendered)
    await decode.emit(job, stage.ids("yes"), "stop")
    async with asyncio.timeout(SECONDS):
        got = [codec.msgpack_decoder(Answer).decode(await answers.get()) for _ in range(3)]
    assert isinstance(got[1], Delta)
    assert got[1].text == "yes"
    assert isinstance(got[2], Done)


async def test_what_piles_up_is_sent_as_one(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1, 2, 3], max_tokens=50)
    job = await decode.got()
    items = [decode.item(job, [10 + number]) for number in range(20)]
    await decode.send(job, decode.frame(*items))
    await decode.emit(job, [], "length")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == list(range(10, 30))
    assert len(talk.deltas) == 1
    assert talk.text == ""


async def test_a_stop_string_ends_the_stream_and_aborts_decode(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", stop=["END"], max_tokens=50)
    job = await decode.got()
    ids = stage.ids("some textE") + stage.ids("ND and more")
    for at in ids:
        await decode.emit(job, [at])
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, done.finish_reason) == ("some text", "stop")
    assert (await decode.aborted()).request == talk.id
    assert done.usage.completion_tokens < len(ids)


async def test_the_token_that_ended_a_stream_is_not_text(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", skip_special_tokens=False, stop_token_ids=stage.ids("!"))
    job = await decode.got()
    ids = stage.ids("<|im_start|>so!")
    await decode.send(job, decode.frame(decode.item(job, ids, Finish("stop", matched=ids[-1]))))
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, talk.token_ids, done.usage.completion_tokens) == ("<|im_start|>so", ids, len(ids))


async def test_prefill_and_decode_are_told_at_the_same_moment_and_meet(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3], max_tokens=5)
    one, other = await prefill.got(), await decode.got()
    assert isinstance(one, Prefill)
    assert isinstance(other, Decode)
    assert one.bootstrap is not None
    assert one.bootstrap == other.bootstrap
    assert (one.bootstrap.host, one.bootstrap.port) == ("127.0.0.1", 9)
    assert one.bootstrap.room < 2**63
    await prefill.emit(one, [], "prefilled")
    await eventually(lambda: pair.service.view.seats[prefill.slot].own == 0)
    await decode.emit(other, [4, 5], "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert done.usage.cached_tokens == 3
    assert prefill.aborts.empty()
    assert decode.aborts.empty()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_when_one_side_fails_the_other_is_aborted_and_the_real_error_told(pair: Stage, role: str) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3])
    one, other = await prefill.got(), await decode.got()
    if role == "prefill":
        await prefill.emit(one, [], "error", 500, "out of memory")
        assert (await decode.aborted()).request == talk.id
    else:
        await decode.emit(other, [], "error", 500, "out of memory")
        assert (await prefill.aborted()).request == talk.id
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 500
    assert "out of memory" in error.message
    assert f"demo-{role}-0#1" in error.message


async def test_an_error_that_tells_of_the_other_sides_death_is_not_told(pair: Stage) -> None:
    doomed, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3])
    job = await decode.got()
    await doomed.deafen()
    await decode.emit(job, [], "error", 500, "KV transfer failed")
    prefill = await pair.gpu("prefill", 1)
    await prefill.emit(await prefill.got(), [], "prefilled")
    again = await decode.got()
    assert again.attempt > 1
    await decode.emit(again, [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_cancelling_aborts_everywhere_and_is_the_last_word(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1])
    await prefill.got()
    await decode.got()
    await pair.bus.publish(pair.subjects.cancel(talk.id))
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 499
    assert (await prefill.aborted()).request == (await decode.aborted()).request == talk.id
    assert len(pair.service.journal) == 0


async def test_the_deadline_is_a_last_word(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], timeout=0.2)
    assert (await decode.got()).ttl < 0.201
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 408
    assert (await decode.aborted()).request == talk.id
