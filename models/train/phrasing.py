"""How people say one thing in many ways: politeness, lower case, a missing full stop."""

import tomllib
from typing import Final

from models.train.source import DATA, Source

PHRASES: Final[dict[str, dict[str, list[str]]]] = tomllib.loads((DATA / "phrases.toml").read_text(encoding="utf-8"))

BEFORE = [
    "Please ",
    "Can you ",
    "Could you ",
    "Could you please ",
    "Would you ",
    "Now ",
    "Please, ",
    "I want you to ",
    "Can you please ",
]
GREETED = ["Hi! ", "Hello, ", "Hey, ", "Ok, ", "Hello! ", "Hi, ", "So, ", "Well, "]

AFTER = [
    " for me",
    " for me",
    " for me",
    " for me please",
    " now",
    ", thank you",
    " and then stop",
    " right now",
    " again",
    ", will you",
]


def dress(source: Source, text: str, *, order: bool = True, tail: bool = False) -> str:
    """Return the request as some person might type it.

    `order` says that it starts with a verb in the imperative, `tail` that "for me" may follow without being mistaken
    for a part of what is asked.
    """
    roll = source.rng.random()
    if order and roll < 0.2:
        before = source.pick(BEFORE)
        text = before + _lowered(text)
        if text.endswith(".") and before.startswith(("Can", "Could", "Would")):
            text = text[:-1] + "?"
    elif roll < 0.25:
        text = source.pick(GREETED) + _lowered(text)
    elif tail and roll < 0.29 and text[-1] in ".?":
        text = text[:-1] + source.pick(AFTER) + text[-1]
    elif roll < 0.33 and text.endswith("."):
        text = text[:-1] + source.pick([" please", ", please.", ", please", " please."])
    if source.chance(0.15):
        text = _lowered(text)
    if text[-1] in ".?" and source.chance(0.25):
        text = text[:-1] + source.pick(["", "", "", "!", " ."])
    return text


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:] if len(text) > 1 and text[1] in "abcdefghijklmnopqrstuvwxyz " else text
