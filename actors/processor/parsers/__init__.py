"""Parsers of reasoning and tool calls, by the names that configurations use."""

from typing import Any, Final

from actors.processor.parsers import gpt_oss, qwen3, qwen25
from actors.processor.parsers.parser import Parsed, Parser
from messages.submit import ToolCall

CHANNELS: Final = "gpt-oss"
"""The parser of both: its format has reasoning, calls and the answer in one row of messages."""
REASONING: Final = {"qwen3": qwen3.Qwen3}
TOOL_CALLS: Final = {"qwen25": qwen25.Qwen25}
MARKS: Final = {CHANNELS: gpt_oss.MARKS, "qwen3": qwen3.MARKS, "qwen25": qwen25.MARKS}


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
    """Raise ValueError for a name that is none, listing those there are, and for two that read different formats."""
    for field, name, known in (
        ("reasoning_parser", reasoning, REASONING),
        ("tool_call_parser", tool_calls, TOOL_CALLS),
    ):
        if name is not None and name not in known and name != CHANNELS:
            names = ", ".join(sorted({*known, CHANNELS}))
            raise ValueError(f"{field}: there is no {name!r}; there is {names}")
    if tool_calls is not None and (CHANNELS in (reasoning, tool_calls)) and reasoning != tool_calls:
        message = f"reasoning_parser: {reasoning!r} beside tool_call_parser {tool_calls!r}: {CHANNELS} is one format"
        raise ValueError(f"{message} that has both in it; name it for both, or for reasoning alone")


def marks(*names: str | None) -> frozenset[str]:
    """Give the tokens that these parsers must see in the text, even where a tokenizer calls them special."""
    return frozenset(mark for name in names if name is not None for mark in MARKS.get(name, ()))


def opening(reasoning: str | None, prompt: str) -> str:
    """Give what a prompt lacks for its answer to begin at once, without a thought."""
    return gpt_oss.ANSWER if reasoning == CHANNELS and prompt.endswith("<|start|>assistant") else ""


def described(reasoning: str | None, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Give functions an empty description where they have none: gpt-oss's template breaks without, clients may."""
    if reasoning != CHANNELS or tools is None:
        return tools
    return [tool | {"function": {"description": ""} | tool["function"]} for tool in tools]


def recalled(reasoning: str | None, message: dict[str, Any]) -> dict[str, Any]:
    """Give a call's reasoning back under the name that gpt-oss's template has for it; beside content it takes none."""
    thought = message.get("reasoning_content")
    if reasoning != CHANNELS or not thought or not message.get("tool_calls") or message.get("content"):
        return message
    return message | {"thinking": thought}


def make(reasoning: str | None, tool_calls: str | None, prompt: str) -> Parser | None:
    """Make the parser of one stream, or None if neither reasoning nor tool calls are to be read.

    `prompt` is the rendered conversation, which may have begun the reasoning. Raises KeyError for an unknown name.
    """
    if CHANNELS in (reasoning, tool_calls):
        return gpt_oss.GptOss(prompt, tools=tool_calls is not None)
    if reasoning is None and tool_calls is None:
        return None
    return Both(
        REASONING[reasoning](prompt) if reasoning is not None else None,
        TOOL_CALLS[tool_calls]() if tool_calls is not None else None,
    )
