"""Calling a tool that the system prompt offers, with the right name and arguments, and passing on what it answers.

Names of tools and parameters change from one request to the next and a quarter of the tools are invented on the spot,
so the schema has to be read: remembering the tools of the training data does not help.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from models.train import values
from models.train.examples import Call, Exchange, Message, Tool, asked
from models.train.phrasing import dress
from models.train.source import DATA, LEXICON, Source

TOOLBOX: list[dict[str, Any]] = tomllib.loads((DATA / "tools.toml").read_text(encoding="utf-8"))["tool"]
VERBS = (
    "get set find add remove update check start stop create delete list open close send read write count move show"
).split()
NOUNS = [word for word in LEXICON if 3 <= len(word) <= 9]
INVENTED_KINDS = [
    "word",
    "int 0 9999",
    "city",
    "person",
    "date",
    "time",
    "code",
    "float",
    "email",
    "text",
    "bool",
    "color",
    "company",
    "big",
]
INVENTED_ASKS = [
    "Use {tool} with {args}.",
    "Call {tool} with {args}.",
    "{tool}: {args}",
    "Run {tool} for {args}.",
    "{plain}: {args}",
    "Please {plain} with {args}.",
]
INVENTED_ASKS_BARE = ["Use {tool}.", "Call {tool}.", "{plain}, please.", "Run {tool}.", "Please {plain}."]
RESULT_KINDS = ["word", "int 0 9999", "float", "city", "date", "time", "phrase", "code", "big", "true|false"]
SUMS = {name for entry in TOOLBOX if entry.get("sums") for name in entry["names"]}
RESULT_KEYS = (
    "status result value count price temperature sky distance time total name city state id code date unit message"
).split()


class Offer(NamedTuple):
    """A tool as one request sees it: its schema, and what may be asked of it."""

    schema: Tool
    asks: tuple[str, ...]
    kinds: Mapping[str, str]
    """Placeholder in an ask to kind of value."""
    names: Mapping[str, str]
    """Placeholder in an ask to the parameter's name in the schema, in the schema's order."""
    name: str


def make(source: Source) -> Exchange:
    """Make a request that one of the offered tools serves, or that two calls of it serve."""
    return source.fresh(lambda: _request(source), lambda exchange: exchange.key)


def make_result(source: Source) -> Exchange:
    """Make a conversation in which a tool has answered, and the answer must be told."""
    return source.fresh(lambda: _result(source), lambda exchange: exchange.key)


def some_tools(source: Source, amount: int) -> tuple[Tool, ...]:
    """Return the schemas of some tools, for requests that need none of them."""
    return tuple(offer.schema for offer in _offers(source, amount))


def _offers(source: Source, amount: int) -> list[Offer]:
    offers: list[Offer] = []
    for entry in source.rng.sample(TOOLBOX, amount):
        offer = _invented(source) if source.chance(0.25) or source.drill(0.15) else _known(source, entry)
        if offer.name not in [other.name for other in offers]:
            offers.append(offer)
    return offers


def _request(source: Source) -> Exchange:
    offers = _offers(source, source.pick([1, 1, 2, 2, 3, 4, 5, 6]))
    offer = source.pick(offers)
    text, call = _ask(source, offer)
    calls = [call]
    if source.chance(0.08) and offer.names:
        more, other = _ask(source, offer)
        if other != call:
            stop = "" if text[-1] in ".?!" else "."
            text, calls = text + stop + source.pick([" ", " And ", " Then: ", "\n"]) + more, [call, other]
    key = "call " + " ".join(f"{c.name} {json.dumps(c.arguments)}" for c in calls)
    return Exchange(
        "tools",
        key,
        asked(text),
        "",
        f"I call {' and '.join(c.name for c in calls)}.",
        tuple(calls),
        tuple(o.schema for o in offers),
    )


def _ask(source: Source, offer: Offer) -> tuple[str, Call]:
    ask = source.pick(offer.asks)
    ask = re.sub(r"\[(.*?)\]", lambda part: part[1] if source.chance(0.5) else "", ask)
    drawn = {holder: values.draw(source, offer.kinds[holder]) for holder in re.findall(r"{(\w+)}", ask)}
    text = dress(
        source, ask.format(**{holder: value.text for holder, value in drawn.items()}), order=ask[0] not in "W{HIYM"
    )
    arguments = {name: drawn[holder].json for holder, name in offer.names.items() if holder in drawn}
    return text, Call(offer.name, arguments)


def _known(source: Source, entry: Mapping[str, Any]) -> Offer:
    params = list(entry["params"].items())
    source.rng.shuffle(params)
    names = {holder: source.pick(param["as"].split()) for holder, param in params}
    if len(set(names.values())) < len(names):
        names = {holder: param["as"].split()[0] for holder, param in params}
    kinds = {holder: str(param["kind"]) for holder, param in params}
    always = [
        holder for holder in names if all(f"{{{holder}}}" in re.sub(r"\[.*?\]", "", ask) for ask in entry["asks"])
    ]
    name = source.pick(entry["names"])
    about = source.pick(
        [entry["about"], entry["about"], entry["about"].removesuffix("."), name.replace("_", " ").capitalize()]
    )
    schema = _schema(
        source, name, about, {names[h]: (kinds[h], str(p["about"])) for h, p in params}, [names[h] for h in always]
    )
    return Offer(schema, tuple(entry["asks"]), kinds, names, name)


def _invented(source: Source) -> Offer:
    verb, noun = source.pick(VERBS), source.pick(NOUNS)
    name = source.pick(
        [f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}", source.made_up()]
    )
    holders = source.rng.sample(NOUNS, source.pick([0, 1, 1, 2, 2, 3]))
    if holders and source.drill(0.2):
        # Where the request does not name the tool, its parameters have to tell which it is.
        name = source.made_up()
    kinds = {holder: "true|false" if (kind := source.pick(INVENTED_KINDS)) == "bool" else kind for holder in holders}
    about = f"{verb.capitalize()}s the {noun}." if source.chance(0.7) else source.phrase(2, 6).capitalize() + "."
    schema = _schema(
        source, name, about, {h: (k, source.phrase(1, 3).capitalize()) for h, k in kinds.items()}, list(kinds)
    )
    shown = source.rng.sample(holders, len(holders))
    joint = source.pick([" and ", ", ", ", "])
    between = source.pick([" ", " ", " = ", "=", ": "])
    quoted = {"text"} if source.chance(0.7) else set(INVENTED_KINDS) - {"float", "bool", "int 0 9999", "big"}
    args = joint.join(f'{h}{between}"{{{h}}}"' if kinds[h] in quoted else f"{h}{between}{{{h}}}" for h in shown)
    ask = source.pick(INVENTED_ASKS if holders else INVENTED_ASKS_BARE)
    ask = ask.replace("{tool}", name).replace("{args}", args).replace("{plain}", f"{verb} the {noun}")
    return Offer(schema, (ask,), kinds, {holder: holder for holder in holders}, name)


def _schema(source: Source, name: str, about: str, params: Mapping[str, tuple[str, str]], required: list[str]) -> Tool:
    bare = source.chance(0.1)
    properties: dict[str, dict[str, object]] = {}
    for param, (kind, described) in params.items():
        properties[param] = {"type": _json_type(kind)}
        if "|" in kind and kind != "true|false":
            properties[param]["enum"] = kind.split("|")
        if not bare:
            properties[param]["description"] = described if source.chance(0.85) else source.phrase(1, 5).capitalize()
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if required and not bare:
        parameters["required"] = sorted(required, key=list(params).index)
    function: dict[str, object] = {"name": name, "description": about, "parameters": parameters}
    if source.chance(0.2):
        function = {"description": about, "name": name, "parameters": parameters, "strict": False}
    elif source.chance(0.1):
        del function["description"]
    return {"type": "function", "function": function}


def _json_type(kind: str) -> str:
    if kind == "true|false":
        return "boolean"
    return "integer" if kind.startswith("int ") else "number" if kind in ("float", "big") else "string"


def _result(source: Source) -> Exchange:
    request = _request(source)
    results, told = [], []
    for call in request.calls:
        result: object
        if source.chance(0.25):
            result = said = str(values.draw(source, "text").text)
        else:
            keys = source.rng.sample(RESULT_KEYS if source.chance(0.6) else NOUNS, source.number(1, 4))
            drawn = {key: values.draw(source, source.pick(RESULT_KINDS)) for key in keys}
            result, said = (
                {key: value.json for key, value in drawn.items()},
                ", ".join(f"{key} {value.text}" for key, value in drawn.items()),
            )
        results.append(result if isinstance(result, str) else json.dumps(result))
        told.append(f"{call.name} says: {said}")
    turn = dict(request.reply())
    if source.chance(0.5):
        turn["reasoning_content"] = request.plan
    answers: list[Message] = [{"role": "tool", "content": result} for result in results]
    key = f"{request.key} gives {' '.join(results)}"
    return Exchange(
        "tool results",
        key,
        (*request.messages, turn, *answers),
        "\n".join(told),
        "The tool has answered. I pass it on.",
        tools=request.tools,
    )
