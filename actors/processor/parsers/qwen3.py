"""Reasoning as Qwen 3 marks it: `<think>`, what it thinks, `</think>`, then the answer.

Only a mark at the very beginning counts. A template that ends its prompt with `<think>` has begun the reasoning itself,
and a model may say the mark again. Reasoning that never ends has ended where its first tool call begins: what comes
from `<tool_call>` on is held until that is known. White space around the reasoning, and between it and the answer, is
nobody's.
"""

from typing import Final

from actors.processor.parsers.marks import split_at

BEGIN: Final = "<think>"
END: Final = "</think>"
CALL: Final = "<tool_call>"
MARKS: Final = (BEGIN, END)


class Qwen3:
    """The reasoning of one stream."""

    __slots__ = ("_after", "_held", "_state", "_told")

    def __init__(self, prompt: str) -> None:
        self._state = "thinking" if prompt.rstrip().endswith(BEGIN) else "begin"
        self._held = ""
        self._told = False
        self._after = False

    def push(self, text: str) -> tuple[str, str]:
        """Take the next text; return (reasoning, answer) that are certain now."""
        if self._state == "answer":
            return "", self._answer(text)
        self._held += text
        if self._state == "begin":
            start = self._held.lstrip()
            if not start or (len(start) < len(BEGIN) and BEGIN.startswith(start)):
                return "", ""
            if not start.startswith(BEGIN):
                return "", self._rest()
            self._state = "thinking"
        if not self._told and not self._said_again():
            return "", ""
        before, after, found = split_at(self._held, END, strip=True)
        if not found:
            certain = min(len(before), len(split_at(self._held, CALL, strip=True)[0].rstrip()))
            before, after = self._held[:certain], self._held[certain:]
        self._held = after
        reasoning = self._reasoning(before.rstrip() if found else before)
        if not found:
            return reasoning, ""
        self._after = True
        return reasoning, self._rest()

    def _said_again(self) -> bool:
        """Leave out marks that the model says at the beginning; return whether what follows is known to be none."""
        start = self._held.lstrip()
        while start.startswith(BEGIN):
            self._held = start[len(BEGIN) :]
            start = self._held.lstrip()
        return not BEGIN.startswith(start)

    def finish(self) -> tuple[str, str]:
        """Return what was held back: reasoning that was cut short is still reasoning, but a call is none."""
        held, self._held = self._held, ""
        if self._state != "thinking":
            return "", held
        before, call, after = held.partition(CALL)
        return self._reasoning(before.rstrip()), call + after

    def _reasoning(self, text: str) -> str:
        """Leave out white space before the first of it."""
        if not self._told:
            text = text.lstrip()
            self._told = bool(text)
        return text

    def _rest(self) -> str:
        self._state = "answer"
        rest, self._held = self._held, ""
        return self._answer(rest)

    def _answer(self, text: str) -> str:
        if self._after:
            text = text.lstrip()
            self._after = not text
        return text
