"""Tool calls as Qwen 2.5 (and Hermes before it) marks them: JSON between `<tool_call>` and `</tool_call>`.

Each call is told whole, the moment its end mark is there: its arguments are then known to be JSON. What stands between
the marks and is no call is the model's text, marks and all. White space around calls is nobody's.
"""

import uuid
from typing import Final

import msgspec

from actors.processor.parsers.marks import split_at
from messages.submit import FunctionCall, ToolCall

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"
MARKS: Final = (BEGIN, END)


class Call(msgspec.Struct):
    """One call as the model writes it; the arguments, by either name, are kept as they were written."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    parameters: msgspec.Raw = msgspec.Raw(b"")


class Qwen25:
    """The tool calls of one stream."""

    __slots__ = ("_after", "_count", "_held", "_inside")

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._after = False
        self._count = 0

    @property
    def called(self) -> bool:
        """Whether there has been a call."""
        return self._count > 0

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take the next text; return (text, calls) that are certain now."""
        self._held += text
        said: list[str] = []
        calls: list[ToolCall] = []
        while self._step(said, calls):
            pass
        return "".join(said), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return what was held back: a call that was cut short is text."""
        held, self._held = self._held, ""
        return (BEGIN + held if self._inside else held), []

    def _step(self, said: list[str], calls: list[ToolCall]) -> bool:
        """Go on to the next mark; return whether there was one."""
        if self._inside:
            before, self._held, found = split_at(self._held, END)
            if not found:
                self._held = before + self._held
                return False
            self._inside = False
            self._after = True
            if found_calls := self._calls(before):
                calls += found_calls
            else:
                said.append(BEGIN + before + END)
            return True
        if self._after:
            self._held = self._held.lstrip()
            self._after = not self._held
        before, self._held, found = split_at(self._held, BEGIN, strip=True)
        said.append(before.rstrip() if found else before)
        self._inside = found
        return found

    def _calls(self, text: str) -> list[ToolCall]:
        """Read one call, or a list of them; none if it is neither."""
        try:
            read = msgspec.json.decode(text.encode("utf-8", "replace"), type=Call | list[Call])
        except msgspec.DecodeError:
            return []
        return [self._call(call) for call in (read if isinstance(read, list) else [read])]

    def _call(self, call: Call) -> ToolCall:
        arguments = (bytes(call.parameters) or bytes(call.arguments)).decode()
        index, self._count = self._count, self._count + 1
        return ToolCall(
            index=index,
            id=f"call_{uuid.uuid4().hex[:24]}",
            type="function",
            function=FunctionCall(name=call.name, arguments=arguments),
        )
