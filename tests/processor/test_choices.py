"""Several choices of one request: numbered as OpenAI has them, one last word, one error, one client."""

import asyncio
import uuid
from typing import Any

import msgspec
import openai
import pytest

from messages.frames import Finish
from messages.submit import Delta, Done, Error
from messages.work import Job
from tests.conftest import NatsServer, eventually
from tests.processor.stage import SECONDS, Conversation, Gpu, Stage, raised, refuse

pytestmark = pytest.mark.nats


async def jobs(decode: Gpu, count: int) -> list[Job]:
    """Wait for so much work, in the order in which it was asked for."""
    return [await decode.got() for _ in range(count)]


def by_index(talk: Conversation) -> dict[int, list[int]]:
    """The tokens of each choice, whose positions must fit."""
    found: dict[int, list[int]] = {}
    for delta in talk.deltas:
        ids = found.setdefault(delta.index, [])
        assert delta.position == len(ids)
        ids += delta.token_ids
    return found


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.submit("completion", {"prompt": [[1, 2, 3], [4]], "n": 2, "seed": 7, "temperature": 1})
    asked = await jobs(decode, 4)
    assert [len(job.prompt) // 4 for job in asked] == [3, 3, 1, 1]
    assert [job.sampling.seed for job in asked] == [7, 8, 9, 10]
    assert len({job.request for job in asked}) == 4
    for number, job in enumerate(asked):
        await decode.emit(job, [20 + number])
    for number in (3, 1, 0, 2):
        await decode.emit(asked[number], [30 + number], "length" if number == 1 else "stop")
    last = await talk.last()
    assert isinstance(last, Done)
    assert last.id == talk.id
    assert by_index(talk) == {number: [20 + number, 30 + number] for number in range(4)}
    assert last.finish_reasons == ["stop", "length", "stop", "stop"]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 8), "each prompt counts once"
    assert len(stage.service.journal) == 0
    assert not stage.service.has(talk.id)


