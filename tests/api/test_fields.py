"""Every field of OpenAI's chats and completions, by its own client, before the simulated engine and the real one."""

import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionTokenLogprob
from tokenizers import Tokenizer

from tests.api.conftest import TINY, Served

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
SAME: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
CODER = Tokenizer.from_file(f"{TINY}/tokenizer.json")


def chat_of(client: openai.OpenAI, **fields: Any) -> str:
    """One chat's text."""
    content: str | None = client.chat.completions.create(messages=HELLO, **SAME | fields).choices[0].message.content
    assert content is not None
    return content


def test_chats_waited_for_whole_and_in_a_stream(plain: openai.OpenAI) -> None:
    whole = plain.chat.completions.create(messages=HELLO, **SAME)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 12)
    stream = plain.chat.completions.create(messages=HELLO, **SAME, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in told if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_chats_awaited_whole_and_in_a_stream(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(messages=HELLO, **SAME)
    stream = await client.chat.completions.create(messages=HELLO, **SAME, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks), "nobody has asked"


def test_completions_waited_for_whole_and_in_a_stream(plain: openai.OpenAI) -> None:
    whole = plain.completions.create(prompt="Once", **SAME)
    stream = plain.completions.create(prompt="Once", **SAME, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


async def test_completions_awaited_whole_and_in_a_stream(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(prompt="Once", **SAME)
    stream = await client.completions.create(prompt="Once", **SAME, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


def test_a_prompt_may_be_token_ids(plain: openai.OpenAI) -> None:
    ids = CODER.encode("Once upon").ids
    by_ids = plain.completions.create(prompt=ids, **SAME)
    assert by_ids.choices[0].text == plain.completions.create(prompt="Once upon", **SAME).choices[0].text


@pytest.mark.parametrize("as_ids", [False, True])
async def test_several_prompts_are_answered_in_their_order(client: openai.AsyncOpenAI, as_ids: bool) -> None:
    texts = ["Once", "upon a", "time there was"]
    alone = [(await client.completions.create(prompt=text, **SAME)).choices[0].text for text in texts]
    prompt: Any = [CODER.encode(text).ids for text in texts] if as_ids else texts
    answer = await client.completions.create(prompt=prompt, **SAME, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [text for text in alone for _ in range(2)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6 * 12
    assert answer.usage.prompt_tokens == sum(len(CODER.encode(text).ids) for text in texts)
    texts_streamed = dict.fromkeys(range(6), "")
    finishes = []
    async for chunk in await client.completions.create(prompt=prompt, **SAME, n=2, stream=True):
        for choice in chunk.choices:
            texts_streamed[choice.index] += choice.text
            finishes += [choice.index] if choice.finish_reason else []
    assert list(texts_streamed.values()) == [choice.text for choice in answer.choices]
    assert sorted(finishes) == list(range(6)), "each choice has its end, once"


def test_an_echo_comes_before_the_answer(plain: openai.OpenAI) -> None:
    alone = plain.completions.create(prompt="Once upon", **SAME).choices[0].text
    assert plain.completions.create(prompt="Once upon", **SAME, echo=True).choices[0].text == "Once upon" + alone
    ids = CODER.encode("Once upon").ids
    stream = plain.completions.create(prompt=ids, **SAME, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Once upon" + alone


async def test_choices_of_a_chat(client: openai.AsyncOpenAI) -> None:
    fields = SAME | {"temperature": 1.0}
    answer = await client.chat.completions.create(messages=HELLO, **fields, n=3, seed=11)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3, "each has a seed of its own"
    told = dict.fromkeys(range(3), "")
    roles = []
    async for chunk in await client.chat.completions.create(messages=HELLO, **fields, n=3, stream=True):
        for choice in chunk.choices:
            told[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
    assert sorted(roles) == [0, 1, 2]
    assert all(told.values())


def test_the_first_of_several_choices_is_what_one_alone_is(simulated: Served) -> None:
    with openai.OpenAI(base_url=f"{simulated.url}/v1", api_key="-", max_retries=0, timeout=15) as client:
        alone = [chat_of(client, seed=seed) for seed in (5, 6)]
        answer = client.chat.completions.create(messages=HELLO, **SAME, n=2, seed=5)
        assert [choice.message.content for choice in answer.choices] == alone
        assert alone[0] != alone[1]


def consistent(content: list[ChatCompletionTokenLogprob], ranks: int) -> None:
    """What must hold of greedy tokens' log-probabilities."""
    for entry in content:
        assert bytes(entry.bytes or []).decode("utf-8", "replace") == entry.token or entry.token.startswith("<|")
        assert len(entry.top_logprobs) == ranks
        values = [other.logprob for other in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) < 1.001
        if ranks:
            assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)


@pytest.mark.parametrize("ranks", [0, 4, 20])
def test_log_probabilities_of_a_chat(plain: openai.OpenAI, ranks: int) -> None:
    asked = SAME | {"logprobs": True, "top_logprobs": ranks}
    choice = plain.chat.completions.create(messages=HELLO, **asked).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 12
    consistent(content, ranks)
    said = b"".join(bytes(entry.bytes or []) for entry in content).decode("utf-8", "replace")
    assert said == choice.message.content
    streamed: list[ChatCompletionTokenLogprob] = []
    for chunk in plain.chat.completions.create(messages=HELLO, **asked, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs is not None else []
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in content], abs=2e-3)
    assert chat_of(plain) == choice.message.content, "asking changes nothing"


async def test_log_probabilities_of_completions(client: openai.AsyncOpenAI) -> None:
    choices = (await client.completions.create(prompt=["Once", "upon"], **SAME, logprobs=3)).choices
    for choice in choices:
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert logprobs.text_offset is not None
        assert [len(row) for row in logprobs.top_logprobs] == [3] * len(logprobs.tokens)
        assert all(
            row[token] == max(row.values()) for token, row in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
        )
        for at, (token, offset) in enumerate(zip(logprobs.tokens, logprobs.text_offset, strict=True)):
            if not token.startswith("bytes:"):
                shown = "" if token.startswith("<|") else token
                assert choice.text[offset:].startswith(shown), (at, token, offset)
    offsets: dict[int, list[int]] = {0: [], 1: []}
    async for chunk in await client.completions.create(prompt=["Once", "upon"], **SAME, logprobs=0, stream=True):
        for part in chunk.choices:
            offsets[part.index] += (part.logprobs.text_offset or []) if part.logprobs is not None else []
    assert [offsets[choice.index] for choice in choices] == [
        choice.logprobs.text_offset for choice in choices if choice.logprobs is not None
    ]


@pytest.mark.parametrize("ranks", [0, 3])
async def test_an_echo_has_the_log_probabilities_of_the_prompt(client: openai.AsyncOpenAI, ranks: int) -> None:
    asked: dict[str, Any] = SAME | {"prompt": ["Once upon a time", "x"], "echo": True, "logprobs": ranks}
    choices = (await client.completions.create(**asked)).choices
    for choice, text in zip(choices, asked["prompt"], strict=True):
        ids = CODER.encode(text).ids
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert logprobs.text_offset is not None
        assert "".join(logprobs.tokens[: len(ids)]) == text
        assert len(logprobs.tokens) == len(ids) + 12
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        assert all(value is not None and value <= 0 for value in logprobs.token_logprobs[1:])
        # A token that was not among the likeliest has one more row in some APIs; here it is as many as asked for.
        assert {len(row) for row in logprobs.top_logprobs[1:]} == {ranks}
        assert logprobs.text_offset[: len(ids)] == [len(CODER.decode(ids[:at])) for at in range(len(ids))]
    plain = (await client.completions.create(**asked | {"echo": False})).choices
    for choice, alone in zip(choices, plain, strict=True):
        assert choice.logprobs is not None
        assert alone.logprobs is not None
        assert (choice.logprobs.tokens or [])[-12:] == alone.logprobs.tokens
    told: dict[int, list[str]] = {0: [], 1: []}
    texts = {0: "", 1: ""}
    async for chunk in await client.completions.create(**asked, stream=True):
        for part in chunk.choices:
            texts[part.index] += part.text
            told[part.index] += (part.logprobs.tokens or []) if part.logprobs is not None else []
    assert texts == {choice.index: choice.text for choice in choices}
    assert told == {choice.index: choice.logprobs.tokens for choice in choices if choice.logprobs is not None}


def test_a_token_that_ends_the_answer_has_no_log_probability(plain: openai.OpenAI) -> None:
    fields = SAME | {"extra_body": {"stop_token_ids": CODER.encode("q").ids}, "logit_bias": {}}
    forced = {str(CODER.encode("q").ids[0]): 100}
    choice = plain.chat.completions.create(messages=HELLO, **fields | {"logit_bias": forced}, logprobs=True).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", "")
    assert choice.logprobs is None or not choice.logprobs.content


def test_those_who_do_not_ask_get_no_log_probabilities(plain: openai.OpenAI) -> None:
    assert plain.chat.completions.create(messages=HELLO, **SAME).choices[0].logprobs is None
    assert plain.completions.create(prompt="Once", **SAME).choices[0].logprobs is None


def test_biases(plain: openai.OpenAI) -> None:
    token = CODER.encode("z").ids[0]
    assert chat_of(plain, logit_bias={str(token): 100}) == "z" * 12

    def first_of(prompt: str, **fields: Any) -> str:
        logprobs = plain.completions.create(prompt=prompt, **SAME | fields, logprobs=0).choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        token: str = logprobs.tokens[0]
        return token

    firsts = {prompt: first_of(prompt) for prompt in ("Once", "upon", "a", "time", "there", "was")}
    known = {prompt: CODER.encode(token).ids for prompt, token in firsts.items() if not token.startswith("bytes:")}
    prompt, ids = next((prompt, ids) for prompt, ids in known.items() if len(ids) == 1)
    assert first_of(prompt, logit_bias={str(ids[0]): -100}) != firsts[prompt]


def test_the_least_and_the_highest_number_of_tokens(plain: openai.OpenAI) -> None:
    token = CODER.encode("z").ids[0]

    def ended(**fields: Any) -> tuple[str, int]:
        answer = plain.chat.completions.create(model="demo", temperature=0, messages=HELLO, **fields)
        assert answer.usage is not None
        return answer.choices[0].finish_reason, answer.usage.completion_tokens

    stop = {"stop_token_ids": [token]}
    assert ended(max_tokens=9, logit_bias={str(token): 100}, extra_body=stop) == ("stop", 1)
    assert ended(max_tokens=9, extra_body=stop | {"min_tokens": 9}) == ("length", 9)
    assert ended(max_completion_tokens=5, extra_body={"ignore_eos": True}) == ("length", 5)


def test_stop_strings(plain: openai.OpenAI) -> None:
    whole = plain.completions.create(prompt="Once", **SAME).choices[0].text
    stop = whole[5:7]
    choice = plain.completions.create(prompt="Once", **SAME, stop=[stop, "never to be seen"]).choices[0]
    assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 1.5},
        {"presence_penalty": -1.5},
        {"extra_body": {"repetition_penalty": 1.3, "top_k": 5, "min_p": 0.1}},
        {"temperature": 0.7, "top_p": 0.8, "seed": 3},
    ],
)
def test_how_tokens_are_chosen(plain: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = plain.chat.completions.create(messages=HELLO, **SAME | {"max_tokens": 6} | fields)
    assert answer.choices[0].finish_reason in ("length", "stop")


async def test_penalties_are_felt(real: openai.AsyncOpenAI) -> None:
    token = CODER.encode("z").ids[0]
    fields = SAME | {"logit_bias": {str(token): 8}, "max_tokens": 30}
    plain = await real.completions.create(prompt="Once", **fields)
    penalised = await real.completions.create(prompt="Once", **fields, frequency_penalty=2.0)
    assert penalised.choices[0].text.count("z") < plain.choices[0].text.count("z")


def test_what_is_known_and_changes_nothing_is_taken(plain: openai.OpenAI) -> None:
    ignored: dict[str, Any] = {
        "user": "me",
        "safety_identifier": "me",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "prediction": {"type": "content", "content": "x"},
        "verbosity": "low",
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "reasoning_effort": "low",
        "response_format": {"type": "text"},
        "n": 1,
    }
    assert chat_of(plain, **ignored) == chat_of(plain)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'"),
        ({"extra_body": {"best_of": 2}}, "best_of", "there is no such field"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs: true only"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"logit_bias": {"512": 1}}, "logit_bias", "token id 512 is outside the vocabulary of 512"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is no token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]", "<= 100"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": True}, "n", "expected `int"),
        ({"seed": 1 << 63}, "seed", ""),
        ({"modalities": ["audio"]}, "modalities[0]", "audio"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ],
)
def test_what_is_wrong_is_named(plain: openai.OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        plain.chat.completions.create(messages=HELLO, **SAME | fields)
    assert (refused.value.param, said in refused.value.message) == (param, True), refused.value.message


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"best_of": 3}, "best_of", "3 is not n, which is 1"),
        ({"suffix": "."}, "suffix", "continued at its end only"),
        ({"prompt": ["a", [1]]}, "prompt[1]", "not a text, as those before it are"),
        ({"prompt": [1, "a"]}, "prompt[1]", "not a token id, as those before it are"),
        ({"prompt": [[1], "a"]}, "prompt[1]", "not a list of token ids"),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1, 600]]}, "prompt", "token id 600 is outside"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": ["a"] * 129}, "prompt", "129 prompts; at most 128"),
        ({"prompt": ["a"] * 20, "n": 7}, "prompt", "are 140; at most 128 are taken"),
    ],
)
def test_what_is_wrong_in_a_completion_is_named(
    plain: openai.OpenAI, fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        plain.completions.create(**{"prompt": "a"} | SAME | fields)
    assert (refused.value.param, said in refused.value.message) == (param, True), refused.value.message
