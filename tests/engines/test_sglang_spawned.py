"""The other way to start SGLang: spawned plainly, no parent; slower, and otherwise the same."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from messages import procfs
from messages.bus import Bus
from messages.lifecycle import Exit
from messages.work import Decode
from tests.conftest import NatsServer, eventually
from tests.engines.conftest import models
from tests.engines.test_contract import job, whole
from tests.harness import Cast, Desk

pytestmark = [pytest.mark.nats, pytest.mark.sglang, pytest.mark.timeout(180)]


async def test_spawned_plainly_it_serves_and_its_schedulers_death_ends_it_at_once(
    tmp_path: Path, nats_server: NatsServer, bus: Bus
) -> None:
    cast = Cast(tmp_path, nats_server.url, {"models": models("sglang")})
    process = cast.start("whole-decode-0")
    try:
        await cast.until_ready(bus, "whole-decode-0", seconds=150)
        desk = Desk(bus, cast.subjects)
        await desk.open()
        assert len(await whole(desk, [20, 21, 22])) == 16
        asked = job(Decode, desk, [20, 21], 900)
        await desk.ask("whole-decode-0", asked)
        await desk.some(asked.request, 1)
        children = await asyncio.to_thread(procfs.descendants, process.pid)
        os.kill(children[0], signal.SIGKILL)
        await eventually(lambda: process.poll() is not None, 3)
        assert process.returncode == Exit.ENGINE_DIED
        left = await asyncio.to_thread(lambda: [child for child in children if procfs.process(child) is not None])
        assert not left
    finally:
        cast.stop()
