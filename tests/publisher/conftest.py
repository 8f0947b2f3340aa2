"""A cast with a publisher, its NATS, and who listens there."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from messages import codec
from messages.bus import Bus
from messages.ids import parse_slot
from messages.work import Decode, Sampling
from tests.conftest import NatsServer
from tests.harness import ROOT, Cast, Desk
from tests.publisher.listeners import Receiver

PUBLISHER = "one-publisher-0"
ENGINE = "demo-decode-0"


def configuration(engine: str = "simulated", **publisher: Any) -> dict[str, Any]:
    """One model with two whole engines, and a publisher on a free port."""
    folder = str(ROOT / "models" / "tiny")
    model = {
        "name": "demo",
        "engine": engine,
        "path": folder,
        "tokenizer": folder,
        "device": "cpu",
        "context_length": 1024,
        "simulated": {"ttft": 0.0, "itl": 0.0},
        "cast": {"processor": {}, "decode": {"count": 2}},
    }
    return {
        "publisher": {"enabled": True, "name": "one", "http": {"port": 0}} | publisher,
        "models": [model],
        "drills": "allowed",
    }


@pytest.fixture
def cast(tmp_path: Path, nats_server: NatsServer) -> Iterator[Cast]:
    """Simulated engines and a publisher, none of them started yet."""
    made = Cast(tmp_path, nats_server.url, configuration())
    yield made
    made.stop()


@pytest.fixture
async def receiver(cast: Cast, bus: Bus) -> AsyncIterator[Receiver]:
    """Listens to KV events and load figures from the beginning."""
    made = Receiver(bus, cast.subjects)
    await made.open()
    yield made


@pytest.fixture
async def desk(cast: Cast, bus: Bus) -> Desk:
    """A processor's place."""
    made = Desk(bus, cast.subjects)
    await made.open()
    return made


async def generate(desk: Desk, slot: str, prompt: list[int], tokens: int = 4) -> None:
    """Have one stream generated to its end."""
    asked = Decode(
        request=str(uuid.uuid4()),
        attempt=0,
        out=desk.name,
        prompt=codec.pack_tokens(prompt),
        sampling=Sampling(max_tokens=tokens, temperature=0, ignore_eos=True),
        ttl=30.0,
    )
    assert parse_slot(slot).role == "decode"
    await desk.ask(slot, asked)
    finish = await desk.finished(asked.request, seconds=30)
    assert finish.reason == "length", finish
