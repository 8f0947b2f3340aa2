"""Parsers of reasoning and tool calls, by the names that configurations use."""

from typing import Final

from actors.processor.parsers import qwen3, qwen25
from actors.processor.parsers.parser import Parsed, Parser
from messages.submit import ToolCall

REASONING: Final = {"qwen3": qwen3.Qwen3}
TOOL_CALLS: Final = {"qwen25": qwen25.Qwen25}
MARKS: Final = frozenset({*qwen3.MARKS, *qwen25.MARKS})
"""Tokens that must be seen in the text, even where a tokenizer calls them special."""


class Both:
    """Reasoning first, then tool calls in what is left; either may be absent."""

    __slots__ = ("_reasoning", "_tools")

    def __init__(self, reasoning: qwen3.Qwen3 | None, tools: qwen25.Qwen25 | None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def called(self) -> bool:
        """Whether there has been a tool call."""
        return self._tools is not None and self._tools.called

    def push(self, text: str) -> Parsed:
        """Take the next text and give what is certain now."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        calls: list[ToolCall] = []
        if self._tools is not None and text:
            text, calls = self._tools.push(text)
        return reasoning, text, calls

    def finish(self) -> Parsed:
        """Give what was held back, there being nothing to come."""
        reasoning, text = self._reasoning.finish() if self._reasoning is not None else ("", "")
        if self._tools is None:
            return reasoning, text, []
        said, calls = self._tools.push(text)
        rest, more = self._tools.finish()
        return reasoning, said + rest, calls + more


def check(reasoning: str | None, tool_calls: str | None) -> None:
    """Raise ValueError for a name that is none, listing those there are."""
    for field, name, known in (
        ("reasoning_parser", reasoning, REASONING),
        ("tool_call_parser", tool_calls, TOOL_CALLS),
    ):
        if name is not None and name not in known:
            raise ValueError(f"{field}: there is no {name!r}; there is {', '.join(sorted(known))}")


def make(reasoning: str | None, tool_calls: str | None, prompt: str) -> Parser | None:
    """Make the parser of one stream, or None if neither reasoning nor tool calls are to be read.

    `prompt` is the rendered conversation, which may have begun the reasoning. Raises KeyError for an unknown name.
    """
    if reasoning is None and tool_calls is None:
        return None
    return Both(
        REASONING[reasoning](prompt) if reasoning is not None else None,
        TOOL_CALLS[tool_calls]() if tool_calls is not None else None,
    )
