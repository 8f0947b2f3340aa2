"""Reasoning and tool calls read as SGLang's own parsers read them, at every cut; where not, on purpose and on the page.

What SGLang says was recorded by tests/processor/record_parsers.py; the reasons are in docs/parsers.md.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from actors.processor import parsers
from actors.processor.detokenize import Pieces
from actors.processor.intake import Intake
from actors.processor.parsers.parser import Parser
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages.config import Model, Part
from messages.submit import Chat, Done
from tests.conftest import NatsServer
from tests.harness import ROOT
from tests.processor.stage import TINY, raised

FOLDER = Path(__file__).parent / "data" / "parsers"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
NUMBERED = [(name, at) for name, cases in CASES.items() for at in range(len(cases))]


def made(name: str, case: dict[str, Any]) -> Parser:
    tools = case.get("tools", name == "qwen25")
    if name == "gpt-oss":
        parser = parsers.make(name, name if tools else None, "<|start|>user<|message|>Hi<|end|><|start|>assistant")
    elif name == "qwen3":
        parser = parsers.make(name, "qwen25" if tools else None, "<think>\n" if case.get("begun") else "")
    else:
        parser = parsers.make(None, name, "")
    assert parser is not None
    return parser


def read(name: str, case: dict[str, Any], parts: list[str]) -> dict[str, Any]:
    """Stream the parts and put together what came; arguments count as what they say, not as they are written."""
    parser = made(name, case)
    told = [*map(parser.push, parts), parser.finish()]
    calls = [call for _, _, some in told for call in some]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert parser.called == bool(calls)
    return {
        "reasoning": "".join(part for part, _, _ in told),
        "content": "".join(part for _, part, _ in told),
        "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls],
    }


def bare(said: dict[str, Any]) -> dict[str, Any]:
    """White space around reasoning, calls and the answer is nobody's (docs/parsers.md)."""
    return said | {"reasoning": said["reasoning"].strip(), "content": said["content"].strip()}


@pytest.mark.parametrize(("name", "at"), NUMBERED)
def test_read_as_sglang_reads_it_whatever_the_cut(name: str, at: int) -> None:
    case = CASES[name][at]
    text = case["text"]
    whole = read(name, case, [text])
    assert bare(whole) == bare(case.get("troupe", case["sglang"]))
    for cut in range(1, len(text)):
        assert read(name, case, [text[:cut], text[cut:]]) == whole, f"cut at {cut}: {text[:cut]!r}"
    assert read(name, case, list(text)) == whole


def test_there_are_enough_texts_and_every_difference_has_its_reason() -> None:
    page = (ROOT / "docs" / "parsers.md").read_text()
    for cases in CASES.values():
        same = [case for case in cases if "troupe" not in case]
        assert len(same) >= 29
        assert len(cases) >= 40
        assert len({json.dumps({**case, "sglang": None}) for case in cases}) == len(cases)
        for case in cases:
            if "troupe" in case:
                assert bare(case["troupe"]) != bare(case["sglang"])
                assert f"| *{case['why']}* |" in page


def test_channels_are_told_as_they_come() -> None:
    parser = parsers.make("gpt-oss", "gpt-oss", "<|start|>assistant")
    assert parser is not None
    assert parser.push("<|channel|>analysis<|message|>I th") == ("I th", "", [])
    assert parser.push("ink<|e") == ("ink", "", [])
    assert parser.push("nd|><|start|>assistant<|channel|>final<|message|>Ye") == ("", "Ye", [])
    assert parser.push("s") == ("", "s", [])


def test_an_answer_that_must_begin_at_once_is_led_to_its_channel() -> None:
    prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    lead = parsers.opening("gpt-oss", prompt)
    parser = parsers.make(None, "gpt-oss", prompt + lead)
    assert parser is not None
    assert parser.push('{"a": 1}') == ("", '{"a": 1}', [])
    assert parsers.opening("qwen3", prompt) == parsers.opening(None, prompt) == ""


def test_marks_are_kept_for_the_parsers_that_read_them_and_no_others() -> None:
    assert "<|call|>" in parsers.marks("gpt-oss", None)
    assert "<|end|>" not in parsers.marks("qwen3", "qwen25")
    assert not parsers.marks(None, None)


