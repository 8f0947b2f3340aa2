"""What the text of an answer must be like, made of a request's fields, and refused here where that can be seen.

An engine turns a grammar into a machine over its vocabulary. That can fail there (the request gets the engine's own
words), so what is certain to fail, or would take an engine's time or stack, is refused before.
"""

import re
from typing import Any, Final

import msgspec

from actors.processor.refusal import RefusalError
from messages.submit import Asked, Chat, Completion, Generate, NamedTool, ResponseFormat, Tool

MOST_BYTES: Final = 65_536
MOST_DEPTH: Final = 32
MOST_NESTED: Final = 100
MOST_SIZE: Final = 10_000
ANY_OBJECT: Final = '{"type":"object"}'
TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_REPEAT: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_ATOM: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^()\[\\]", re.DOTALL)
_SCHEMAS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


class Grammar(msgspec.Struct):
    """One grammar: its kind as `work.Sampling` names it, its text, and the request's field that asks for it."""

    kind: str
    text: str
    field: str


def asked(body: Asked) -> Grammar | None:
    """Find the one grammar that a request asks for, checked. Raises RefusalError 400."""
    found = []
    response_format = body.response_format if isinstance(body, Chat | Completion | Generate) else None
    if response_format is not None and (schema := _of_format(response_format)) is not None:
        found.append(Grammar("json_schema", schema, "response_format"))
    if body.regex is not None:
        _check_regex(body.regex)
        found.append(Grammar("regex", body.regex, "regex"))
    if body.ebnf is not None:
        _check_ebnf(body.ebnf)
        found.append(Grammar("ebnf", body.ebnf, "ebnf"))
    if isinstance(body, Chat) and (calls := of_tools(body)) is not None:
        found.append(Grammar("json_schema", calls, "tool_choice"))
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        message = f"{second}: an answer can have one form only, and {first} says another; leave out one of them"
        raise RefusalError(400, message, param=second)
    if found and len(found[0].text.encode()) > MOST_BYTES:
        size = len(found[0].text.encode())
        message = f"{found[0].field}: {size} bytes; at most {MOST_BYTES} are taken"
        raise RefusalError(400, message, param=found[0].field)
    return found[0] if found else None


def _of_format(asked: ResponseFormat) -> str | None:
    if asked.type == "json_schema":
        where = "response_format.json_schema"
        if asked.json_schema is None or asked.json_schema.schema is None:
            where += "" if asked.json_schema is None else ".schema"
            raise RefusalError(400, f"{where}: missing", param=where)
        check_schema(asked.json_schema.schema, f"{where}.schema")
        return msgspec.json.encode(asked.json_schema.schema).decode()
    if asked.json_schema is not None:
        message = f"response_format.json_schema: goes with type 'json_schema', not {asked.type!r}"
        raise RefusalError(400, message, param="response_format")
    return ANY_OBJECT if asked.type == "json_object" else None


def check_schema(schema: Any, where: str) -> None:
    """Refuse what is certainly no JSON schema, with the place where it is wrong. Raises RefusalError 400."""
    _check(schema, where, schema, 0)


def _check(schema: Any, where: str, root: Any, depth: int) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong(where, f"a schema is an object, not {_named(schema)}")
    if depth > MOST_DEPTH:
        raise _wrong(where, f"nested deeper than {MOST_DEPTH} levels")
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]:
        if kind not in TYPES:
            raise _wrong(f"{where}.type", f"there is no type {str(kind)[:64]!r}; there are {', '.join(TYPES)}")
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        raise _wrong(f"{where}.enum", "a list with at least one value is needed")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _wrong(f"{where}.required", "a list of names is needed")
    if isinstance(pattern := schema.get("pattern"), str):
        _check_regex(pattern, f"{where}.pattern")
    _check_reference(schema.get("$ref"), where, root)
    for name in _SCHEMAS:
        if name in schema:
            if not isinstance(schema[name], dict):
                raise _wrong(f"{where}.{name}", f"an object of schemas is needed, not {_named(schema[name])}")
            for key, inner in schema[name].items():
                _check(inner, f"{where}.{name}.{key}", root, depth + 1)
    for name in _LISTS:
        if name in schema:
            if not isinstance(schema[name], list) or not schema[name]:
                raise _wrong(f"{where}.{name}", "a list with at least one schema is needed")
            for at, inner in enumerate(schema[name]):
                _check(inner, f"{where}.{name}[{at}]", root, depth + 1)
    for name in _SINGLE:
        if name in schema and not (name == "items" and isinstance(schema[name], list)):
            _check(schema[name], f"{where}.{name}", root, depth + 1)


