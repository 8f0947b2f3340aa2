"""Tool calls that a grammar forces: the answer is nothing but calls, and each is told as it comes, its name first."""

import re
import uuid
from typing import Final

import msgspec

from actors.processor.parsers.parser import Parsed
from messages.submit import FunctionCall, ToolCall

_HEAD: Final = re.compile(r'\s*\}?\s*[\[,]?\s*\{\s*"name"\s*:\s*("(?:\\.|[^"\\])*")\s*,\s*"parameters"\s*:\s*')
_MARKS: Final = re.compile(r'[{}\[\]"\\]')


def _begin(index: int, name: str) -> ToolCall:
    return ToolCall(
        index=index, id=f"call_{uuid.uuid4().hex[:24]}", type="function", function=FunctionCall(name=name, arguments="")
    )


class Named:
    """The call of the one function that a request names: the text is its arguments."""

    __slots__ = ("_name", "called")

    def __init__(self, name: str) -> None:
        self._name = name
        self.called = False

    def push(self, text: str) -> Parsed:
        """Take the next text and give what is certain now."""
        calls = [] if self.called else [_begin(0, self._name)]
        self.called = True
        if text:
            calls.append(ToolCall(index=0, function=FunctionCall(arguments=text)))
        return "", "", calls

    def finish(self) -> Parsed:
        """Give what was held back: nothing is."""
        return "", "", []


class Required:
    """One call or more of any function, as a list of objects with `name` and `parameters`."""

    __slots__ = ("_count", "_depth", "_held", "_inside", "_quoted")

    def __init__(self) -> None:
        self._held = ""
        self._count = 0
        self._inside = False
        self._depth = 0
        self._quoted = False

    @property
    def called(self) -> bool:
        """Whether there has been a call, if only the name of one."""
        return self._count > 0

    def push(self, text: str) -> Parsed:
        """Take the next text and give what is certain now."""
        self._held += text
        calls: list[ToolCall] = []
        while self._arguments(calls) if self._inside else self._name(calls):
            pass
        return "", "", calls

    def finish(self) -> Parsed:
        """Give what was held back: text where no call was ever begun, else the end of the list, which says nothing."""
        held, self._held = self._held, ""
        return "", "" if self.called else held, []

    def _name(self, calls: list[ToolCall]) -> bool:
        """Read on to the arguments of the next call; return whether they have been reached."""
        head = _HEAD.match(self._held)
        if head is None or head.end() == len(self._held):
            return False
        calls.append(_begin(self._count, msgspec.json.decode(head[1], type=str)))
        self._held = self._held[head.end() :]
        self._count += 1
        self._inside, self._depth, self._quoted = True, 0, False
        return True

    def _arguments(self, calls: list[ToolCall]) -> bool:
        """Give the arguments as far as they go; return whether they have come to their end."""
        text, at, end = self._held, 0, -1
        while (mark := _MARKS.search(text, at)) is not None:
            at = mark.end()
            if mark[0] == "\\":
                at += 1
            elif mark[0] == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if mark[0] in "{[" else -1
                if self._depth == 0:
                    end = at
                    break
        # A backslash at the end waits for what it escapes.
        upto = end if end >= 0 else len(text) - (at > len(text))
        if upto:
            function = FunctionCall(arguments=text[:upto])
            calls.append(ToolCall(index=self._count - 1, function=function))
        self._held = text[upto:]
        if end < 0:
            return False
        self._inside = False
        return True
