"""Embeddings of the real SGLang on a CPU equal those of the same weights run by Hugging Face, alone and in batches."""

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from messages import codec, procfs
from messages.bus import Bus, ServiceError
from messages.client import Client
from messages.config import Nats
from messages.embed import unpack_floats
from messages.gate import Gate
from messages.lifecycle import Control, Exit
from messages.work import Encode
from tests.harness import ROOT, Cast, Desk, Prefork
from tests.serving import serving

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(180)]

SLOT = "embed-encoder-0"
MODEL = ROOT / "models" / "tiny"
HIDDEN = 128


def inputs() -> list[list[int]]:
    """Inputs of 1 to 300 tokens, some of which begin alike, and one that SGLang computes in several chunks."""
    chance = random.Random(3)
    shared = [chance.randrange(10, 500) for _ in range(200)]
    made = [[chance.randrange(10, 500) for _ in range(length)] for length in (1, 2, 7, 16, 17, 64, 300)]
    made += [shared[:length] + [chance.randrange(10, 500)] for length in (15, 16, 100, 199)]
    return [*made, shared, [chance.randrange(10, 500) for _ in range(3_000)]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """What transformers says."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "inputs.json").write_text(json.dumps(inputs()))
    out = folder / "vectors.json"
    command = [sys.executable, "-m", "tests.embeddings.reference", str(MODEL), str(folder / "inputs.json"), str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stderr
    vectors: list[list[float]] = json.loads(out.read_text())
    return vectors


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, parent: Prefork) -> Iterator[tuple[Cast, int]]:
    """One encoder with SGLang, and its pid."""
    model = {"name": "embed", "path": str(MODEL), "device": "cpu", "context_length": 4_096}
    model |= {"cast": {"processor": {"http": {"port": 0}}, "encoder": {}}}
    with serving(tmp_path_factory.mktemp("encoder"), {"models": [model]}, [SLOT], parent) as (cast, pids):
        yield cast, pids[SLOT]


async def encoded(desk: Desk, batch: list[list[int]], name: str, dimensions: int = 0) -> list["array[float]"]:
    """Have one part encoded; return its vectors."""
    asked = Encode(
        request=name,
        attempt=1,
        out=desk.name,
        prompt=b"".join(codec.pack_tokens(tokens) for tokens in batch),
        lengths=[len(tokens) for tokens in batch],
        ttl=60,
        dimensions=dimensions,
    )
    await desk.ask(SLOT, asked)
    finish = await desk.finished(name, 1, seconds=60)
    assert (finish.reason, finish.prompt_tokens) == ("encoded", sum(map(len, batch))), finish
    numbers = unpack_floats(codec.pack_tokens(desk.tokens[f"{name}:1"]))
    size = dimensions or HIDDEN
    assert len(numbers) == size * len(batch)
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def cosine(one: "array[float]", other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    norms = sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5
    return float(dot / norms)


async def test_vectors_equal_the_models_own(engine: tuple[Cast, int], expected: list[list[float]]) -> None:
    cast, pid = engine
    bus = await Bus.connect(Nats(url=cast.url), name="desk", wait=5)
    try:
        registered = (await cast.until_ready(bus, SLOT, seconds=120))[SLOT]
        assert (registered.dimensions, registered.role, registered.engine) == (HIDDEN, "encoder", "sglang")
        desk = Desk(bus, cast.subjects, "embed-processor-0-g1")
        await desk.open()
        alone = [(await encoded(desk, [tokens], f"alone/{at}"))[0] for at, tokens in enumerate(inputs())]
        together = await encoded(desk, inputs(), "together")
        many = await asyncio.gather(*(encoded(desk, inputs()[:8], f"many/{number}") for number in range(4)))
        for vectors in (alone, together, *many):
            assert min(map(cosine, vectors, expected)) >= 0.9999
            assert all(abs(sum(x * x for x in vector) - 1) < 1e-4 for vector in vectors)
        short = await encoded(desk, inputs()[:3], "short", dimensions=16)
        for vector, whole in zip(short, expected, strict=False):
            assert cosine(vector, whole[:16]) >= 0.9999
            assert abs(sum(x * x for x in vector) - 1) < 1e-4
        for wrong, tokens, says in (
            ("too long", [7] * 4_096, "context"),
            ("outside", [512], "vocabulary"),
            ("nothing", [], "empty"),
        ):
            with pytest.raises(ServiceError, match=says):
                await encoded(desk, [[5], tokens], wrong)
        await _aborted_it_stops(desk)
        await _equal_through_a_processor(cast, bus, expected)
        await _dies_with_its_scheduler(cast, pid)
    finally:
        await bus.close()


async def _aborted_it_stops(desk: Desk) -> None:
    """What nobody wants any more ends at once, and leaves nothing behind."""
    long = [[7 + number] * 3_000 for number in range(32)]
    asked = Encode(
        request="dropped/0",
        attempt=1,
        out=desk.name,
        prompt=b"".join(map(codec.pack_tokens, long)),
        lengths=[3_000] * 32,
        ttl=60,
    )
    await desk.ask(SLOT, asked)
    told = codec.to_json(Control(request="dropped/0", attempt=1))
    await desk.bus.request(desk.subjects.control(SLOT, "abort"), told, timeout=5)
    assert (await desk.finished("dropped/0", 1, seconds=5)).reason == "abort"
    assert len(await encoded(desk, [[5, 6]], "after it")) == 1


async def _equal_through_a_processor(cast: Cast, bus: Bus, expected: list[list[float]]) -> None:
    """All the way: our client over NATS, and openai's over HTTP in both forms."""
    gates = await bus.bucket(cast.subjects.gate_bucket)
    await gates.put("embed", codec.to_json(Gate(model="embed", alias="embed", open=True, epoch=1, since=0.0)))
    await asyncio.to_thread(cast.start, "embed-processor-0")
    door = (await cast.until_ready(bus, "embed-processor-0", seconds=30))["embed-processor-0"].http
    async with Client(cast.url) as client:
        answer = await client.embed("embed", inputs())
    assert min(map(cosine, answer.vectors, expected)) >= 0.9999
    assert answer.usage.prompt_tokens == sum(map(len, inputs()))
    async with openai.AsyncOpenAI(base_url=f"{door}/v1", api_key="-", max_retries=0) as asked:
        for form in ("float", "base64"):
            told = await asked.embeddings.create(model="embed", input=inputs(), encoding_format=form)
            found = [
                array("f", entry.embedding)
                if isinstance(entry.embedding, list)
                else unpack_floats(base64.b64decode(entry.embedding))
                for entry in told.data
            ]
            assert len(found) == len(expected)
            assert min(map(cosine, found, expected)) >= 0.9999


async def _dies_with_its_scheduler(cast: Cast, pid: int) -> None:
    children = await asyncio.to_thread(procfs.descendants, pid)
    os.kill(children[0], signal.SIGKILL)
    note = Path(cast.home(SLOT)) / "exit.json"
    async with asyncio.timeout(10):
        while not note.exists():
            await asyncio.sleep(0.01)
    assert cast.exit_note(SLOT).code == Exit.ENGINE_DIED
