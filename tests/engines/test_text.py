"""`text: true` on the real SGLang, whole and apart: greedy chats are answered as with our own tokenizer."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from messages.supervise import Status
from tests.harness import ROOT
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(240)]

MODEL = str(ROOT / "models" / "troupe-small-chat")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello! Who are you?"}]},
    {"messages": [{"role": "user", "content": "What is 17 plus 25?"}], "reasoning_effort": "low"},
    {"messages": [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Say né in two ways 🎭"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}]},
    {
        "messages": [{"role": "user", "content": "What is 3 times 4?"}],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {
        "messages": [
            {"role": "user", "content": "Add 2 and 3."},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "5"},
        ],
        "tools": [TOOL],
    },
    {"messages": [{"role": "user", "content": "Count to ten."}], "stop": ["5", "five"]},
    {"messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 5},
    {"messages": [{"role": "user", "content": "Count to ten."}], "skip_special_tokens": False},
    {"messages": [{"role": "user", "content": "A long one. " * 60}]},
]
Served = tuple[Cluster, Status]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One model three times: with our tokenizer, and with SGLang's by one engine and by prefill and decode."""
    model = {"path": MODEL, "device": "cpu", "load_deadline": 180, "context_length": 1024}
    model |= {"reasoning_parser": "qwen3", "tool_call_parser": "qwen25", "probe": {"idle": 1.0}}
    door = {"processor": {"http": {"port": 0}}}
    made = Cluster(
        tmp_path_factory.mktemp("text"),
        {
            "models": [
                model | {"name": "ours", "cast": door | {"decode": {}}},
                model | {"name": "whole", "text": True, "cast": door | {"decode": {}}},
                model | {"name": "apart", "text": True, "cast": door | {"prefill": {}, "decode": {}}},
            ]
        },
    )
    try:
        made.up(ready=False)
        assert made.command("status", "--wait-ready", "180", seconds=200).returncode == 0, made.log.text
        yield made, made.status()
    finally:
        made.close()


async def ask(status: Status, model: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    url = status.http[model].rstrip("/") + "/v1/chat/completions"
    given = {"model": model, "temperature": 0, "max_tokens": 48, "seed": 1} | body
    async with aiohttp.ClientSession() as session, session.post(url, json=given) as answer:
        return answer.status, await answer.json()


def told(answer: dict[str, Any]) -> Any:
    """What must be the same: all but ids, names and times, and what the prefix cache had."""
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            call["id"] = ""
    counts = answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
    return [(choice["message"], choice["finish_reason"]) for choice in answer["choices"]], counts


@pytest.mark.parametrize("model", ["whole", "apart"])
async def test_chats_are_answered_as_with_our_own_tokenizer(cluster: Served, model: str) -> None:
    _, status = cluster
    for chat in CHATS:
        code, expected = await ask(status, "ours", chat)
        assert code == 200, expected
        code, answer = await ask(status, model, chat)
        assert code == 200, answer
        assert told(answer) == told(expected), chat
    together = await asyncio.gather(*(ask(status, model, chat) for chat in CHATS))
    assert {code for code, _ in together} == {200}


@pytest.mark.parametrize("model", ["whole", "apart"])
async def test_a_stream_brings_the_same_text_and_usage(cluster: Served, model: str) -> None:
    _, status = cluster
    _, whole = await ask(status, model, CHATS[2])
    body = CHATS[2] | {"model": model, "temperature": 0, "max_tokens": 48, "stream": True}
    text, usage = "", None
    url = status.http[model].rstrip("/") + "/v1/chat/completions"
    options = {"stream_options": {"include_usage": True}}
    async with aiohttp.ClientSession() as session, session.post(url, json=body | options) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                usage = chunk.get("usage") or usage
    assert usage is not None
    assert (text, usage["prompt_tokens"]) == (
        whole["choices"][0]["message"]["content"] or "",
        whole["usage"]["prompt_tokens"],
    )


@pytest.mark.parametrize("model", ["whole", "apart"])
async def test_what_the_engine_cannot_take_is_a_400_in_its_words(cluster: Served, model: str) -> None:
    _, status = cluster
    code, answer = await ask(status, model, {"messages": [{"role": "user", "content": "word " * 3000}]})
    assert code == 400, answer
    assert "prompt tokens leave no room in a context of 1024" in answer["error"]["message"]
    code, answer = await ask(status, model, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1024})
    assert (code, answer["choices"][0]["finish_reason"] in ("stop", "length")) == (200, True)


async def test_engines_are_probed_with_a_text(cluster: Served) -> None:
    made, _ = cluster
    async with asyncio.timeout(60):
        while True:
            status = await asyncio.to_thread(made.status)
            slots = [slot for slot in status.slots if slot.role in ("prefill", "decode") and slot.model != "ours"]
            if len(slots) == 3 and all(slot.probe is not None and slot.probe.result == "ok" for slot in slots):
                return
            await asyncio.sleep(0.2)
