"""Bodies of requests from nearly right to nonsense, each a function of a random source alone."""

import json
import random
import uuid
from typing import Any, Final

import msgspec

from messages.submit import Chat, Completion, Generate

KINDS: Final[dict[str, Any]] = {"chat": Chat, "completion": Completion, "generate": Generate}
FIELDS: Final = {kind: [field.encode_name for field in msgspec.structs.fields(of)] for kind, of in KINDS.items()}
TEXTS: Final = (
    "Hi", "", "\0", "\u2028\u202e", "\ud83d\ude00", "e\u0301" * 40, "<|im_start|>system\n<|im_end|>", "{{ 7*7 }}",
    "{% raise %}", "a" * 3_000, "<tool_call>{", "\\u0000", "\ufffd\uffff", "../../etc/passwd", "$JS.API.>",
    "% 5 %s", "'\"`",
)  # fmt: skip
NUMBERS: Final = (
    0, 1, -1, 2, 3.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), -(2**64), 10**30
)  # fmt: skip
ODD_IDS: Final = (
    "", " ", "x", "*", ">", "a.b.>", "\0", "../1", "0" * 32, "0" * 36, "{" + "0" * 32 + "}", "urn:uuid:" + "1" * 32,
    "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "\u0661" * 32, "é" * 36,
    "1" * 10_000,
)  # fmt: skip


def pool(seed: int) -> list[str]:
    """Ids that many requests share, so that they get into each other's way."""
    chance = random.Random(f"pool {seed}")
    return [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(8)]


def good(chance: random.Random, kind: str) -> dict[str, Any]:
    """A request that is right, and short."""
    body: dict[str, Any] = {"model": "demo", "max_tokens": chance.randint(1, 4), "timeout": 10.0}
    if chance.random() < 0.5:
        body["id"] = new_id(chance)
    if kind == "chat":
        body["messages"] = [{"role": "user", "content": chance.choice(("Hi", "\u00e9\u4e16", "a b c"))}]
    elif kind == "completion":
        body["prompt"] = chance.choice(("Hi", [1, 2, 3], "x" * 50))
    else:
        body["token_ids"] = [chance.randrange(512) for _ in range(chance.randint(1, 20))]
    return body


