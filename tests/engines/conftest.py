"""Real SGLang actors on a CPU, forked once for all tests of this folder; and simulated ones beside them."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from messages.bus import Bus
from messages.config import Nats
from tests.harness import ROOT, Cast, Desk, Prefork
from tests.serving import serving

SLOTS = ("demo-prefill-0", "demo-decode-0", "whole-decode-0")


def models(engine: str) -> list[dict[str, Any]]:
    """One model served by prefill and decode apart, and the same one served whole."""
    folder = str(ROOT / "models" / "tiny")
    model = {"engine": engine, "path": folder, "tokenizer": folder, "device": "cpu", "context_length": 1024}
    model |= {"simulated": {"ttft": 0.0, "itl": 0.001}}
    apart = {"processor": {}, "prefill": {"capacity": 32}, "decode": {"capacity": 32}}
    whole = {"processor": {}, "decode": {"capacity": 32}}
    return [model | {"name": "demo", "cast": apart}, model | {"name": "whole", "cast": whole}]


def _engines(engine: str, folder: Path, parent: Prefork | None) -> Iterator[Cast]:
    with serving(folder, {"models": models(engine), "drills": "allowed"}, SLOTS, parent) as (cast, _):
        yield cast


@pytest.fixture(scope="session")
def simulated_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    """The three slots with the simulated engine."""
    yield from _engines("simulated", tmp_path_factory.mktemp("simulated"), None)


@pytest.fixture(scope="session")
def sglang_engines(tmp_path_factory: pytest.TempPathFactory, parent: Prefork) -> Iterator[Cast]:
    """The three slots with SGLang, forked from one parent."""
    yield from _engines("sglang", tmp_path_factory.mktemp("sglang"), parent)


@pytest.fixture(params=["simulated", pytest.param("sglang", marks=pytest.mark.sglang)])
def engines(request: pytest.FixtureRequest) -> Cast:
    """The same three slots, with one engine and with the other: nobody can tell them apart."""
    cast: Cast = request.getfixturevalue(f"{request.param}_engines")
    return cast


@pytest.fixture
async def desk(engines: Cast) -> AsyncIterator[Desk]:
    """A processor's place, with every slot ready."""
    bus = await Bus.connect(Nats(url=engines.url), name="desk", wait=5)
    await engines.until_ready(bus, *SLOTS, seconds=60)
    made = Desk(bus, engines.subjects, f"test-processor-0-g{os.urandom(3).hex()}")
    await made.open()
    yield made
    await bus.close()
