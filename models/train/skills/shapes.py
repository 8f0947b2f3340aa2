"""Answers in a JSON shape that the request gives: facts from a text, under the wanted keys, in the wanted order."""

import json
import re
import tomllib
from typing import Any

from models.train import values
from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES, dress
from models.train.source import DATA, LEXICON, Source

RECORDS: list[dict[str, Any]] = tomllib.loads((DATA / "records.toml").read_text(encoding="utf-8"))["record"]
SUMS = PHRASES["json"]["sums"]
BEFORE, AFTER, KEYS = PHRASES["json"]["before"], PHRASES["json"]["after"], PHRASES["json"]["keys"]
FREE_KINDS = [
    "word",
    "int 0 9999",
    "city",
    "person",
    "date",
    "time",
    "code",
    "float",
    "color",
    "phrase",
    "list",
    "email",
]


def make(source: Source) -> Exchange:
    """Make a text and the JSON object to be read from it."""
    return source.fresh(lambda: _draw(source), lambda exchange: exchange.key)


def _draw(source: Source) -> Exchange:
    if source.chance(0.06):
        return _sum(source)
    free = source.chance(0.35)
    record: dict[str, Any] = {"fields": _invented(source)} if free else source.pick(RECORDS)
    fields = record["fields"]
    sentences: list[str] = []
    found: dict[str, values.Value] = {}
    joint = source.pick(record.get("joint", [""])) if source.chance(0.5) else ""
    if joint:
        found = {key: values.draw(source, fields[key]["kind"]) for key in re.findall(r"{(\w+)}", joint)}
        sentences = [joint.format(**{key: value.text for key, value in found.items()})]
    told = source.rng.sample(list(fields), source.number(0 if found else 1, min(5, len(fields))))
    for key in told:
        if key not in found:
            sentence, found[key] = _tell(source, fields[key])
            sentences.append(sentence)
    told = list(found)
    if free or source.chance(0.2):
        sentences = _listed(source, found)
        facts = source.pick(["\n", "; ", ", "]).join(sentences)
    else:
        facts = " ".join(sentences)
    wanted = source.rng.sample(told, source.number(max(1, len(told) - 1), len(told)))
    answer = json.dumps({key: found[key].json for key in wanted}, ensure_ascii=False)
    form = source.pick(KEYS) if source.chance(0.25) else source.pick(BEFORE + AFTER)
    shape = _shape(source, {key: found[key].json for key in wanted})
    text = form.format(facts=facts, keys=_named(source, wanted), shape=shape)
    text = text if form.startswith("{facts}") else dress(source, text)
    return Exchange("JSON shapes", f"json {answer}", asked(text), answer, f"JSON with {', '.join(wanted)}.")


def _sum(source: Source) -> Exchange:
    first, second = source.number(0, 99), source.number(0, 99)
    plain, result = source.pick([(f"{first} + {second}", first + second), (f"{first} - {second}", first - second)])
    name = source.pick(["answer", "result", "sum", "value", "total"])
    ask = source.pick(SUMS).format(sum=f"what is {plain}?", plain=plain, shape=_shape(source, {name: result}))
    text = ask if ask.startswith("what") else dress(source, ask)
    return Exchange(
        "JSON shapes", f"json {plain} {name}", asked(text), json.dumps({name: result}), f"{plain} = {result}"
    )


def _invented(source: Source) -> dict[str, Any]:
    return {source.pick(LEXICON): {"kind": source.pick(FREE_KINDS)} for _ in range(5)}


def _tell(source: Source, field: dict[str, Any]) -> tuple[str, values.Value]:
    if field["kind"] == "bool":
        yes = source.chance(0.5)
        return source.pick(field["yes" if yes else "no"]), values.Value("yes" if yes else "no", yes)
    value = values.draw(source, field["kind"])
    return source.pick(field.get("say", ["{}"])).format(value.text), value


def _listed(source: Source, found: dict[str, values.Value]) -> list[str]:
    form = source.pick(["{}: {}", "{} is {}", "{} = {}", "{} {}", "{}: {}"])
    return [form.format(key, value.text) for key, value in found.items()]


def _named(source: Source, wanted: list[str]) -> str:
    names = [f'"{key}"' for key in wanted] if source.chance(0.3) else wanted
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    if source.chance(0.3):
        listed = ", ".join(names)
    many = "s" if len(names) > 1 else ""
    return (
        source.pick(["", f"the key{many} ", f"key{many} ", f"the field{many} ", f"field{many} ", f"the key{many} "])
        + listed
    )


def _shape(source: Source, wanted: dict[str, object]) -> str:
    style = source.rng.random()
    if style < 0.2:
        properties = {key: _schema(value) for key, value in wanted.items()}
        schema: dict[str, object] = {"type": "object", "properties": properties}
        if source.chance(0.5):
            schema["required"] = list(wanted)
        return json.dumps(schema)
    if style < 0.4:
        return json.dumps({key: _empty(value) for key, value in wanted.items()})
    if style < 0.55:
        return json.dumps(dict.fromkeys(wanted, "..."))
    names = {key: _type_name(value, short=style > 0.85) for key, value in wanted.items()}
    if style < 0.7:
        return json.dumps(names)
    return "{" + ", ".join(f'"{key}": {name}' for key, name in names.items()) + "}"


def _schema(value: object) -> dict[str, object]:
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": _type_name(value, short=False)}


def _type_name(value: object, *, short: bool) -> str:
    if isinstance(value, bool):
        return "bool" if short else "boolean"
    if isinstance(value, int | float):
        return "int" if short and isinstance(value, int) else "number"
    if isinstance(value, list):
        return "list" if short else "array"
    return "str" if short else "string"


def _empty(value: object) -> object:
    return (
        False
        if isinstance(value, bool)
        else 0
        if isinstance(value, int | float)
        else []
        if isinstance(value, list)
        else ""
    )
