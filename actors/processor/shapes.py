"""What shape a chat template wants a message in, found by trying: templates do not say, and each family has its own.

Clients send content as one text or as parts, and the arguments of tool calls as JSON text, as OpenAI's API has it. Some
templates take a text only, some parts only; nearly all take arguments as an object, a few put them into a text.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct, json

WORD: Final = "troupe-probe"

Render = Callable[[list[dict[str, Any]]], str | None]
"""Renders a conversation; None if the template cannot."""


class Shapes(Struct, frozen=True):
    """Whether a template takes content as a text and as parts, and arguments as an object."""

    text: bool = True
    parts: bool = False
    objects: bool = True

    def content(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Bring a message's content into a shape that the template takes; where it takes both, leave it as it is."""
        if isinstance(content, str):
            return content if self.text or not self.parts else [{"type": "text", "text": content}]
        return content if self.parts else "\n".join(part["text"] for part in content)

    def whole(self, message: dict[str, Any]) -> dict[str, Any]:
        """Bring a message that has its arguments as JSON text into the shape that the template takes."""
        made = message | {"content": self.content(message.get("content") or "")}
        if not self.objects or not message.get("tool_calls"):
            return made
        calls = [
            call
            | {"function": call["function"] | {"arguments": json.decode(call["function"].get("arguments") or "{}")}}
            for call in message["tool_calls"]
        ]
        return made | {"tool_calls": calls}


def shapes(render: Render) -> Shapes:
    """Find out by rendering small conversations."""
    user: dict[str, Any] = {"role": "user", "content": WORD}
    call: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {WORD: 1}}}
    called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    told = call | {"function": {"name": "f", "arguments": f'{{"{WORD}": 1}}'}}
    text = _shown(render([user]))
    parts = _shown(render([{"role": "user", "content": [{"type": "text", "text": WORD}]}]))
    user = user if text or not parts else {"role": "user", "content": [{"type": "text", "text": "x"}]}
    objects = render([user, called]) is not None
    return Shapes(
        text=text or not parts,
        parts=parts,
        objects=objects or render([user, called | {"tool_calls": [told]}]) is None,
    )


def _shown(rendered: str | None) -> bool:
    """Whether the text of a message stands in a prompt as such, and not as what Python prints of a list."""
    return rendered is not None and WORD in rendered and "'text'" not in rendered and '"text"' not in rendered
