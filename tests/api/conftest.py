"""OpenAI's own client before two casts: the simulated engine's, and the real SGLang's prefill and decode."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.gate import Gate
from tests.harness import ROOT, Cast, Prefork
from tests.serving import serving

SLOTS = ("demo-prefill-0", "demo-decode-0", "demo-processor-0")
TINY = str(ROOT / "models" / "tiny")
READY_SECONDS = 60.0


class Served(NamedTuple):
    """A cast that serves the model `demo`: its engine's name, its NATS and where it answers HTTP."""

    engine: str
    nats: str
    url: str
    cast: Cast


def model(engine: str) -> dict[str, Any]:
    """The tiny model, prefill and decode apart."""
    made = {"name": "demo", "engine": engine, "path": TINY, "tokenizer": TINY, "device": "cpu", "context_length": 1024}
    made |= {"simulated": {"ttft": 0.0, "itl": 0.001}, "tool_call_parser": "qwen25"}
    return made | {"cast": {"processor": {"http": {"port": 0}}, "prefill": {}, "decode": {}}}


async def opened(cast: Cast) -> str:
    """Wait until all are ready, open the gate as a supervisor would, and return the processor's HTTP address."""
    bus = await Bus.connect(Nats(url=cast.url), name="test", wait=5)
    try:
        found = await cast.until_ready(bus, *SLOTS, seconds=READY_SECONDS)
        gates = await bus.bucket(cast.subjects.gate_bucket)
        await gates.put("demo", codec.to_json(Gate(model="demo", alias="demo", open=True, epoch=1, since=0.0)))
    finally:
        await bus.close()
    address = found["demo-processor-0"].http
    assert address is not None
    return address.rstrip("/")


def _served(engine: str, folder: Path, parent: Prefork | None) -> Iterator[Served]:
    with serving(folder, {"models": [model(engine)]}, SLOTS, parent) as (cast, _):
        yield Served(engine, cast.url, asyncio.run(opened(cast)), cast)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The simulated engine's cast."""
    yield from _served("simulated", tmp_path_factory.mktemp("api-simulated"), None)


@pytest.fixture(scope="session")
def sglang(tmp_path_factory: pytest.TempPathFactory, parent: Prefork) -> Iterator[Served]:
    """The real SGLang's cast."""
    yield from _served("sglang", tmp_path_factory.mktemp("api-sglang"), parent)


@pytest.fixture(params=["simulated", pytest.param("sglang", marks=pytest.mark.sglang)])
def served(request: pytest.FixtureRequest) -> Served:
    """One cast and the other: what is asked for in the same way is answered in the same way."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def plain(served: Served) -> Iterator[openai.OpenAI]:
    """The client that waits."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0, timeout=15) as client:
        yield client


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client that awaits."""
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0, timeout=15) as client:
        yield client


@pytest.fixture
async def real(sglang: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client that awaits, before the real SGLang."""
    async with openai.AsyncOpenAI(base_url=f"{sglang.url}/v1", api_key="-", max_retries=0, timeout=15) as client:
        yield client
