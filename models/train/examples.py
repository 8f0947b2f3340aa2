"""What a data maker makes: one request with its one right answer, and a conversation that ends in one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: name and arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what must come back.

    `messages` ends with a user's or a tool's turn. `plan` is what stands between the think tags when thinking is on.
    `letterwise` says that the answer is written letter by letter, whatever longer tokens would fit: a reversed word
    is then no riddle about the tokenizer. `key` tells what was asked (see `source`).
    """

    skill: str
    key: str
    messages: tuple[Message, ...]
    answer: str
    plan: str
    calls: tuple[Call, ...] = ()
    tools: tuple[Tool, ...] = ()
    letterwise: bool = False

    def reply(self) -> Message:
        """Return the right answer as an assistant's message."""
        if not self.calls:
            return {"role": "assistant", "content": self.answer}
        calls = [{"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}} for c in self.calls]
        return {"role": "assistant", "content": self.answer, "tool_calls": calls}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is given, and the exchange that it must finish. `skill` is the row of the accuracy table."""

    skill: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    thinking: bool
    last: Exchange


def asked(text: str) -> tuple[Message, ...]:
    """Return the messages of a plain request."""
    return ({"role": "user", "content": text},)
