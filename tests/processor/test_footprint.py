"""What a processor does not need: torch, transformers, SGLang; and what it takes of memory and time."""

import subprocess
import sys
import time

import pytest

from actors.processor.tokenizer import Tokenizer
from tests.conftest import NatsServer
from tests.harness import ROOT
from tests.processor.stage import TINY

MEGABYTES = 120


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
