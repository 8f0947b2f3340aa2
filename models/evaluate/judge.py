"""What is asked, and whether an answer is right: text by text, calls by name and arguments, JSON by its meaning."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.train import mixture
from models.train.examples import Call, Conversation, Exchange
from models.train.source import Source

THOUGHT = re.compile(r"^\s*(<think>.*?</think>)?\s*", re.DOTALL)
CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Score:
    """A row of the table, with what went wrong."""

    skill: str
    asked: int
    right: int
    wrong: list[tuple[Conversation, str]]


def cases(each: int, seed: str = "0", skills: Sequence[str] = tuple(mixture.NAMES)) -> list[Conversation]:
    """Return held-out conversations, `each` for every skill: the same ones for the same seed.

    Raises ValueError for a skill that there is not.
    """
    if unknown := [name for name in skills if name not in mixture.SKILLS]:
        raise ValueError(f"no skill {', '.join(unknown)}: there are {', '.join(mixture.NAMES)}")
    made = []
    for name in skills:
        source = Source(f"evaluation {seed} {name}", held_out=True)
        made += [mixture.conversation(source, name) for _ in range(each)]
    return made


def is_right(exchange: Exchange, answer: str) -> bool:
    """Judge what the model wrote, thinking and all; how it thought is not judged."""
    text = THOUGHT.sub("", answer, count=1)
    calls = [_read(found) for found in CALL.findall(text)]
    if exchange.calls or calls:
        return calls == [*exchange.calls] and not CALL.sub("", text).strip()
    if exchange.skill == "JSON shapes":
        return bool(_json(text) == json.loads(exchange.answer))
    return text.strip() == exchange.answer.strip()


def score(asked: Sequence[Conversation], answers: Sequence[str]) -> list[Score]:
    """Return a row for each skill, in the order in which the skills come."""
    rows = []
    for name in dict.fromkeys(conversation.skill for conversation in asked):
        pairs = [(c, answer) for c, answer in zip(asked, answers, strict=True) if c.skill == name]
        wrong = [(c, answer) for c, answer in pairs if not is_right(c.last, answer)]
        rows.append(Score(name, len(pairs), len(pairs) - len(wrong), wrong))
    return rows


def table(rows: Sequence[Score]) -> str:
    """Return the accuracy table in Markdown."""
    lines = ["| skill | right | of | share |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row.skill} | {row.right} | {row.asked} | {row.right / row.asked:.1%} |" for row in rows]
    right, asked = sum(row.right for row in rows), sum(row.asked for row in rows)
    return "\n".join([*lines, f"| all | {right} | {asked} | {right / asked:.1%} |"])


def _read(text: str) -> Call | None:
    call = _json(text)
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return None
    return Call(call["name"], call["arguments"])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
