"""Greedy tokens through all of Troupe equal Hugging Face's: whole and apart, NATS and HTTP, 1 and 16 at once."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

from messages.client import Client
from messages.submit import Delta, Done
from messages.supervise import Status
from tests.engines.reference import TOKENS, prompts
from tests.harness import ROOT
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(180)]

COUNT = 33
MODEL = ROOT / "models" / "tiny"
Answer = Callable[[list[int]], Awaitable[Any]]
Served = tuple[Cluster, Status]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What transformers answers."""
    out = tmp_path_factory.mktemp("reference") / "answers.json"
    command = [sys.executable, "-m", "tests.engines.reference", str(MODEL), str(out), str(COUNT)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr
    answers: list[list[int]] = json.loads(out.read_text())
    return answers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same model twice: one engine, and prefill and decode apart; SGLang says what its batches are."""
    model = {"path": str(MODEL), "device": "cpu", "context_length": 1024, "load_deadline": 120}
    model |= {"args": {"log_level": "info", "decode_log_interval": 1}}
    door = {"processor": {"http": {"port": 0}}}
    apart = model | {"name": "apart", "cast": door | {"prefill": {"capacity": 32}, "decode": {"capacity": 32}}}
    whole = model | {"name": "whole", "cast": door | {"decode": {"capacity": 32}}}
    made = Cluster(tmp_path_factory.mktemp("equality"), {"models": [whole, apart]})
    try:
        made.up(ready=False)
        assert made.command("status", "--wait-ready", "120", seconds=140).returncode == 0, made.log.text
        yield made, made.status()
    finally:
        made.close()


async def over_nats(client: Client, model: str, prompt: list[int]) -> list[int]:
    tokens: list[int] = []
    async for event in client.generate(model, prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True):
        if isinstance(event, Delta):
            assert event.position == len(tokens)
            tokens += event.token_ids
        if isinstance(event, Done):
            assert event.finish_reason == "length"
            assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (len(prompt), TOKENS)
    return tokens


async def over_http(session: aiohttp.ClientSession, url: str, model: str, prompt: list[int]) -> str:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    text = ""
    async with session.post(f"{url}/v1/completions", json=body | {"stream": True}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


async def in_turns(answer: Answer, at_once: int) -> list[Any]:
    """Ask for every prompt, so many at once."""
    room = asyncio.Semaphore(at_once)

    async def one(prompt: list[int]) -> Any:
        async with room:
            return await answer(prompt)

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts(COUNT))))


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("model", ["whole", "apart"])
async def test_tokens_over_nats(cluster: Served, expected: list[list[int]], model: str, at_once: int) -> None:
    async with Client(cluster[1].nats) as client:
        assert await in_turns(lambda prompt: over_nats(client, model, prompt), at_once) == expected


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("model", ["whole", "apart"])
async def test_texts_over_http(cluster: Served, expected: list[list[int]], model: str, at_once: int) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    url = cluster[1].http[model].rstrip("/")
    async with aiohttp.ClientSession() as session:
        texts = await in_turns(lambda prompt: over_http(session, url, model, prompt), at_once)
    assert texts == [tokenizer.decode(answer, skip_special_tokens=True) for answer in expected]


async def test_decode_recomputes_no_prompt(cluster: Served) -> None:
    made, status = cluster
    async with Client(status.nats) as client:
        await in_turns(lambda prompt: over_nats(client, "apart", prompt), 8)
    assert "Prefill batch" in (made.state.slot("apart-prefill-0") / "log").read_text()
    decode = (made.state.slot("apart-decode-0") / "log").read_text()
    assert "Decode batch" in decode
    assert "Prefill batch" not in decode, "SGLang writes this line for each prompt it computes"
