"""Answers of a given form, by the real SGLang; and what those without grammars say."""

import asyncio
import re
from typing import Any

import msgspec
import openai
import pytest

from tests.api.conftest import Served

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(120)]

ASK: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Who?"}], "temperature": 0}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "born": {"$ref": "#/$defs/year"}},
    "required": ["name", "born"],
    "additionalProperties": False,
    "$defs": {"year": {"type": "integer", "minimum": 1800, "maximum": 1999}},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look_up", "parameters": PERSON}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """What the schema says."""

    name: str
    born: int


def schema(body: Any) -> dict[str, Any]:
    """A response format with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": body, "strict": True}}


def check(text: str | None) -> None:
    """See that a text is what the schema says."""
    person = msgspec.json.decode(text or "", type=Person)
    assert person.name in ("Ada", "Grace")
    assert 1800 <= person.born <= 1999


async def test_json_by_a_schema(real: openai.AsyncOpenAI) -> None:
    answer = await real.chat.completions.create(**ASK, max_tokens=60, response_format=schema(PERSON), n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)
    stream = await real.chat.completions.create(**ASK, max_tokens=60, response_format=schema(PERSON), stream=True)
    told = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert told == answer.choices[0].message.content
    body = {"response_format": schema(PERSON)}
    completion = await real.completions.create(
        model="demo", prompt="Who? ", temperature=0, max_tokens=60, extra_body=body
    )
    check(completion.choices[0].text)


async def test_any_json_object(real: openai.AsyncOpenAI) -> None:
    answer = await real.chat.completions.create(**ASK, max_tokens=40, response_format={"type": "json_object"})
    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(msgspec.json.decode(content), dict)


@pytest.mark.parametrize(
    ("field", "text", "form"),
    [
        ("regex", "[0-9]{3}-[A-Z]{2}", "[0-9]{3}-[A-Z]{2}"),
        ("ebnf", 'root ::= ("yes" | "no") tail\ntail ::= "." | "!"', "(yes|no)[.!]"),
    ],
)
async def test_other_forms(real: openai.AsyncOpenAI, field: str, text: str, form: str) -> None:
    answer = await real.chat.completions.create(**ASK, max_tokens=30, extra_body={field: text}, logprobs=True)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert re.fullmatch(form, choice.message.content or "")
    assert choice.logprobs is not None
    assert choice.logprobs.content


@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_of_the_function_that_is_named(real: openai.AsyncOpenAI, stream: bool) -> None:
    fields: dict[str, Any] = ASK | {"tools": TOOLS, "max_tokens": 60}
    fields["tool_choice"] = {"type": "function", "function": {"name": "look_up"}}
    if not stream:
        choice = (await real.chat.completions.create(**fields)).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert call.function.name == "look_up"
        check(call.function.arguments)
        return
    chunks = [chunk.choices[0] async for chunk in await real.chat.completions.create(**fields, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert (pieces[0].index, pieces[0].function.name, pieces[0].type) == (0, "look_up", "function")
    assert pieces[0].id
    assert not any(piece.id or piece.function.name for piece in pieces[1:])
    assert len(pieces) > 2, "arguments come as they are made"
    check("".join(piece.function.arguments or "" for piece in pieces))
    assert chunks[-1].finish_reason == "tool_calls"


async def test_a_call_that_is_required(real: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = ASK | {"tools": TOOLS, "tool_choice": "required", "max_tokens": 90}
    choice = (await real.chat.completions.create(**fields, parallel_tool_calls=False)).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    if call.function.name == "look_up":
        check(call.function.arguments)
    else:
        assert (call.function.name, call.function.arguments) == ("now", "{}")
    several = (await real.chat.completions.create(**fields)).choices[0]
    assert {call.function.name for call in several.message.tool_calls} <= {"look_up", "now"}


WRONG = [
    ({"response_format": schema({"type": "objekt"})}, "response_format.json_schema.schema.type", "no type 'objekt'"),
    ({"response_format": schema({"$ref": "#/$defs/x"})}, "response_format.json_schema.schema.$ref", "nothing at"),
    ({"response_format": schema(PERSON), "extra_body": {"regex": "a"}}, "regex", "one form only"),
    ({"extra_body": {"regex": "(a"}}, "regex", "without a ')'"),
    ({"extra_body": {"regex": "(a{500}){500}"}}, "regex", "longer than 10000"),
    ({"extra_body": {"ebnf": "start ::= 'a'"}}, "ebnf", "no rule 'root"),
    ({"extra_body": {"regex": r"\p{L}"}}, None, "Unicode character class escape sequence is not supported"),
    ({"extra_body": {"regex": "a(?!b)"}}, None, "Lookahead is not supported"),
    ({"extra_body": {"ebnf": "root ::= nothing"}}, None, 'Rule "nothing" is not defined'),
    ({"extra_body": {"ebnf": 'root ::= root "a"'}}, None, "the grammar allows nothing to follow"),
    ({"response_format": schema({"type": "string", "format": "never heard of"})}, None, "is not implemented"),
    ({"response_format": schema({"type": "integer", "minimum": 5, "maximum": 1})}, None, "Invalid range"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "no tool 'x'"),
]


@pytest.mark.parametrize(("fields", "param", "said"), WRONG)
async def test_a_bad_form_is_its_requests_error_alone(
    real: openai.AsyncOpenAI, fields: dict[str, Any], param: str | None, said: str
) -> None:
    going = asyncio.ensure_future(
        real.completions.create(
            model="demo", prompt="On", max_tokens=60, temperature=0, extra_body={"ignore_eos": True}
        )
    )
    with pytest.raises(openai.BadRequestError) as refused:
        await real.chat.completions.create(**ASK, max_tokens=20, **fields)
    assert (refused.value.param, said in refused.value.message) == (param, True), refused.value.message
    assert "\n" not in refused.value.message
    answer = await going
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 60


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": schema(PERSON)}, "response_format"),
        ({"extra_body": {"regex": "a"}}, "regex"),
        ({"extra_body": {"ebnf": 'root ::= "a"'}}, "ebnf"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_an_engine_without_grammars_says_so(simulated: Served, fields: dict[str, Any], param: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{simulated.url}/v1", api_key="-", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="the simulated engine has no grammars") as refused:
            await client.chat.completions.create(**ASK, **fields)
        assert refused.value.param == param
