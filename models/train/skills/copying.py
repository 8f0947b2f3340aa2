"""Copying a passage of up to some 1,900 tokens, whatever stands in it: prose, numbers, names, odd characters, code."""

import tomllib
from typing import Any

from models.train import values
from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES
from models.train.source import DATA, Source

ASK, AFTER, QUOTED = PHRASES["copying"]["ask"], PHRASES["copying"]["after"], PHRASES["copying"]["quoted"]
ORDERS = [order.strip() for order in ASK + AFTER]
LONGEST = 420
PASSAGES: dict[str, Any] = tomllib.loads((DATA / "passages.toml").read_text(encoding="utf-8"))
FORMS: list[str] = PASSAGES["forms"]
MARKS: list[str] = PASSAGES["marks"]
ODD: str = PASSAGES["odd"]
KINDS = {
    "p": "person",
    "c": "city",
    "d": "date",
    "t": "time",
    "f": "float",
    "y": "currency",
    "e": "email",
    "k": "code",
    "h": "path",
    "n": "int 0 9999",
}


def make(source: Source) -> Exchange:
    """Make a passage and the request to copy it."""
    text = source.fresh(lambda: passage(source, source.length(2, LONGEST)), lambda t: f"copy {t}")
    ask = text + source.pick(AFTER) if source.chance(0.15) or source.drill(0.25) else source.pick(ASK) + text
    if len(text) < 80 and '"' not in text and "\n" not in text and source.chance(0.3):
        ask = source.pick(QUOTED).replace("{t}", text)
    return Exchange("copying", f"copy {text}", asked(ask), text, "Copy the text.")


def passage(source: Source, words: int) -> str:
    """Return a passage of about this many words. Some repeat themselves, which makes them harder to follow."""
    forms = source.rng.sample(FORMS, 3) if source.chance(0.3) else FORMS
    shelf = [source.word() for _ in range(6)] if source.chance(0.2) or source.drill(0.15) else []
    gap = "\n\n" if source.drill(0.25) else source.pick([" ", " ", " ", "\n", "\n\n"])
    sentences: list[str] = []
    size = 0
    while size < words:
        if sentences and source.drill(0.03):
            # Looks like the end of the passage and is not: another sentence always follows.
            sentences.append(source.pick(ORDERS))
        sentence = _sentence(source, source.pick(forms), shelf)
        sentences.append(sentence)
        size += sentence.count(" ") + 1
    if words <= 4 and source.chance(0.5):
        return source.phrase(1, 4)
    return gap.join(sentences).strip()


def _sentence(source: Source, form: str, shelf: list[str]) -> str:
    parts = []
    for piece in form.replace("}", "{").split("{"):
        if len(piece) != 1 or not piece.isalpha():
            parts.append(piece)
        elif piece == "w":
            parts.append(source.pick(shelf) if shelf else source.word())
        elif piece == "m":
            parts.append(source.made_up())
        elif piece == "u":
            parts.append("".join(source.pick(ODD) for _ in range(source.number(1, 4))))
        elif piece == "z":
            parts.append(source.pick(MARKS) + source.pick(["", "", " "]))
        else:
            parts.append(values.draw(source, KINDS[piece]).text)
    text = "".join(parts)
    return text[0].upper() + text[1:] if source.chance(0.7) else text