def _check_reference(reference: Any, where: str, root: Any) -> None:
    if reference is None:
        return
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _wrong(f"{where}.$ref", "only references within the schema ('#/...') can be followed")
    there = root
    for part in reference.split("/")[1:]:
        there = there.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(there, dict) else None
    if there is None:
        raise _wrong(f"{where}.$ref", f"there is nothing at {reference[:128]!r}")


def _check_regex(pattern: str, where: str = "regex") -> None:
    """Refuse a pattern whose brackets do not fit, and one whose repeats would make an engine's machine too large.

    What else may stand in a pattern is each dialect's own affair; the engine's counts.
    """
    sizes, total, last, at = [0], 0, 0, 0
    while at < len(pattern):
        if (repeat := _REPEAT.match(pattern, at)) is not None:
            times = max(int((repeat[2] or repeat[1])[:9]), 1)
            more = last * (times - 1)
            sizes[-1], total = sizes[-1] + more, total + more
            at, last = repeat.end(), last * times
        elif pattern[at] == "(":
            sizes.append(0)
            at += 1
            if len(sizes) > MOST_NESTED:
                raise _wrong(where, f"nested deeper than {MOST_NESTED} levels")
        elif pattern[at] == ")":
            if len(sizes) == 1:
                raise _wrong(where, f"the ')' at {at} closes nothing")
            last = sizes.pop()
            sizes[-1], at = sizes[-1] + last, at + 1
        else:
            atom = _ATOM.match(pattern, at)
            if atom is None:
                what = "a '[' without a ']'" if pattern[at] == "[" else "a backslash before nothing"
                raise _wrong(where, f"{what}, at {at}")
            sizes[-1], total, at, last = sizes[-1] + 1, total + 1, atom.end(), 1
        if total > MOST_SIZE:
            raise _wrong(where, f"with its repeats written out it is longer than {MOST_SIZE} characters")
    if len(sizes) > 1:
        raise _wrong(where, f"{len(sizes) - 1} '(' without a ')'")


def _check_ebnf(text: str) -> None:
    if not re.search(r"^\s*root\s*::=", text, re.MULTILINE):
        raise _wrong("ebnf", "there is no rule 'root ::= ...', with which a text begins")


# Tool calls that must come.


def of_tools(body: Chat) -> str | None:
    """Make the schema of the calls that a `tool_choice` forces, or None if it forces none. Raises RefusalError 400.

    A named function's answer is its arguments alone; "required" gets a list of objects with `name` and `parameters`.
    """
    choice = body.tool_choice
    if choice is None or choice == "none" or choice == "auto":
        return None
    tools = body.tools or []
    if not tools:
        raise RefusalError(400, "tool_choice: there are no tools of which one could be called", param="tool_choice")
    for at, tool in enumerate(tools):
        if tool.function.parameters is not None:
            check_schema(tool.function.parameters, f"tools[{at}].function.parameters")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        chosen = next((tool for tool in tools if tool.function.name == name), None)
        if chosen is None:
            known = ", ".join(tool.function.name for tool in tools)
            message = f"tool_choice: there is no tool {name[:64]!r}; there is {known[:256]}"
            raise RefusalError(400, message, param="tool_choice")
        return msgspec.json.encode(chosen.function.parameters or {"type": "object"}).decode()
    shared: dict[str, Any] = {}
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call(tool, at, shared) for at, tool in enumerate(tools)]},
    }
    if body.parallel_tool_calls is False:
        schema["maxItems"] = 1
    if shared:
        schema["$defs"] = shared
    return msgspec.json.encode(schema).decode()


def _call(tool: Tool, at: int, shared: dict[str, Any]) -> dict[str, Any]:
    """Make the schema of one tool's call; its definitions move to the root, under names of their own."""
    parameters: dict[str, Any] = dict(tool.function.parameters or {"type": "object"})
    for name in ("$defs", "definitions"):
        for key, inner in parameters.pop(name, {}).items():
            shared[f"{at}_{name.strip('$')}_{key}"] = _moved(inner, at)
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "const": tool.function.name},
            "parameters": _moved(parameters, at),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, at: int) -> Any:
    """Point the references of one tool's schema to where its definitions are now."""
    if isinstance(schema, list):
        return [_moved(inner, at) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _moved(inner, at) for key, inner in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found = re.fullmatch(r"#/(?:\$)?(defs|definitions)/(.+)", reference)
        if found is None:
            where = f"tools[{at}].function.parameters"
            raise _wrong(where, f"{reference[:128]!r} can't be followed here; only '#/$defs/...' can")
        made["$ref"] = f"#/$defs/{at}_{found[1]}_{found[2]}"
    return made


def _named(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _wrong(where: str, what: str) -> RefusalError:
    return RefusalError(400, f"{where[:512]}: {what}", param=where[:512])
