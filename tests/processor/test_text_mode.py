"""`text: true`: chats reach the engine as they are, its text comes back; what needs our tokenizer is refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizers import Tokenizer as Coder

from actors.processor.detokenize import ByWindow
from messages.frames import Finish, Said
from messages.submit import Done, Error
from messages.work import Job
from tests.conftest import NatsServer
from tests.processor.stage import TINY, Gpu, Stage, raised

pytestmark = pytest.mark.nats

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
BECAUSE = "'demo' does not serve completions: its engine alone has its tokenizer (text: true); there is %s"
LENGTH = Finish("length", 0, "", 7, 2, 3)


@pytest.fixture
async def stage(nats_server: NatsServer) -> AsyncIterator[Stage]:
    async with raised(nats_server.url, text=True, reasoning_parser="qwen3", tool_call_parser="qwen25") as stage:
        await stage.gate(True)
        yield stage


async def chat(stage: Stage, **fields: Any) -> Any:
    return await stage.submit("chat", {"messages": [USER]} | fields)


async def say(gpu: Gpu, job: Job, token: int | None, said: Said, finish: Finish | None = None) -> None:
    await gpu.send(job, gpu.frame(gpu.item(job, [] if token is None else [token], finish, said=said)))


async def test_a_chat_travels_as_it_is_and_comes_back_as_text(stage: Stage) -> None:
    gpu = await stage.gpu("decode")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    talk = await chat(stage, messages=messages, tools=[tool], chat_template_kwargs={"w": 1}, reasoning_effort="low")
    job = await gpu.got()
    assert job.prompt == b""
    assert job.chat is not None
    assert [message["role"] for message in job.chat.messages] == ["user", "assistant"]
    assert job.chat.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert job.chat.words == {"w": 1, "reasoning_effort": "low"}
    assert job.chat.tools is not None
    assert job.chat.tools[0]["function"]["name"] == "f"
    assert "<think>" in job.chat.marks
    await say(gpu, job, 5, Said("ne", 7))
    await say(gpu, job, 6, Said("in"), LENGTH)
    last = await talk.last()
    assert isinstance(last, Done)
    assert (talk.text, talk.token_ids, last.finish_reason) == ("nein", [5, 6], "length")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (7, 2, 3)


async def test_greedy_with_penalties_is_generated_anew_and_its_text_goes_on_at_the_seam(stage: Stage) -> None:
    doomed = await stage.gpu("decode")
    talk = await chat(stage, temperature=0, frequency_penalty=0.5)
    job = await doomed.got()
    await say(doomed, job, 5, Said("n", 7))
    await say(doomed, job, 6, Said(""))
    await talk.tokens_come(2)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    job = await other.got()
    assert job.prompt == b""
    for token, text in ((5, "n"), (6, ""), (7, "é")):
        await say(other, job, token, Said(text, 7 if token == 5 else 0))
    await say(other, job, None, Said("!"), Finish("stop", 0, "", 7, 3, 3))
    assert isinstance(await talk.last(), Done)
    assert (talk.text, talk.token_ids) == ("né!", [5, 6, 7])


async def test_the_renderings_end_begins_the_reasoning(stage: Stage) -> None:
    gpu = await stage.gpu("decode")
    talk = await chat(stage)
    job = await gpu.got()
    await say(gpu, job, 5, Said("hm", 7, "<|im_start|>assistant\n<think>\n"))
    await say(gpu, job, 6, Said("</think>yes"), LENGTH)
    await talk.last()
    assert ("".join(delta.reasoning for delta in talk.deltas), talk.text) == ("hm", "yes")


async def test_a_stop_string_ends_the_answer_and_the_usage_is_right(stage: Stage) -> None:
    gpu = await stage.gpu("decode")
    talk = await chat(stage, stop="END")
    job = await gpu.got()
    await say(gpu, job, 5, Said("one E", 7))
    await say(gpu, job, 6, Said("ND two"))
    last = await talk.last()
    assert isinstance(last, Done)
    assert (talk.text, last.finish_reason) == ("one ", "stop")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 2)
    assert (await gpu.aborted()).request == job.request


async def test_a_stream_goes_on_elsewhere_by_the_chat_and_the_tokens_so_far(stage: Stage) -> None:
    first = await stage.gpu("decode")
    talk = await chat(stage, max_tokens=9)
    job = await first.got()
    await say(first, job, 5, Said("ne", 7))
    await say(first, job, 6, Said("i"))
    await talk.tokens_come(2)
    second = await stage.gpu("decode", 1)
    await first.die()
    again = await second.got()
    assert (again.chat, again.prompt, again.sampling.max_tokens) == (job.chat, bytes([5, 0, 0, 0, 6, 0, 0, 0]), 7)
    await say(second, again, 7, Said("n", 7), LENGTH)
    last = await talk.last()
    assert isinstance(last, Done)
    assert (talk.text, talk.token_ids) == ("nein", [5, 6, 7])
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 3)


async def test_choices_have_a_parser_each(stage: Stage) -> None:
    gpu = await stage.gpu("decode")
    talk = await chat(stage, n=2)
    for _ in range(2):
        await say(gpu, await gpu.got(), 5, Said("yes", 7, "<think>"), LENGTH)
    last = await talk.last()
    assert isinstance(last, Done)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 2)
    assert sorted((delta.index, delta.reasoning) for delta in talk.deltas) == [(0, "yes"), (1, "yes")]


async def test_an_engine_that_gives_no_text_is_an_error(stage: Stage) -> None:
    gpu = await stage.gpu("decode")
    talk = await chat(stage)
    await gpu.emit(await gpu.got(), [5])
    last = await talk.last()
    assert isinstance(last, Error)
    assert (last.code, last.message) == (500, "demo-decode-0#1 gave no text with its tokens")


@pytest.mark.parametrize(
    ("fields", "code", "what"),
    [
        ({"logprobs": True}, 400, "logprobs: cannot be had"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias: cannot be had"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: grammars cannot be had"),
        ({"regex": "a*"}, 400, "regex: grammars cannot be had"),
        ({"resume": {"attempt": 0, "token_ids": [5]}}, 500, "cannot be continued by another"),
    ],
)
async def test_what_needs_our_tokenizer_is_refused(stage: Stage, fields: Any, code: int, what: str) -> None:
    last = await (await chat(stage, **fields)).last()
    assert isinstance(last, Error)
    assert (last.code, what in last.message, "(text: true)" in last.message) == (code, True, True), last


async def test_other_kinds_are_not_found(stage: Stage) -> None:
    ids = await (await stage.generate([65])).last()
    assert isinstance(ids, Error)
    assert (ids.code, "takes no token ids: its engine alone" in ids.message) == (404, True)
    texts = await (await stage.complete("Hi")).last()
    assert isinstance(texts, Error)
    assert (texts.code, texts.message) == (404, BECAUSE % "chat")
    status, answer, _ = await stage.post("/v1/completions", {"model": "demo", "prompt": [1, 2]})
    assert (status, answer["error"]["message"]) == (404, BECAUSE % "/v1/chat/completions")


def test_text_that_goes_on_elsewhere_is_the_same_wherever_it_was_cut() -> None:
    """Half characters too: whoever goes on is given the tokens so far, and says only what they had not yet said."""
    coder = Coder.from_file(f"{TINY}/tokenizer.json")
    before = coder.encode("assistant\n").ids
    ids = coder.encode("né 🎭 end 日本 \u200d").ids
    for cut in range(len(ids) + 1):
        first, second = ByWindow(coder.decode, before), ByWindow(coder.decode, before)
        told = first.push(ids[:cut])
        assert second.push(ids[:cut]) == told
        assert told + second.push(ids[cut:]) + second.finish() == "né 🎭 end 日本 \u200d", cut
        assert "\ufffd" not in told
