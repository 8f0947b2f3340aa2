"""The chat template in Python, for speed: what `data/chat_template.jinja` makes of a conversation, and the answer.

A test holds the two together. Training renders some hundred thousand conversations a minute, which Jinja cannot.
"""

import json
from collections.abc import Sequence

from models.train.examples import Conversation, Exchange, Message, Tool
from models.train.source import DATA

TEMPLATE_FILE = DATA / "chat_template.jinja"
TOOLS_BEFORE = "# Tools\n\nThese functions may be called:\n<tools>"
TOOLS_AFTER = (
    "\n</tools>\n\nTo call one, answer with its name and arguments:\n"
    '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
)
NO_THOUGHT = "<think>\n\n</think>\n\n"


def prompt(messages: Sequence[Message], tools: Sequence[Tool], *, thinking: bool) -> str:
    """Return what the model reads, up to where it begins to write."""
    parts = []
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    if system or tools:
        offered = TOOLS_BEFORE + "".join(f"\n{_json(tool)}" for tool in tools) + TOOLS_AFTER if tools else ""
        parts.append(f"<|im_start|>system\n{system}{chr(10) * 2 if system and tools else ''}{offered}<|im_end|>\n")
    asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=len(messages))
    for at, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            parts.append(f"<|im_start|>user\n{message['content']}<|im_end|>\n")
        elif role == "assistant":
            parts.append(f"<|im_start|>assistant\n{_said(message, recent=at > asked)}<|im_end|>\n")
        elif role == "tool":
            opening = "<|im_start|>user" if messages[at - 1]["role"] != "tool" else ""
            closing = "<|im_end|>\n" if at + 1 == len(messages) or messages[at + 1]["role"] != "tool" else ""
            parts.append(f"{opening}\n<tool_response>\n{message['content']}\n</tool_response>{closing}")
    return "".join(parts) + "<|im_start|>assistant\n" + ("" if thinking else NO_THOUGHT)


def answer(exchange: Exchange, *, thinking: bool) -> tuple[str, str]:
    """Return the right answer's beginning and its rest; the rest is the part that may be written letter by letter."""
    before = f"<think>\n{exchange.plan}\n</think>\n\n" if thinking else ""
    return before, exchange.answer + "\n".join(_call(call.name, call.arguments) for call in exchange.calls)


def rendered(conversation: Conversation) -> tuple[str, str, str]:
    """Return prompt, beginning and rest of a conversation; `<|im_end|>` is not in it."""
    before, rest = answer(conversation.last, thinking=conversation.thinking)
    return prompt(conversation.messages, conversation.tools, thinking=conversation.thinking), before, rest


def _said(message: Message, *, recent: bool) -> str:
    thought = message.get("reasoning_content", "") if recent else ""
    calls = [_call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    said = [message["content"]] if message["content"] else []
    return (f"<think>\n{thought}\n</think>\n\n" if thought else "") + "\n".join([*said, *calls])


def _call(name: str, arguments: object) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {_json(arguments)}}}\n</tool_call>'


def _json(thing: object) -> str:
    return json.dumps(thing, ensure_ascii=False)
