"""Answers through a running cluster: its HTTP door in OpenAI's form, many requests at once.

`collect` asks for nothing but an `async generate(messages, tools, thinking) -> text`; `Door.generate` is one such.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

import aiohttp

from models.train.examples import Conversation, Message, Tool

Generate = Callable[[Sequence[Message], Sequence[Tool], bool], Awaitable[str]]
MOST_TOKENS = 2100
DEADLINE = 600.0
"""Seconds that one answer may take."""


async def collect(asked: Sequence[Conversation], generate: Generate, at_once: int) -> list[str]:
    """Return the answers, in order. What `generate` raises ends everything."""
    room = asyncio.Semaphore(at_once)

    async def one(conversation: Conversation) -> str:
        async with room:
            return await generate(conversation.messages, conversation.tools, conversation.thinking)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(conversation)) for conversation in asked]
    return [task.result() for task in tasks]


class DoorError(Exception):
    """The door refused a request, or is not there."""


class Door:
    """A cluster's HTTP door, for one model."""

    def __init__(self, url: str, model: str) -> None:
        self.url, self.model = url.rstrip("/"), model
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Door":
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE))
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._session:
            await self._session.close()

    async def generate(self, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool) -> str:
        """Return the answer as the model wrote it: thoughts and calls put back where the door took them out.

        Raises DoorError with what the door says when it refuses.
        """
        if self._session is None:
            raise RuntimeError("use `async with Door(...)`")
        body: dict[str, Any] = {
            "model": self.model,
            "messages": as_openai(messages),
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
            "chat_template_kwargs": {"enable_thinking": thinking},
        }
        if tools:
            body["tools"] = list(tools)
        try:
            async with self._session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise DoorError(f"{self.url} answered {answer.status}: {await answer.text()}")
                return as_written((await answer.json())["choices"][0]["message"])
        except aiohttp.ClientError as error:
            raise DoorError(f"{self.url}: {error}") from error


def as_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as the API wants them: calls have ids, arguments are text, a tool's turn names its call."""
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        turn = dict(message)
        if calls := turn.get("tool_calls"):
            waiting = [f"call_{len(made)}_{number}" for number in range(len(calls))]
            turn["tool_calls"] = [
                {"id": name, "type": "function", "function": {**call["function"], "arguments": _text(call)}}
                for name, call in zip(waiting, calls, strict=True)
            ]
        if turn["role"] == "tool":
            turn["tool_call_id"] = waiting.pop(0)
        made.append(turn)
    return made


def as_written(message: dict[str, Any]) -> str:
    """Return the text that a message was parsed from."""
    thought = message.get("reasoning_content")
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}'
        "\n</tool_call>"
        for call in message.get("tool_calls") or []
    ]
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return before + "\n".join([*filter(None, [message.get("content")]), *calls])


def _text(call: dict[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)