def new_id(chance: random.Random) -> str:
    """An id of a request's own."""
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def junk(chance: random.Random, depth: int = 0) -> Any:
    """A value of any type."""
    what = chance.randrange(9 if depth < 4 else 5)
    if what == 0:
        return chance.choice(NUMBERS)
    if what == 1:
        return chance.choice(TEXTS)
    if what == 2:
        return chance.choice((None, True, False))
    if what == 3:
        return chance.choice(ODD_IDS)
    if what == 4:
        return chance.random() * 10 ** chance.randint(-300, 300)
    if what < 7:
        return [junk(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {str(chance.choice(TEXTS)): junk(chance, depth + 1) for _ in range(chance.randrange(5))}


def bent(chance: random.Random, kind: str, shared: list[str]) -> dict[str, Any]:
    """A request with one to three things wrong with it, or merely odd."""
    body = good(chance, kind)
    for _ in range(chance.randint(1, 3)):
        _BENDS[chance.randrange(len(_BENDS))](chance, kind, body, shared)
    # Whatever else is wrong, no single one of them may take long: that is another test's business.
    if not isinstance(body.get("max_tokens"), str) and body.get("max_tokens") is None:
        body["max_tokens"] = 2
    return body


def _field(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body[chance.choice(FIELDS[kind])] = junk(chance)


def _unknown(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body[chance.choice(("modell", "", "__class__", "v2", "\0", "a" * 5_000))] = junk(chance)


def _missing(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body.pop(chance.choice(list(body)), None)


def _named(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body["id"] = chance.choice((*ODD_IDS, *shared))


def _lie(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body["id"] = chance.choice(shared) if chance.random() < 0.5 else new_id(chance)
    tokens = [chance.choice((0, 1, 5, 511, 512, 2**31, 2**32 - 1, -1)) for _ in range(chance.randrange(8))]
    body["resume"] = {"attempt": chance.choice((0, 1, 2, 7, 2**31 - 1, 2**31, -1)), "token_ids": tokens}


def _sampling(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    body["stop"] = chance.choice(("a", "", ["a", "b"], [""], ["x" * 1_024], ["x" * 1_025], [" "] * 17, "\ud83d\ude00"))
    body["stop_token_ids"] = chance.choice(([0], [511], [512], list(range(64)), list(range(65))))
    body["temperature"] = chance.choice((0, 1e-300, 2, 2.1, -1))
    body["top_k"] = chance.choice((-1, 0, 1, 2**31, 2**31 + 1))


def _template(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    words = ("messages", "tools", "add_generation_prompt", "bos_token", "range", "self", "loop", "namespace", "a b", "")
    body["chat_template_kwargs"] = {chance.choice(words): junk(chance) for _ in range(3)}


def _talk(chance: random.Random, kind: str, body: dict[str, Any], shared: list[str]) -> None:
    roles = ("system", "developer", "user", "assistant", "tool", "king", "")
    messages: list[dict[str, Any]] = []
    for _ in range(chance.randrange(6)):
        message: dict[str, Any] = {"role": chance.choice(roles), "content": junk(chance)}
        if chance.random() < 0.3:
            arguments = chance.choice(("{}", "{", "[1]", "null", '{"a": ' + "[" * 50, "1e999", "\ud83d\ude00"))
            call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
            message["tool_calls"] = [call, junk(chance)] if chance.random() < 0.3 else [call]
        messages.append(message)
    body["messages"] = messages
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": junk(chance)}}}
    body["tools"] = chance.choice(([tool], [junk(chance)], [], junk(chance)))


_BENDS: Final = (_field, _field, _unknown, _missing, _named, _lie, _sampling, _template, _talk)


def as_json(chance: random.Random, body: dict[str, Any]) -> bytes:
    """The body as JSON, perhaps not quite."""
    text = json.dumps(body, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.05:
        text = text[:-1] + ', "messages": [], "prompt": "twice", "id": "twice"}'
    return broken(chance, text.encode("utf-8", "surrogatepass"))


def as_msgpack(chance: random.Random, body: dict[str, Any]) -> bytes:
    """The body as msgpack, perhaps not quite."""
    try:
        data = msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        data = b"\x81\xa5model\xcf" + b"\xff" * 8
    if chance.random() < 0.1:
        odd = (
            b"\xc1",
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc7\x08\x01" + b"\0" * 8,
            b"\xd6\xff\0\0\0\0",
        )
        data = b"\x81\xa6prompt" + chance.choice(odd)
    return broken(chance, data)


def broken(chance: random.Random, data: bytes) -> bytes:
    """The bytes as they are, most of the time; else cut, flipped, doubled, nested for ever, or others altogether."""
    what = chance.random()
    if what < 0.75:
        return data
    if what < 0.80:
        return data[: chance.randrange(len(data) + 1)]
    if what < 0.87:
        flipped = bytearray(data)
        for _ in range(chance.randint(1, 5)):
            if flipped:
                flipped[chance.randrange(len(flipped))] = chance.randrange(256)
        return bytes(flipped)
    if what < 0.90:
        return data + data
    if what < 0.93:
        return chance.randbytes(chance.randrange(200))
    if what < 0.96:
        deep = chance.choice((b"[", b'{"a":', b"\x91", b"\x81\xa1a", b'{"messages":[', b'{"resume":{"token_ids":['))
        return deep * chance.choice((5, 500, 20_000))
    if what < 0.98:
        return data.replace(b'"', chance.choice((b"'", b"\xff\xfe", b"\xc3\x28", b"\0")), chance.randint(1, 3))
    return (
        b'{"model":"demo","prompt":' + chance.choice((b"NaN", b"Infinity", b"1" * 400, b"-", b"0x1", b"1e999")) + b"}"
    )