@pytest.mark.parametrize(("reasoning", "tool_calls"), [("qwen3", "gpt-oss"), ("gpt-oss", "qwen25"), (None, "gpt-oss")])
def test_one_format_is_not_read_by_two(reasoning: str | None, tool_calls: str) -> None:
    with pytest.raises(ValueError, match="gpt-oss is one format that has both in it; name it for both"):
        parsers.check(reasoning, tool_calls)


def test_special_tokens_reach_the_parser() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    coder = Tokenizer(models.BPE(letters, []))
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    marks = parsers.marks("gpt-oss", "gpt-oss")
    coder.add_special_tokens([AddedToken(mark, special=True) for mark in [*sorted(marks), "<|endoftext|>"]])
    pieces = Pieces.of(coder, {"type": "ByteLevel"}, coder.get_vocab_size(), marks)
    text = CASES["gpt-oss"][0]["text"]
    stream = pieces.stream()
    ids = coder.encode(text + "<|endoftext|>").ids
    assert "".join([stream.push([at]) for at in ids]) + stream.finish() == text


HARMONY = str(Path(__file__).parent / "templates" / "gptoss.jinja")
WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TURN = (
    "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary<|message|>A moment.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}'
)


@pytest.mark.nats
async def test_channels_reach_both_doors(nats_server: NatsServer) -> None:
    settings = {"reasoning_parser": "gpt-oss", "tool_call_parser": "gpt-oss"}
    async with raised(nats_server.url, chat_template=HARMONY, **settings) as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode")
        body = {"model": "demo", "messages": [{"role": "user", "content": "Weather?"}], "tools": WEATHER}
        talk = await stage.submit("chat", dict(body))
        job = await decode.got()
        for at in stage.ids(TURN):
            await decode.emit(job, [at])
        # The mark that ends a call ends the stream, and is none of its text.
        await decode.emit(job, [], "stop")
        done = await talk.last()
        assert isinstance(done, Done)
        assert done.finish_reason == "tool_calls"
        assert "".join(delta.reasoning for delta in talk.deltas) == "I look."
        assert talk.text == "A moment."
        [call] = [call for delta in talk.deltas for call in delta.tool_calls]
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')

        async with openai.AsyncOpenAI(base_url=f"{stage.http.address}/v1", api_key="-") as client:
            asking = asyncio.ensure_future(client.chat.completions.create(**body))
            await decode.emit(await decode.got(), stage.ids(TURN), "stop")
            answer = (await asking).choices[0]
            assert answer.finish_reason == "tool_calls"
            assert (answer.message.reasoning_content, answer.message.content) == ("I look.", "A moment.")
            assert answer.message.tool_calls[0].function.name == "weather"


def harmony() -> tuple[Intake, Tokenizer]:
    """What prepares the requests of a model that speaks in channels."""
    model = Model(
        name="demo",
        path=TINY,
        chat_template=HARMONY,
        reasoning_parser="gpt-oss",
        tool_call_parser="gpt-oss",
        cast={"processor": Part(), "decode": Part()},
    )
    tokenizer = Tokenizer(TINY)
    return Intake(model, tokenizer, Template.load(tokenizer.folder, {}, {}, HARMONY)), tokenizer


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_an_answer_held_to_a_grammar_begins_in_its_channel(choice: str) -> None:
    intake, tokenizer = harmony()
    body = {"messages": [{"role": "user", "content": "Weather?"}], "tools": WEATHER, "tool_choice": choice}
    form = {"response_format": {"type": "json_object"}} if choice == "auto" else {}
    [held] = intake.prepare(msgspec.convert(body | form, Chat))
    [free] = intake.prepare(msgspec.convert(body | {"tool_choice": "auto"}, Chat))
    said = tokenizer.pieces.stream()
    assert said.push(held.prompt[len(free.prompt) - 1 :]).endswith("<|channel|>final<|message|>")
    assert held.parser is not None
    reasoning, text, calls = held.parser.push('[{"name": "weather", "parameters": {}}]')
    assert not reasoning
    assert bool(text) is (choice == "auto")
    assert bool(calls) is (choice == "required")


def test_what_was_thought_before_a_call_is_given_back() -> None:
    intake, tokenizer = harmony()
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    [asked] = intake.prepare(msgspec.convert({"messages": messages, "tools": WEATHER}, Chat))
    prompt = tokenizer.pieces.stream().push(asked.prompt)
    assert "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.weather" in prompt
    assert prompt.endswith(
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"rain"<|end|><|start|>assistant'
    )
