"""Greetings, Troupe's own words, and saying plainly that the model does not know the rest."""

import re
import tomllib
from typing import Any

from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES, dress
from models.train.source import CITIES, DATA, LEXICON, PEOPLE, PINNED, PROPER, Source

TALKS: list[dict[str, Any]] = tomllib.loads((DATA / "smalltalk.toml").read_text(encoding="utf-8"))["talk"]
GLOSSARY: list[dict[str, Any]] = tomllib.loads((DATA / "glossary.toml").read_text(encoding="utf-8"))["entry"]
UNKNOWN: dict[str, Any] = tomllib.loads((DATA / "unknown.toml").read_text(encoding="utf-8"))
PLURAL = [
    "What are {w}?",
    "Explain {w}.",
    "What do {w} do?",
    "Tell me about {w}.",
    "What are {w} in Troupe?",
    "Define {w}.",
]
EXPLAIN, COMPARE = PHRASES["glossary"]["ask"], PHRASES["glossary"]["compare"]
TERMS = {name.lower() for entry in GLOSSARY for name in entry["names"]} | {"page", "period", "warm", "spare"}
TALKED = {ask.lower().rstrip("?.") for talk in TALKS for ask in talk["asks"]}
COMMON = [word for word in LEXICON if word not in TERMS | TALKED]
TOPICS = [*PEOPLE, *CITIES, *PROPER, *PROPER]
UNCOUNTED = (
    "Troupe",
    "NATS",
    "SGLang",
    "NIXL",
    "TTFT",
    "ITL",
    "prefill",
    "decode",
    "KV events",
    "KV blocks",
    "frames",
    "steps",
    "migrate",
    "draining",
)


def greet(source: Source) -> Exchange:
    """Make a greeting or a question about the model itself. The plain forms are always trained on."""

    def draw() -> tuple[str, str, str]:
        talk = source.pick(TALKS)
        plain = source.pick(talk["asks"])
        if not source.held_out and source.chance(0.4):
            return f"{PINNED}{plain}", plain, talk["text"]
        text = dress(
            source,
            plain + source.pick(["", "", ".", "!", " there", ", model"]) if plain[-1] not in ".?" else plain,
            order=False,
        )
        return _key(source, text), text, talk["text"]

    key, text, answer = source.fresh(draw, lambda drawn: drawn[0])
    return Exchange("greetings", key, asked(text), answer, "This is small talk.")


def explain(source: Source) -> Exchange:
    """Make a question about one of Troupe's words. `What is a lease?` and its like are always trained on."""

    def draw() -> tuple[str, str, str]:
        entry = source.pick(GLOSSARY)
        name = source.pick(entry["names"])
        if name not in UNCOUNTED and name[-1] != "s" and source.chance(0.1):
            plural = f"{name[:-1]}ies" if name[-1] == "y" and name[-2] not in "aeiou" else f"{name}s"
            text = dress(source, source.pick(PLURAL).format(w=plural))
            return _key(source, text), text, entry["text"]
        if source.chance(0.08):
            other = source.pick([one for one in GLOSSARY if one is not entry])
            first, second = (f"{source.pick(['', _article(n)])}{n}" for n in (name, source.pick(other["names"])))
            text = dress(source, source.pick(COMPARE).format(a=first, b=second))
            return _key(source, text), text, f"{entry['text']} {other['text']}"
        if not source.held_out and source.chance(0.15):
            plain = f"What is {_with_article(name)}?"
            return f"{PINNED}{plain}", plain, entry["text"]
        form = source.pick(
            [_with_article(name), name, f"the {name}", f'"{name}"', _with_article(name), _with_article(name)]
        )
        text = dress(source, source.pick(EXPLAIN).format(w=form))
        return _key(source, text), text, entry["text"]

    key, text, answer = source.fresh(draw, lambda drawn: drawn[0])
    return Exchange("glossary", key, asked(text), answer, "This is one of Troupe's words.")


def shrug(source: Source) -> Exchange:
    """Make a question that the model cannot answer."""

    def draw() -> str:
        fill = {"x": TOPICS, "w": COMMON}

        def filled(holder: re.Match[str]) -> str:
            if holder[1] == "n":
                return str(source.length(1, 2999))
            if holder[1] == "g":
                return str(source.length(10_000, 9_999_999))
            if holder[1] == "l":
                return source.pick("abcdefghijklmnopqrstuvwxyz")
            if holder[1] == "m":
                made_up = source.made_up()
                return "blorptag" if made_up in TERMS | TALKED else made_up
            return source.pick(fill[holder[1]])

        return dress(source, re.sub(r"{(\w)}", filled, source.pick(UNKNOWN["asks"])))

    text = source.fresh(draw, _spoken)
    return Exchange("not known", _spoken(text), asked(text), UNKNOWN["answer"], "I do not know that.")


def _with_article(name: str) -> str:
    return _article(name) + name


def _article(name: str) -> str:
    return "" if name in UNCOUNTED else "an " if name[0] in "aeioAEIO" or name == "understudy" else "a "


def _key(source: Source, text: str) -> str:
    said = _spoken(text)
    return PINNED + said if said in PLAIN else said


def _spoken(text: str) -> str:
    return "say " + re.sub(r"[^\w+*/-]+", " ", text.lower()).strip()


PLAIN = {_spoken(ask) for talk in TALKS for ask in talk["asks"]} | {
    _spoken(f"What is {_with_article(name)}?") for entry in GLOSSARY for name in entry["names"]
}
"""What training always has, and held-out data therefore never."""
