"""gpt-oss's channels (the harmony format): analysis is reasoning, a message to a function a call, the rest the answer.

A turn is a row of messages, `<|start|>assistant<|channel|>NAME to=RECIPIENT <|constrain|>json<|message|>BODY<|end|>`;
the prompt has begun the first, a call ends with `<|call|>` and the last one with `<|return|>`. The recipient may stand
behind the role or behind the channel. Format: https://github.com/openai/harmony, docs/format.md.
"""

import re
import uuid
from typing import Final

import msgspec

from actors.processor.parsers.parser import Parsed
from messages.submit import FunctionCall, ToolCall

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
MESSAGE: Final = "<|message|>"
MARKS: Final = (START, CHANNEL, MESSAGE, "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
ANSWER: Final = f"{CHANNEL}final{MESSAGE}"
"""What goes before an answer that has to begin at once."""

_MARK: Final = re.compile("|".join(map(re.escape, MARKS)))
_BEGINNINGS: Final = frozenset(mark[:length] for mark in MARKS for length in range(1, len(mark)))
_LONGEST: Final = max(map(len, MARKS)) - 1
_RECIPIENT: Final = re.compile(r"(?:^|\s)to=([^\s<]+)")
_MAY_BE_RECIPIENT: Final = re.compile(r"\s*(?:t|to|to=.*)?", re.DOTALL)
_FUNCTIONS: Final = "functions."


class GptOss:
    """The channels of one stream; without `tools` a call is told as text, marks and all.

    `prompt` is the rendered conversation, whose end has begun the first message.
    """

    __slots__ = ("_body", "_count", "_given", "_head", "_held", "_state", "_tools")

    def __init__(self, prompt: str = "", *, tools: bool) -> None:
        self._tools = tools
        self._held = ""
        self._count = 0
        self._begin()
        begun = prompt.rfind(START)
        if begun >= 0:
            self.push(prompt[begun:])
            self._given = len(self._head)

    def _begin(self) -> None:
        # "between" messages, in a "head", in a body of "reasoning", "text", or a "call" that is held until its end.
        self._state = "between"
        self._head = ""
        self._given = 0
        self._body = ""

    @property
    def called(self) -> bool:
        """Whether there has been a call."""
        return self._count > 0

    def push(self, text: str) -> Parsed:
        """Take the next text and give what is certain now."""
        self._held += text
        told = Told()
        at = 0
        for mark in _MARK.finditer(self._held):
            self._text(self._held[at : mark.start()], told)
            self._mark(mark[0], told)
            at = mark.end()
        rest = self._held[at:]
        keep = next((n for n in range(min(_LONGEST, len(rest)), 0, -1) if rest[-n:] in _BEGINNINGS), 0)
        self._held = rest[len(rest) - keep :]
        self._text(rest[: len(rest) - keep], told)
        return told.parsed

    def finish(self) -> Parsed:
        """Give what was held back: the mark that ends a call is none of the text, so a call may end here too."""
        told = Told()
        held, self._held = self._held, ""
        self._text(held, told)
        if self._state == "call":
            self._call("", told)
        elif self._state == "head":
            told.text += self._headless() or ""
        self._begin()
        return told.parsed

    def _text(self, text: str, told: "Told") -> None:
        if not text:
            return
        if self._state == "reasoning":
            told.reasoning += text
        elif self._state == "call":
            self._body += text
        elif self._state == "head":
            self._head += text
            if (said := self._headless()) and not _MAY_BE_RECIPIENT.fullmatch(said):
                told.text += said
                self._begin()
        else:
            told.text += text

    def _headless(self) -> str | None:
        """What a model that was led to a head has written without one: that is an answer, unless a head follows."""
        role, _, rest = self._head.partition("assistant")
        return rest if role == START and CHANNEL not in rest else None

    def _mark(self, mark: str, told: "Told") -> None:
        if self._state == "call" and mark not in (MESSAGE, "<|constrain|>"):
            self._call(mark, told)
        if mark == START or (mark == CHANNEL and self._state != "head"):
            self._begin()
            self._state, self._head = "head", mark
        elif self._state == "head":
            if mark == MESSAGE:
                self._message()
            elif mark in (CHANNEL, "<|constrain|>"):
                self._head += mark
            else:
                self._begin()
        elif mark not in (MESSAGE, "<|constrain|>"):
            self._begin()
        else:
            self._text(mark if self._state != "between" else "", told)

    def _message(self) -> None:
        """The head is whole: see what its body is."""
        head = self._head.replace(START, " ").replace("<|constrain|>", " ")
        role, _, channel = head.partition(CHANNEL)
        self._head += MESSAGE
        if _RECIPIENT.search(role) or _RECIPIENT.search(channel):
            self._state = "call"
        else:
            self._state = "reasoning" if channel.split()[:1] == ["analysis"] else "text"

    def _call(self, end: str, told: "Told") -> None:
        """Tell a call that is whole; one that is not, or is none, is what the model wrote."""
        head, body, written = self._head, self._body, self._head[self._given :]
        self._begin()
        if self._tools and (arguments := _arguments(body)) is not None:
            found = _RECIPIENT.search(head.replace(CHANNEL, " ").replace("<|constrain|>", " "))
            assert found is not None
            told.calls.append(
                ToolCall(
                    index=self._count,
                    id=f"call_{uuid.uuid4().hex[:24]}",
                    type="function",
                    function=FunctionCall(name=_name(found[1]), arguments=arguments),
                )
            )
            self._count += 1
        else:
            told.text += written + body + (end if end in MARKS[4:] else "")


class Told:
    """What one push gives."""

    __slots__ = ("calls", "reasoning", "text")

    def __init__(self) -> None:
        self.reasoning = ""
        self.text = ""
        self.calls: list[ToolCall] = []

    @property
    def parsed(self) -> Parsed:
        """The same as a tuple."""
        return self.reasoning, self.text, self.calls


def _name(recipient: str) -> str:
    """A function by the name that the request gave it: the namespace is the template's, and so is any other's."""
    if recipient.startswith(_FUNCTIONS):
        return recipient.removeprefix(_FUNCTIONS)
    return recipient.rpartition(".")[2]


def _arguments(body: str) -> str | None:
    """A call's arguments as they were written, or None if they are no JSON; none at all are an empty object."""
    body = body.strip()
    try:
        msgspec.json.decode(body.encode("utf-8", "replace") or b"{}")
    except msgspec.DecodeError:
        return None
    return body or "{}"
