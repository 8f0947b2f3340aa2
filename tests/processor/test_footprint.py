"""What a processor does not need: torch, transformers, SGLang; and what it takes of memory and time."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.processor.tokenizer import Tokenizer
from tests.conftest import NatsServer
from tests.harness import ROOT
from tests.processor.stage import TINY

MEGABYTES = 120
SIZE = 150_000


def test_importing_it_loads_no_engine() -> None:
    unwanted = {"torch", "transformers", "sglang", "numpy", "pydantic", "huggingface_hub", "zmq"}
    code = f"import sys, actors.processor.processor\nprint(*sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.nats
def test_a_processor_at_work_stays_small(nats_server: NatsServer) -> None:
    code = f"""
import asyncio, msgspec
from messages import procfs
from tests.processor.stage import raised

async def main():
    async with raised({nats_server.url!r}) as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode", capacity=64)
        talks = [await stage.complete("some words of a prompt " * 20, max_tokens=200) for _ in range(50)]
        jobs = [await decode.got() for _ in talks]
        for job in jobs:
            await decode.emit(job, [7] * 200, "length")
        for talk in talks:
            await talk.last()
    print(procfs.rss_bytes())

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEGABYTES * 1_000_000


@pytest.mark.timeout(60)
def test_a_vocabulary_of_150_000_is_no_reason_to_be_large(tmp_path: Path) -> None:
    written = json.loads((Path(TINY) / "tokenizer.json").read_bytes())
    vocabulary: dict[str, int] = written["model"]["vocab"]
    pieces = list(vocabulary)[:450]
    merges = written["model"]["merges"] = []
    for one, other in itertools.product(pieces, pieces):
        if one + other not in vocabulary and len(vocabulary) < SIZE:
            vocabulary[one + other] = len(vocabulary)
            merges.append([one, other])
    for at, token in enumerate(written["added_tokens"]):
        token["id"] = SIZE + at
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    code = f"""
import actors.processor.processor
from actors.processor.tokenizer import Tokenizer
from messages import procfs
assert Tokenizer({str(tmp_path)!r}).size == {SIZE} + 12
print(procfs.rss_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=45)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEGABYTES * 1_000_000


def test_detokenising_costs_little_a_token() -> None:
    """About 0.3 µs here, one token at a time; ten times that is still less than what was aimed at for all of it."""
    tokenizer = Tokenizer(TINY)
    ids = tokenizer.encode("The quick brown fox, \u20ac 5 and \u4e16\u754c. " * 200, special=False)
    best = float("inf")
    for _ in range(5):
        stream = tokenizer.pieces.stream()
        began = time.perf_counter()
        for at in ids:
            stream.push([at])
        best = min(best, (time.perf_counter() - began) / len(ids))
    assert best < 3e-6
