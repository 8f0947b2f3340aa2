"""Reasoning and tool calls in streamed text: the same whatever the cuts, and nothing that a model writes is lost."""

import asyncio

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.processor import parsers
from actors.processor.intake import Intake
from actors.processor.parsers.marks import split_at
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages.config import Model, Part
from messages.submit import Done
from tests.conftest import NatsServer
from tests.processor.stage import TINY, raised

WEATHER = '{"name": "weather", "arguments": {"city": "Z\u00fcrich"}}'
SEVERAL = f'Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>\n'

Read = tuple[str, str, list[tuple[int | None, str | None, str]]]


def read(parts: list[str], reasoning: bool = True, tools: bool = True, prompt: str = "") -> Read:
    """Stream the parts and put together what came."""
    parser = parsers.make("qwen3" if reasoning else None, "qwen25" if tools else None, prompt)
    assert parser is not None
    told = [*map(parser.push, parts), parser.finish()]
    calls = [call for _, _, some in told for call in some]
    assert parser.called == bool(calls)
    assert all(call.id for call in calls)
    return (
        "".join(part for part, _, _ in told),
        "".join(part for _, part, _ in told),
        [(call.index, call.function.name, call.function.arguments) for call in calls],
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("just text ", ("", "just text ", [])),
        ("<think>\nhm, so\n</think>\n\nYes.", ("hm, so", "Yes.", [])),
        ("  <think>a</think>b", ("a", "b", [])),
        ("<think>cut short", ("cut short", "", [])),
        ("<think></think>\n\nYes", ("", "Yes", [])),
        ("a <think>b</think>", ("", "a <think>b</think>", [])),
        ("<thin", ("", "<thin", [])),
        ("1 < 2 </think>", ("", "1 < 2 </think>", [])),
        (SEVERAL, ("", "Let me see.", [(0, "weather", '{"city": "Z\u00fcrich"}'), (1, "now", "{}")])),
        (
            f"<think>\nx\n</think>\n<tool_call>{WEATHER}</tool_call>",
            ("x", "", [(0, "weather", '{"city": "Z\u00fcrich"}')]),
        ),
        ("<tool_call>no json</tool_call> so", ("", "<tool_call>no json</tool_call>so", [])),
        ('<tool_call>\n{"name": "cut', ("", '<tool_call>\n{"name": "cut', [])),
        ("<think>I could <tool_call></think>no", ("I could <tool_call>", "no", [])),
    ],
)
def test_what_is_read(text: str, wanted: Read) -> None:
    assert read([text]) == wanted
    assert read(list(text)) == wanted


def test_a_template_may_begin_the_reasoning() -> None:
    assert read(["because\n</think>\n\nYes"], prompt="<|im_start|>assistant\n<think>\n") == ("because", "Yes", [])
    assert read(["Yes"], prompt="assistant\n<think>\n\n</think>\n\n") == ("", "Yes", [])


def test_each_alone() -> None:
    assert read([SEVERAL], tools=False) == ("", SEVERAL, [])
    assert read(["<think>a</think>b"], reasoning=False) == ("", "<think>a</think>b", [])
    assert parsers.make(None, None, "") is None


PARTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        WEATHER,
        "<",
        "</",
        "<tool",
        "think>",
        "\n",
        " ",
        "x",
        "\u4e16",
    ]
)


@given(st.lists(PARTS, max_size=14), st.booleans(), st.booleans(), st.sampled_from(["", "<think>\n"]), st.data())
def test_any_cut_gives_the_same(
    words: list[str], reasoning: bool, tools: bool, prompt: str, data: st.DataObject
) -> None:
    if not reasoning and not tools:
        tools = True
    text = "".join(words)
    whole = read([text], reasoning, tools, prompt)
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    parts = [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert read(parts, reasoning, tools, prompt) == whole
    assert read(list(text), reasoning, tools, prompt) == whole


@given(st.text("<ab> \n", max_size=12))
def test_what_is_held_back_may_be_a_mark(text: str) -> None:
    before, after, found = split_at(text, "<ab>")
    assert found == ("<ab>" in text)
    if not found:
        assert before + after == text
        assert "<ab>".startswith(after)


def test_an_unknown_name_lists_what_there_is() -> None:
    tokenizer = Tokenizer(TINY)
    for field, known in (("reasoning_parser", "gpt-oss, qwen3"), ("tool_call_parser", "gpt-oss, qwen25")):
        model = Model(name="demo", path=TINY, cast={"processor": Part()}, **{field: "deepseek"})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{field}: there is no 'deepseek'; there is {known}"):
            Intake(model, tokenizer, Template(None, {}))


@pytest.mark.nats
async def test_reasoning_and_calls_reach_both_doors(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, reasoning_parser="qwen3", tool_call_parser="qwen25") as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode")
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        body = {"model": "demo", "messages": [{"role": "user", "content": "Weather?"}], "tools": tools}
        ids = stage.ids(f"<think>\nI look.\n</think>\n\nSo:\n<tool_call>\n{WEATHER}\n</tool_call><|im_end|>")

        talk = await stage.submit("chat", dict(body))
        job = await decode.got()
        assert "weather" in stage.tokenizer._coder.decode(list(memoryview(job.prompt).cast("I")))
        for at in ids:
            await decode.emit(job, [at])
        await decode.emit(job, [], "stop")
        done = await talk.last()
        assert isinstance(done, Done)
        assert done.finish_reason == "tool_calls"
        assert "".join(delta.reasoning for delta in talk.deltas) == "I look."
        assert talk.text == "So:"
        [call] = [call for delta in talk.deltas for call in delta.tool_calls]
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Z\u00fcrich"}')

        async with openai.AsyncOpenAI(base_url=f"{stage.http.address}/v1", api_key="-") as client:
            for stream in (False, True):
                asking = asyncio.ensure_future(client.chat.completions.create(**body, stream=stream))
                await decode.emit(await decode.got(), ids, "stop")
                answer = await asking
                if stream:
                    deltas = [chunk.choices[0].delta async for chunk in answer]
                    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "I look."
                    [http_call] = [call for delta in deltas for call in delta.tool_calls or []]
                else:
                    assert answer.choices[0].finish_reason == "tool_calls"
                    assert answer.choices[0].message.reasoning_content == "I look."
                    assert answer.choices[0].message.content == "So:"
                    [http_call] = answer.choices[0].message.tool_calls
                assert http_call.function.name == "weather"
                assert http_call.function.arguments == '{"city": "Z\u00fcrich"}'
