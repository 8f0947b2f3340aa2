"""Health probes of the real SGLang: prefill and decode each answer alone, and one that is stopped does not."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from messages import codec, procfs
from messages.bus import Bus
from messages.lifecycle import Heartbeat
from tests.conftest import NatsServer
from tests.engines.conftest import models
from tests.harness import Cast, Prefork

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(180)]

SLOTS = ("demo-prefill-0", "demo-decode-0", "whole-decode-0")


class Beats:
    """The newest heartbeat of each slot."""

    def __init__(self) -> None:
        self.newest: dict[str, Heartbeat] = {}
        self._changed = asyncio.Event()

    async def take(self, msg: Msg) -> None:
        beat = codec.from_json(msg.data, Heartbeat)
        self.newest[beat.slot] = beat
        self._changed.set()

    async def until(self, result: str, *slots: str, seconds: float = 20.0) -> None:
        """Wait until the newest probe of all these slots went so."""
        async with asyncio.timeout(seconds):
            while {self._result(slot) for slot in slots} != {result}:
                await self._changed.wait()
                self._changed.clear()

    def _result(self, slot: str) -> str:
        beat = self.newest.get(slot)
        return beat.probe.result if beat is not None and beat.probe is not None else ""


def titled(pid: int, title: str) -> int:
    """The process below this one whose title ends so."""
    for child in procfs.descendants(pid):
        if Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode().endswith(title):
            return child
    raise AssertionError(f"no process {title} below {pid}")


@pytest.fixture
async def actors(tmp_path: Path, nats_server: NatsServer, parent: Prefork, bus: Bus) -> AsyncIterator[dict[str, int]]:
    """The pids of prefill and decode apart and of a whole engine, probed after half a second without work."""
    async with started(tmp_path, nats_server, parent, bus, SLOTS) as pids:
        yield pids


@contextlib.asynccontextmanager
async def started(
    folder: Path, server: NatsServer, parent: Prefork, bus: Bus, slots: tuple[str, ...], **fields: Any
) -> AsyncIterator[dict[str, int]]:
    """Fork these slots; `fields` are more of each model's."""
    probed = [model | {"probe": {"idle": 0.5, "deadline": 3.0}} | fields for model in models("sglang")]
    cast = Cast(folder, server.url, {"models": probed})
    pids = {slot: parent.spawn(cast, slot) for slot in slots}
    try:
        await cast.until_ready(bus, *slots, seconds=120)
        yield pids
    finally:
        for pid in pids.values():
            os.killpg(pid, signal.SIGKILL)


async def test_each_side_answers_alone_and_one_that_is_stopped_is_found_silent(
    actors: dict[str, int], bus: Bus
) -> None:
    beats = Beats()
    await bus.subscribe("troupe.v1.hb.*.*", beats.take)
    await beats.until("ok", *SLOTS)
    steps = {slot: beats.newest[slot].steps for slot in SLOTS}
    async with asyncio.timeout(20):
        # They go on, and each is a step: the engine itself has answered.
        while any(beats.newest[slot].steps < steps[slot] + 2 for slot in SLOTS):
            await asyncio.sleep(0.05)
    assert all(beats.newest[slot].in_flight == 0 for slot in SLOTS)
    children = await asyncio.to_thread(procfs.descendants, actors["demo-decode-0"])
    for child in children:
        os.kill(child, signal.SIGSTOP)
    await beats.until("silent", "demo-decode-0")
    probe = beats.newest["demo-decode-0"].probe
    assert probe is not None
    assert "no answer from DP rank 0 within 3" in probe.message
    await beats.until("ok", "demo-prefill-0", "whole-decode-0")
    for child in children:
        os.kill(child, signal.SIGCONT)
    await beats.until("ok", "demo-decode-0")


@pytest.mark.long
async def test_every_dp_rank_is_probed_on_either_side(
    tmp_path: Path, nats_server: NatsServer, parent: Prefork, bus: Bus
) -> None:
    beats = Beats()
    await bus.subscribe("troupe.v1.hb.*.*", beats.take)
    slots = SLOTS[:2]
    # SGLang wants to be told which cores two ranks on one NUMA node are to have.
    two = {"args": {"dp_size": 2}, "env": {"SGLANG_CPU_OMP_THREADS_BIND": "0|0"}}
    async with started(tmp_path, nats_server, parent, bus, slots, **two) as pids:
        await beats.until("ok", *slots)
        for pid in pids.values():
            os.kill(await asyncio.to_thread(titled, pid, "scheduler_DP1"), signal.SIGSTOP)
        await beats.until("silent", *slots)
        for slot in slots:
            probe = beats.newest[slot].probe
            assert probe is not None
            assert "DP rank 1" in probe.message
