"""The processor as a process among real actors with the simulated engine: life, death and the stream that goes on."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.gate import Gate
from messages.lifecycle import Exit
from messages.submit import Delta, Done
from tests.conftest import NatsServer
from tests.harness import ROOT, Cast
from tests.processor.stage import SECONDS

pytestmark = [pytest.mark.nats, pytest.mark.timeout(40)]

TINY = str(ROOT / "models" / "tiny")


def configuration(decode: int = 2, prefill: int = 0, **model: Any) -> dict[str, Any]:
    cast: dict[str, Any] = {
        "processor": {"count": 2, "http": {"port": 0}, "drain_deadline": 5.0},
        "decode": {"count": decode},
    }
    if prefill:
        cast["prefill"] = {"count": prefill}
    plain = {"name": "demo", "engine": "simulated", "path": TINY, "cast": cast}
    return {"models": [plain | {"simulated": {"ttft": 0.0, "itl": 0.005}} | model]}


@pytest.fixture
def casts(nats_server: NatsServer, tmp_path: Path) -> Iterator[list[Cast]]:
    made: list[Cast] = []
    yield made
    for cast in made:
        cast.stop()


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    async with Client(nats_server.url) as client:
        yield client


async def raise_cast(
    casts: list[Cast], nats_server: NatsServer, folder: Path, bus: Bus, slots: list[str], **fields: Any
) -> Cast:
    """Start processes by hand, wait until they are ready, and open the gate."""
    cast = Cast(folder, nats_server.url, configuration(**fields))
    casts.append(cast)
    for slot in slots:
        cast.start(slot)
    await cast.until_ready(bus, *slots)
    gates = await bus.bucket(cast.subjects.gate_bucket)
    await gates.put("demo", codec.to_json(Gate(model="demo", alias="demo", open=True, epoch=1, since=0.0)))
    return cast


async def whole(client: Client, prompt: list[int], **fields: Any) -> tuple[list[int], Done]:
    """Ask to the end."""
    ids: list[int] = []
    async for answer in client.generate("demo", prompt, temperature=0, **fields):
        if isinstance(answer, Done):
            return ids, answer
        ids += answer.token_ids
    raise AssertionError("no last word")


async def bury(bus: Bus, cast: Cast, slot: str) -> None:
    """Do what a supervisor does when it sees a process end: begin the next generation."""
    registry = await bus.bucket(cast.subjects.registry_bucket)
    await registry.put(cast.subjects.generation_key(slot), b"2")


async def owner_of(client: Client, prompt: list[int], busy: asyncio.Event, ids: list[int], **fields: Any) -> Done:
    """Stream, setting `busy` once some tokens are there."""
    async for answer in client.generate("demo", prompt, temperature=0, **fields):
        if isinstance(answer, Done):
            return answer
        assert isinstance(answer, Delta)
        ids += answer.token_ids
        if len(ids) >= 20:
            busy.set()
    raise AssertionError("no last word")


@pytest.mark.parametrize("role", ["decode", "prefill", "processor"])
async def test_killing_any_one_of_two_is_a_pause_in_the_streams(
    role: str, casts: list[Cast], nats_server: NatsServer, tmp_path: Path, bus: Bus, client: Client
) -> None:
    slots = [f"demo-{each}-{at}" for each in ("prefill", "decode", "processor") for at in (0, 1)]
    cast = await raise_cast(casts, nats_server, tmp_path, bus, slots, prefill=2)
    prompts = [[at + 1, 2, 3] for at in range(8)]
    alone = [await whole(client, prompt, max_tokens=200) for prompt in prompts[:2]]
    streams: list[list[int]] = [[] for _ in prompts]
    begun = [asyncio.Event() for _ in prompts]
    under_way = [
        asyncio.ensure_future(owner_of(client, prompt, busy, ids, max_tokens=200))
        for prompt, busy, ids in zip(prompts, begun, streams, strict=True)
    ]
    await asyncio.wait_for(asyncio.gather(*(busy.wait() for busy in begun)), SECONDS)
    victim = f"demo-{role}-0"
    cast.processes[victim].kill()
    cast.processes[victim].wait(SECONDS)
    await bury(bus, cast, victim)
    done = await asyncio.wait_for(asyncio.gather(*under_way), 15)
    assert [len(ids) for ids in streams] == [200] * 8
    assert streams[:2] == [ids for ids, _ in alone]
    assert all(word.finish_reason == "length" and word.usage.completion_tokens == 200 for word in done)


async def test_killing_prefill_under_a_load_of_new_requests_fails_none(
    casts: list[Cast], nats_server: NatsServer, tmp_path: Path, bus: Bus, client: Client
) -> None:
    slots = ["demo-prefill-0", "demo-prefill-1", "demo-decode-0", "demo-processor-0"]
    cast = await raise_cast(casts, nats_server, tmp_path, bus, slots, prefill=2)
    asked = [asyncio.ensure_future(whole(client, [at + 1], max_tokens=5)) for at in range(100)]
    await asked[0]
    cast.processes["demo-prefill-0"].kill()
    cast.processes["demo-prefill-0"].wait(SECONDS)
    asked += [asyncio.ensure_future(whole(client, [at + 1, 2], max_tokens=5)) for at in range(100)]
    await bury(bus, cast, "demo-prefill-0")
    done = await asyncio.wait_for(asyncio.gather(*asked), 15)
    assert [len(ids) for ids, _ in done] == [5] * 200


async def test_restarting_nats_under_load_fails_none(
    casts: list[Cast], nats_server: NatsServer, tmp_path: Path, bus: Bus, client: Client
) -> None:
    slots = ["demo-decode-0", "demo-decode-1", "demo-processor-0", "demo-processor-1"]
    await raise_cast(casts, nats_server, tmp_path, bus, slots)
    streams: list[list[int]] = [[] for _ in range(8)]
    begun = [asyncio.Event() for _ in streams]
    under_way = [
        asyncio.ensure_future(owner_of(client, [at + 1], busy, ids, max_tokens=300, timeout=20))
        for at, (busy, ids) in enumerate(zip(begun, streams, strict=True))
    ]
    await asyncio.wait_for(asyncio.gather(*(busy.wait() for busy in begun)), SECONDS)
    nats_server.stop()
    nats_server.start()
    await asyncio.wait_for(asyncio.gather(*under_way), 25)
    assert [len(ids) for ids in streams] == [300] * 8


async def test_sigterm_finishes_what_is_there(
    casts: list[Cast], nats_server: NatsServer, tmp_path: Path, bus: Bus, client: Client
) -> None:
    cast = await raise_cast(casts, nats_server, tmp_path, bus, ["demo-decode-0", "demo-processor-0"])
    busy, ids = asyncio.Event(), list[int]()
    stream = asyncio.ensure_future(owner_of(client, [1], busy, ids, max_tokens=100))
    await asyncio.wait_for(busy.wait(), SECONDS)
    process = cast.processes["demo-processor-0"]
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(stream, SECONDS)
    assert len(ids) == 100
    assert process.wait(SECONDS) == Exit.OK
    assert cast.exit_note("demo-processor-0").reason == "drained"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"path": "nowhere/", "tokenizer": "/nowhere/at/all"}, "/nowhere/at/all: no such file or folder"),
        ({"reasoning_parser": "r1"}, "reasoning_parser: there is no 'r1'; there is gpt-oss, qwen3"),
        ({"chat_template": "./none.jinja"}, "chat_template: "),
    ],
)
async def test_what_no_restart_can_mend_says_so(
    casts: list[Cast], nats_server: NatsServer, tmp_path: Path, model: dict[str, Any], said: str
) -> None:
    cast = Cast(tmp_path, nats_server.url, configuration(**model))
    casts.append(cast)
    process = cast.start("demo-processor-0")
    assert await asyncio.to_thread(process.wait, 10) == Exit.CONFIG
    assert said in cast.exit_note("demo-processor-0").reason