async def test_one_failing_choice_is_the_error_of_all(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("a", n=3)
    asked = await jobs(decode, 3)
    await decode.emit(asked[0], [20])
    await talk.until(lambda: bool(talk.deltas))
    await decode.emit(asked[1], [], "error", 500, "out of luck")
    error = await talk.last()
    assert isinstance(error, Error)
    assert (error.code, error.id, "out of luck" in error.message) == (500, talk.id, True)
    aborted = {(await decode.aborted()).request for _ in range(2)}
    assert aborted == {asked[0].request, asked[2].request}
    assert len(stage.service.journal) == 0


async def test_a_client_that_wants_no_more_ends_all_choices(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("a", n=3)
    asked = await jobs(decode, 3)
    await stage.bus.publish(stage.subjects.cancel(talk.id))
    assert (await talk.last()) == Error(id=talk.id, code=499, message="cancelled by the client", attempt=1)
    assert {(await decode.aborted()).request for _ in range(3)} == {job.request for job in asked}


@pytest.mark.parametrize("stream", [True, False])
async def test_an_http_client_that_goes_away_ends_all_choices(stage: Stage, stream: bool) -> None:
    decode = await stage.gpu("decode")
    body = msgspec.json.encode({"model": "demo", "prompt": "Hi", "n": 2, "stream": stream})
    asking = asyncio.ensure_future(stage.session.post(f"{stage.http.address}/v1/completions", data=body))
    asked = await jobs(decode, 2)
    asking.cancel()
    assert {(await decode.aborted()).request for _ in range(2)} == {job.request for job in asked}
    await eventually(lambda: len(stage.service.journal) == 0)


async def test_another_processors_claim_ends_all_choices_without_a_word(stage: Stage) -> None:
    from messages import codec
    from messages.work import Own

    decode = await stage.gpu("decode")
    talk = await stage.complete("a", n=2)
    await jobs(decode, 2)
    claim = Own(request=talk.id, attempt=2, owner="demo-processor-1-g1")
    await stage.bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(claim))
    for _ in range(2):
        await decode.aborted()
    assert not any(isinstance(answer, Done | Error) for answer in talk.answers)
    assert not stage.service.has(talk.id)


async def test_choices_go_on_elsewhere_one_by_one(stage: Stage) -> None:
    doomed, other = await stage.gpu("decode", 0), await stage.gpu("decode", 1)
    talk = await stage.complete("a", n=4)
    held: list[tuple[Gpu, Job]] = []
    while len(held) < 4:
        for gpu in (doomed, other):
            while not gpu.work.empty():
                held.append((gpu, gpu.work.get_nowait()))
        await asyncio.sleep(0)
    for number, (gpu, job) in enumerate(held):
        await gpu.emit(job, [20 + number])
    await talk.until(lambda: len(by_index(talk)) == 4)
    moved = [job for gpu, job in held if gpu is doomed]
    assert moved, "the router gave all to one"
    await doomed.die()
    again = [await other.got() for _ in moved]
    assert {job.attempt for job in again} == {2}
    for job in [*again, *(job for gpu, job in held if gpu is other)]:
        await other.emit(job, [40], "stop")
    last = await talk.last()
    assert isinstance(last, Done)
    assert {tuple(ids[1:]) for ids in by_index(talk).values()} == {(40,)}
    assert sorted(ids[0] for ids in by_index(talk).values()) == [20, 21, 22, 23]
    assert last.attempt == 2


async def test_choices_are_resumed_from_what_was_received_of_each(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    body: dict[str, Any] = {"prompt": [1, 2], "n": 3, "max_tokens": 3}
    body["resume"] = {"attempt": 4, "token_ids": [], "choices": [[5], [6, 7, 8], []]}
    talk = await stage.submit("completion", body)
    assert (await talk.accepted()).attempt == 5
    asked = await jobs(decode, 2)
    assert [(len(job.prompt) // 4, job.sampling.max_tokens, job.attempt) for job in asked] == [(3, 2, 5), (2, 3, 5)]
    await decode.emit(asked[0], [9, 10], "length")
    await decode.emit(asked[1], [11], "stop")
    last = await talk.last()
    assert isinstance(last, Done)
    assert [(delta.index, delta.position, delta.token_ids) for delta in talk.deltas] == [(0, 1, [9, 10]), (2, 0, [11])]
    assert last.finish_reasons == ["length", "length", "stop"]
    assert last.usage.completion_tokens == 7


async def test_what_was_received_must_fit_the_choices(stage: Stage) -> None:
    resume = {"attempt": 1, "token_ids": [], "choices": [[5]]}
    error = await (await stage.complete("a", n=2, resume=resume)).last()
    assert isinstance(error, Error)
    assert (error.code, error.message) == (400, "resume.choices: 1 of them, for 2 choices")


async def test_choices_that_do_not_all_fit_are_refused_as_a_whole(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"in_flight": 3}) as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode")
        error = await (await stage.complete("a", n=4)).last()
        assert isinstance(error, Error)
        assert (error.code, "4 choices are too many now: 3 may be in flight" in error.message) == (429, True)
        assert len(stage.service.journal) == 0
        talk = await stage.complete("a", n=3)
        for job in await jobs(decode, 3):
            await decode.emit(job, [5], "stop")
        assert isinstance(await talk.last(), Done)


async def test_choices_that_the_line_has_no_room_for_leave_nothing_behind(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 2}) as stage:
        await stage.gate(False)
        error = await (await stage.complete("a", n=3)).last()
        assert isinstance(error, Error)
        assert (error.code, "2 requests wait already" in error.message) == (503, True)
        assert (len(stage.service.journal), len(stage.service.line)) == (0, 0)


async def test_the_same_client_asking_again_is_told_again_that_it_is_accepted(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    request = str(uuid.uuid4())
    talk = await stage.submit("completion", {"id": request, "prompt": "a", "n": 2})
    asked = await jobs(decode, 2)
    await stage.submit("completion", {"id": request, "prompt": "a", "n": 2}, reply=talk.reply)
    await talk.until(lambda: len(talk.answers) == 2)
    stranger = await stage.submit("completion", {"id": request, "prompt": "a", "n": 2})
    error = await stranger.last()
    assert isinstance(error, Error)
    assert error.code == 409
    for job in asked:
        await decode.emit(job, [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_choices_by_the_openai_client(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    async with openai.AsyncOpenAI(base_url=f"{stage.http.address}/v1", api_key="-", max_retries=0) as client:
        prompts = ["one", "two"]
        asking = asyncio.ensure_future(client.completions.create(model="demo", prompt=prompts, echo=True))
        first, second = await jobs(decode, 2)
        await decode.emit(second, stage.ids(" B"), "stop")
        await decode.emit(first, stage.ids(" A"), "length")
        answer = await asyncio.wait_for(asking, SECONDS)
        told = [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices]
        assert told == [(0, "one A", "length"), (1, "two B", "stop")]

        streaming = asyncio.ensure_future(
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "Hi"}],
                n=2,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        first, second = await jobs(decode, 2)
        await decode.emit(second, stage.ids("B"), "stop")
        chunks = aiter(await asyncio.wait_for(streaming, SECONDS))
        begin = (await anext(chunks)).choices[0]
        assert (begin.index, begin.delta.role, begin.delta.content) == (1, "assistant", "B")
        assert (await anext(chunks)).choices[0].finish_reason == "stop", "a choice's end is told when it comes"
        await decode.emit(first, stage.ids("A"), "length")
        rest = [chunk async for chunk in chunks]
        assert [(chunk.choices[0].index, chunk.choices[0].delta.content) for chunk in rest[:1]] == [(0, "A")]
        assert rest[-2].choices[0].finish_reason == "length"
        assert rest[-1].usage is not None
        assert rest[-1].usage.completion_tokens == len(stage.ids("A")) + len(stage.ids("B"))


async def test_an_error_of_one_choice_in_a_stream_is_told_in_it(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    async with openai.AsyncOpenAI(base_url=f"{stage.http.address}/v1", api_key="-", max_retries=0) as client:
        asking = asyncio.ensure_future(client.completions.create(model="demo", prompt="a", n=2, stream=True))
        first, second = await jobs(decode, 2)
        await decode.emit(first, stage.ids("x"))
        chunks = aiter(await asyncio.wait_for(asking, SECONDS))
        assert (await anext(chunks)).choices[0].text == "x"
        await decode.emit(second, [], "error", 500, "the engine broke")
        with pytest.raises(openai.APIError, match="the engine broke"):
            await anext(chunks)
        await decode.aborted()


async def test_too_many_choices_are_refused_with_the_bound(stage: Stage) -> None:
    status, answer, _ = await stage.post("/v1/completions", {"model": "demo", "prompt": ["a"] * 65, "n": 2})
    assert status == 400
    assert "65 prompts with 2 choices each are 130; at most 128 are taken" in answer["error"]["message"]
    status, answer, _ = await stage.post("/v1/completions", {"model": "demo", "prompt": "a", "n": 129})
    assert (status, answer["error"]["param"], "<= 128" in answer["error"]["message"]) == (400, "n", True)


async def test_actors_that_refuse_one_choice_refuse_the_request(stage: Stage) -> None:
    decode = await stage.gpu("decode", act=refuse(400))
    status, answer, _ = await stage.post("/v1/completions", {"model": "demo", "prompt": "a", "n": 2})
    assert (status, "says 400" in answer["error"]["message"]) == (400, True)
    await jobs(decode, 2)
    assert len(stage.service.journal) == 0


async def test_a_choice_that_ends_late_has_its_cached_tokens_counted_once(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.submit("generate", {"token_ids": [1, 2, 3, 4], "n": 2})
    for job in await jobs(decode, 2):
        finish = Finish("stop", 0, "", 4, 1, 3)
        await decode.send(job, decode.frame(decode.item(job, [9], finish)))
    last = await talk.last()
    assert isinstance(last, Done)
    assert (last.usage.prompt_tokens, last.usage.cached_tokens, last.usage.completion_tokens) == (4, 3, 2)
    assert all(isinstance(answer, Delta) and not answer.text for answer in talk.answers[1:-1])
