"""Forms of answers as requests ask for them, and calls that a grammar forces, read as they come."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.processor import grammars
from actors.processor.parsers.forced import Named, Required
from actors.processor.refusal import RefusalError
from messages.submit import Chat, Done, Message, ToolCall
from tests.conftest import NatsServer
from tests.processor.stage import Stage, raised

GOOD: list[Any] = [
    True,
    {},
    {"type": ["string", "null"], "enum": ["a"]},
    {"type": "object", "properties": {"type": {"type": "string"}, "$ref": {"type": "null"}}, "required": ["type"]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#"}, "type": "array"}}},
    {"anyOf": [{"const": 1}, {"pattern": r"^\d{3}-[a-z]{1,50}@[^]]+$", "type": "string"}]},
    {"type": "object", "additionalProperties": {"$ref": "#/definitions/a~1b"}, "definitions": {"a/b": True}},
]
BAD: list[tuple[Any, str, str]] = [
    ([], "s", "a schema is an object, not list"),
    ({"properties": {"a": {"type": "text"}}}, "s.properties.a.type", "there is no type 'text'"),
    ({"properties": []}, "s.properties", "an object of schemas"),
    ({"required": "a"}, "s.required", "a list of names"),
    ({"enum": []}, "s.enum", "at least one"),
    ({"anyOf": {}}, "s.anyOf", "at least one schema"),
    ({"anyOf": [{}, 3]}, "s.anyOf[1]", "not int"),
    ({"items": {"$ref": "other.json"}}, "s.items.$ref", "only references within"),
    ({"items": {"$ref": "#/$defs/a"}}, "s.items.$ref", "nothing at '#/$defs/a'"),
    ({"pattern": "(a"}, "s.pattern", "1 '(' without a ')'"),
    ({"pattern": "(" * 101 + ")" * 101}, "s.pattern", "nested deeper than 100 levels"),
    ({"pattern": "(a{999}){999}"}, "s.pattern", "longer than 10000"),
]


@pytest.mark.parametrize("schema", GOOD)
def test_a_schema_is_taken(schema: Any) -> None:
    grammars.check_schema(schema, "s")


@pytest.mark.parametrize(("schema", "where", "said"), BAD)
def test_what_is_no_schema_is_refused_with_its_place(schema: Any, where: str, said: str) -> None:
    with pytest.raises(RefusalError) as refused:
        grammars.check_schema(schema, "s")
    assert (refused.value.code, refused.value.param, said in refused.value.message) == (400, where, True)


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"items": schema}
    with pytest.raises(RefusalError, match="nested deeper than 32 levels"):
        grammars.check_schema(schema, "s")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "items", "properties", "$ref", "anyOf", "required", "enum", "pattern", "$defs"]
                )
                | st.text(),
                inner,
            )
        ),
    )
)
def test_whatever_is_no_schema_is_refused_and_nothing_else_happens(schema: Any) -> None:
    try:
        grammars.check_schema(schema, "s")
    except RefusalError as refusal:
        assert refusal.code == 400


@given(st.text(alphabet="ab(){}[]\\,123?*+|^$.-", max_size=40))
def test_whatever_is_no_regular_expression_is_refused_and_nothing_else_happens(pattern: str) -> None:
    try:
        grammars.asked(Chat(messages=[Message(role="user", content="x")], regex=pattern))
    except RefusalError as refusal:
        assert (refusal.code, refusal.param) == (400, "regex")


def test_calls_that_are_required_keep_their_definitions_apart() -> None:
    def tool(name: str, of: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/t"}}, "$defs": {"t": {"type": of}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool("f", "string"), tool("g", "integer")]}
    asked = grammars.asked(msgspec.convert(body | {"tool_choice": "required"}, Chat))
    assert asked is not None
    schema = msgspec.json.decode(asked.text)
    grammars.check_schema(schema, "s")
    for call, of in zip(schema["items"]["anyOf"], ("string", "integer"), strict=True):
        reference = call["properties"]["parameters"]["properties"]["x"]["$ref"]
        assert schema["$defs"][reference.rpartition("/")[2]] == {"type": of}
    assert "maxItems" not in schema
    once = grammars.asked(msgspec.convert(body | {"tool_choice": "required", "parallel_tool_calls": False}, Chat))
    assert once is not None
    assert msgspec.json.decode(once.text)["maxItems"] == 1


CALLS = [("f", '{"a": "}]\\\\", "b": [{"c": "\\""}]}'), ("g", "{}"), ('quo"te', '{"x": "\\u00e9 \u00e9"}')]
SPELLINGS = [
    "[{}]".replace(
        "{}",
        ", ".join(
            f'{{"name": {msgspec.json.encode(name).decode()}, "parameters": {arguments}}}' for name, arguments in CALLS
        ),
    ),
    " [ {} ]\n".replace(
        "{}",
        " ,\n".join(
            f'{{ "name" : {msgspec.json.encode(name).decode()} , "parameters" : {arguments} }}'
            for name, arguments in CALLS
        ),
    ),
]


def put_together(pieces: list[ToolCall]) -> list[tuple[str, str]]:
    """The calls that pieces make: each begins with an id and a name, and goes on with arguments alone."""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.id:
            assert piece.function.name is not None
            assert piece.index == len(calls)
            calls.append((piece.function.name, ""))
        else:
            assert piece.function.name is None
        name, arguments = calls[-1]
        assert piece.index == len(calls) - 1
        calls[-1] = (name, arguments + piece.function.arguments)
    return calls


@given(st.sampled_from(SPELLINGS), st.lists(st.integers(0, 200), max_size=30))
def test_required_calls_are_read_the_same_whatever_the_cuts(text: str, cuts: list[int]) -> None:
    parser, pieces = Required(), []
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in zip(ends, ends[1:], strict=False):
        _, said, calls = parser.push(text[begin:end])
        assert not said
        pieces += calls
    _, said, calls = parser.finish()
    assert (said, calls, parser.called) == ("", [], True)
    assert put_together(pieces) == CALLS


def test_a_required_call_is_told_as_it_comes() -> None:
    parser = Required()
    assert parser.push('[{"name": "f", "param') == ("", "", [])
    (begun,) = parser.push('eters": {')[2][:1]
    assert begun.function.name == "f"
    (piece,) = parser.push('"a": "b')[2]
    assert piece.function.arguments == '"a": "b'


def test_what_was_no_call_is_text() -> None:
    parser = Required()
    assert parser.push("[") == ("", "", [])
    assert parser.finish() == ("", "[", [])
    assert not parser.called


def test_a_named_call_is_its_arguments() -> None:
    parser = Named("f")
    pieces = [piece for part in ('{"a"', ": 1}") for piece in parser.push(part)[2]]
    assert put_together(pieces) == [("f", '{"a": 1}')]
    assert parser.called


TOOLS = [{"type": "function", "function": {"name": "f"}}]
TWICE = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' * 2


@pytest.mark.nats
@pytest.mark.parametrize("parallel", [True, False])
async def test_the_first_call_is_the_last_where_one_alone_may_be(nats_server: NatsServer, parallel: bool) -> None:
    async with raised(nats_server.url, tool_call_parser="qwen25") as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode")
        body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "parallel_tool_calls": parallel}
        talk = await stage.submit("chat", body)
        job = await decode.got()
        await decode.emit(job, stage.ids(TWICE), "stop" if parallel else None)
        last = await talk.last()
        assert isinstance(last, Done)
        assert last.finish_reason == "tool_calls"
        assert len([call for delta in talk.deltas for call in delta.tool_calls]) == (2 if parallel else 1)
        if not parallel:
            assert (await decode.aborted()).request == job.request


async def grammatical(stage: Stage) -> Any:
    """A decode actor that has grammars."""
    from tests.processor.stage import Gpu

    gpu = Gpu(stage.bus, stage.subjects, "decode", 0)
    gpu.engine, gpu.grammars = "sglang", True
    await gpu.start()
    return gpu


@pytest.mark.nats
async def test_a_stream_held_to_a_grammar_does_not_go_on_elsewhere(nats_server: NatsServer) -> None:
    from messages.submit import Error

    async with raised(nats_server.url, engine="sglang", reasoning_parser="qwen3") as stage:
        await stage.gate(True)
        doomed = await grammatical(stage)
        talk = await stage.submit("chat", {"messages": [{"role": "user", "content": "x"}], "regex": "ab*"})
        job = await doomed.got()
        assert (job.sampling.regex, job.sampling.grammar) == ("ab*", "regex")
        await doomed.emit(job, stage.ids("ab"))
        await talk.tokens_come(1)
        assert talk.text == "ab", "no reasoning is looked for"
        await doomed.die()
        error = await talk.last()
        assert isinstance(error, Error)
        assert (error.code, "a grammar begins with the first token" in error.message) == (500, True)


@pytest.mark.nats
async def test_engines_that_turn_out_to_have_no_grammars_are_not_asked(nats_server: NatsServer) -> None:
    from tests.conftest import eventually

    async with raised(nats_server.url, engine="sglang") as stage:
        await stage.gate(True)
        gpu = await grammatical(stage)
        gpu.grammars = False
        await gpu.register()
        await eventually(lambda: stage.service.intake.grammars is False)
        status, answer, _ = await stage.post("/v1/completions", {"model": "demo", "prompt": "x", "regex": "a"})
        assert (status, "run without grammars" in answer["error"]["message"]) == (400, True)
