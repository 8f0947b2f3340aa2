"""Parsers of reasoning and tool calls, by the names that configurations use."""

from actors.processor.parsers.parser import Parser

REASONING: dict[str, type] = {}
TOOL_CALLS: dict[str, type] = {}


def check(reasoning: str | None, tool_calls: str | None) -> None:
    """Raise ValueError for a name that is none, listing those there are."""


def make(reasoning: str | None, tool_calls: str | None) -> Parser | None:
    """Make the parser of one stream, or None if neither reasoning nor tool calls are to be read."""
    return None
