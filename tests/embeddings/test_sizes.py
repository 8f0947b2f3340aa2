"""Vectors and batches far larger than one message, with real actors and a NATS server that takes a megabyte."""

from pathlib import Path
from typing import Any

import pytest

from actors.encoder import FRAME_BYTES
from actors.engines.simulated_model import unit_vector
from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.embed import FLOAT_BYTES
from messages.frames import Frame
from messages.gate import Gate
from messages.work import Encode
from tests.conftest import NatsServer
from tests.harness import ROOT, Cast, Desk

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

LONG = 100_000
MEGABYTE = 1_048_576


def configuration() -> dict[str, Any]:
    tiny = str(ROOT / "models" / "tiny")
    model = {"name": "demo", "engine": "simulated", "tokenizer": tiny, "context_length": 1_024}
    model |= {"simulated": {"dimensions": LONG, "ttft": 0.0}}
    return {"models": [model | {"cast": {"processor": {"http": {"enabled": False}}, "encoder": {}}}]}


async def test_no_message_is_larger_than_nats_takes(tmp_path: Path, nats_server: NatsServer, bus: Bus) -> None:
    assert bus.max_payload == MEGABYTE
    assert LONG * FLOAT_BYTES > FRAME_BYTES
    cast = Cast(tmp_path, nats_server.url, configuration())
    try:
        gates = await bus.bucket(cast.subjects.gate_bucket)
        await gates.put("demo", codec.to_json(Gate(model="demo", alias="demo", open=True, epoch=1, since=0.0)))
        cast.start("demo-encoder-0")
        cast.start("demo-processor-0")
        await cast.until_ready(bus, "demo-encoder-0", "demo-processor-0")
        ids = [[number, number + 1] for number in range(6)]
        async with Client(nats_server.url) as client:
            answer = await client.embed("demo", ids)
        for tokens, vector in zip(ids, answer.vectors, strict=True):
            wanted = unit_vector(codec.pack_tokens(tokens), LONG)
            assert len(vector) == LONG
            assert max(abs(a - b) for a, b in zip(vector, wanted, strict=True)) < 1e-6
        desk = Desk(bus, cast.subjects, "test-processor-0-g1")
        await desk.open()
        part = Encode(
            request="a/0", attempt=1, out=desk.name, prompt=codec.pack_tokens([1, 2, 3]), lengths=[2, 1], ttl=9
        )
        await desk.ask("demo-encoder-0", part)
        await desk.finished("a/0", 1)
        assert len(desk.tokens["a/0:1"]) == 2 * LONG
        sizes = [len(_bytes(frame)) for frame in desk.frames]
        assert len(sizes) >= 4
        assert max(sizes) <= FRAME_BYTES
    finally:
        cast.stop()


def _bytes(frame: Frame) -> bytes:
    return b"".join(item.tokens for item in frame.items)
