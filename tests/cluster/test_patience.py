"""What only takes long is left alone, also on a machine that is short of CPU: a prefill of 20 seconds."""

import os
import subprocess
import sys
import time
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages.client import Client
from messages.submit import Delta, Done
from tests.cluster.stage import address, running
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.long]

BURNERS = 3
"""Processes that do nothing but compute, for each core."""
PREFILL = 21.0
"""Seconds, fourteen times as long as an engine without steps and CPU time is left alone."""


async def answered(cluster: Cluster, prompt: str) -> tuple[Done, float]:
    """Ask for eight tokens; give the last word, and how many seconds the first token took."""
    began, first = time.monotonic(), 0.0
    asked = {"max_tokens": 8, "temperature": 0, "timeout": 120.0}
    async with Client((await to_thread(address, cluster)).nats) as client:
        async for answer in client.completion("demo", prompt, **asked):
            if isinstance(answer, Done):
                return answer, first
            if isinstance(answer, Delta) and not first:
                first = time.monotonic() - began
    raise AssertionError("no last word")


def left_alone(cluster: Cluster, after: int) -> bool:
    """Whether nobody was suspected, killed or started again since a line of the cluster's log."""
    said = cluster.log.lines[after:] + [
        line
        for path in cluster.state.root.rglob("log")
        for line in path.read_text(errors="replace").splitlines()
        if "may hang" in line
    ]
    return not [
        line for line in said if any(word in line for word in ("stalled", "died", "may hang", "starting again"))
    ]


@pytest.fixture
def busy() -> Iterator[None]:
    """Have every core computed on by others."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(BURNERS * (os.cpu_count() or 1))]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the simulated engine that computes for long at any prompt."""
    text = simulated()
    text["models"][0]["simulated"] = {"ttft": PREFILL, "itl": 0.005}
    yield from running(tmp_path, text, 40)


@pytest.mark.timeout(180)
async def test_a_prefill_of_twenty_seconds_is_left_alone(slow: Cluster, busy: None) -> None:
    after = len(slow.log.lines)
    done, first = await answered(slow, "a long prompt")
    assert (done.attempt, done.usage.completion_tokens) == (1, 8)
    assert first > PREFILL - 1
    assert await to_thread(left_alone, slow, after)
