"""What reads a model's own marks in its text: reasoning and tool calls, while it streams."""

from typing import Protocol

from messages.submit import ToolCall

Parsed = tuple[str, str, list[ToolCall]]
"""Reasoning, text for the user, and pieces of tool calls."""


class Parser(Protocol):
    """Reads one stream; what it gives depends on the characters alone, however they are cut."""

    @property
    def called(self) -> bool:
        """Whether there has been a tool call."""

    def push(self, text: str) -> Parsed:
        """Take the next text and give what is certain now."""

    def finish(self) -> Parsed:
        """Give what was held back, there being nothing to come."""
