"""The publisher as a process, with simulated engines: what reaches NATS and Prometheus, through restarts of all."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from actors.publisher import door
from messages import procfs
from messages.bus import Bus, NobodyThereError
from messages.config import Metrics
from messages.lifecycle import Exit, Registration
from messages.metrics import HOST
from messages.telemetry import Again, Stored
from tests.conftest import NatsServer, eventually
from tests.harness import ROOT, Cast, Desk
from tests.publisher.conftest import ENGINE, PUBLISHER, configuration, generate
from tests.publisher.listeners import Receiver, reference

pytestmark = [pytest.mark.nats, pytest.mark.timeout(30)]

OTHER = "demo-decode-1"


async def started(cast: Cast, bus: Bus, *slots: str, generation: int = 1) -> dict[str, Registration]:
    """Start slots and wait until they are ready."""
    for slot in slots:
        cast.start(slot, generation)
    return await cast.until_ready(bus, *slots, generation=generation)


async def answered(cast: Cast, bus: Bus, *slots: str) -> None:
    """Wait until every slot answers, as after an absence of NATS."""
    async with asyncio.timeout(10):
        for slot in slots:
            while True:
                with contextlib.suppress(NobodyThereError):
                    await bus.request(cast.subjects.control(slot, "ping"), timeout=5)
                    break
                await asyncio.sleep(0.02)


async def page(registration: Registration, accept: str = "") -> str:
    """Scrape a publisher."""
    asked = Request(f"{registration.http}/metrics", headers={"Accept": accept})
    return await asyncio.to_thread(lambda: urlopen(asked, timeout=5).read().decode())


async def value(registration: Registration, name: str, **labels: str) -> float | None:
    """One figure of a scrape, or None if it is not there."""
    for family in parse(await page(registration)):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def kill(cast: Cast, slot: str) -> None:
    """Kill a slot's process and wait until it is gone."""
    process = cast.processes[slot]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


async def test_every_event_reaches_nats_before_and_after_its_start_and_through_restarts_of_both(
    cast: Cast, bus: Bus, receiver: Receiver, desk: Desk
) -> None:
    ready = await started(cast, bus, ENGINE, OTHER)
    await generate(desk, ENGINE, list(range(10, 90)))
    await started(cast, bus, PUBLISHER)
    for begin in range(20):
        await generate(desk, ENGINE, list(range(20 + begin, 120 + begin)))
        await generate(desk, OTHER, list(range(30 + begin, 90 + begin)))
    expected = {slot: await reference(ready[slot]).events() for slot in (ENGINE, OTHER)}
    assert sum(len(events) for events in expected[ENGINE]) > 100
    await eventually(lambda: receiver.events(ENGINE, 1) == expected[ENGINE])
    await eventually(lambda: receiver.events(OTHER, 1) == expected[OTHER])

    kill(cast, PUBLISHER)
    await generate(desk, ENGINE, list(range(200, 300)))
    await started(cast, bus, PUBLISHER, generation=2)
    expected[ENGINE] = await reference(ready[ENGINE]).events()
    await eventually(lambda: receiver.events(ENGINE, 1) == expected[ENGINE])
    # A publisher that begins anew says all again.
    await eventually(lambda: receiver.repeated >= 40)

    kill(cast, ENGINE)
    again = await started(cast, bus, ENGINE, generation=2)
    await generate(desk, ENGINE, list(range(10, 90)))
    await eventually(lambda: len(receiver.events(ENGINE, 2)) > 0)
    assert receiver.events(ENGINE, 2) == await reference(again[ENGINE]).events()
    assert receiver.events(ENGINE, 1) == expected[ENGINE]
    assert receiver.holes == 0
    assert not any(batch.lost for batches in receiver.batches.values() for batch in batches)


async def test_while_nats_is_away_nothing_is_lost(
    cast: Cast, bus: Bus, receiver: Receiver, desk: Desk, nats_server: NatsServer
) -> None:
    ready = await started(cast, bus, ENGINE, PUBLISHER)
    await generate(desk, ENGINE, list(range(10, 90)))
    await eventually(lambda: len(receiver.events(ENGINE, 1)) > 0)
    nats_server.stop()
    await eventually(lambda: not bus.connected)
    nats_server.start()
    await eventually(lambda: bus.connected)
    await answered(cast, bus, ENGINE, PUBLISHER)
    for begin in range(5):
        await generate(desk, ENGINE, list(range(20 + begin, 120 + begin)))
    expected = await reference(ready[ENGINE]).events()

    async def whole() -> bool:
        if receiver.holes:
            came, _ = await receiver.ask_again(ENGINE, Again(generation=1))
            receiver.batches.clear()
            receiver.holes = 0
            for batch in came:
                receiver.take(batch)
        return receiver.events(ENGINE, 1) == expected

    async with asyncio.timeout(5):
        while not await whole():
            await asyncio.sleep(0.05)


async def test_who_has_missed_some_asks_again(cast: Cast, bus: Bus, receiver: Receiver, desk: Desk) -> None:
    await started(cast, bus, ENGINE, PUBLISHER)
    for begin in range(6):
        await generate(desk, ENGINE, list(range(20 + begin, 120 + begin)))
    await eventually(lambda: len(receiver.events(ENGINE, 1)) == 6)
    before = receiver.repeated
    came, code = await receiver.ask_again(ENGINE, Again(generation=1, start=2))
    assert (code, [batch.seq for batch in came]) == ("", [2, 3, 4, 5])
    assert [batch.events for batch in came] == receiver.events(ENGINE, 1)[2:]
    assert all(batch.replayed for batch in came)
    assert receiver.repeated == before, "the others hear nothing of it"
    assert await receiver.ask_again(ENGINE, Again(generation=3)) == ([], "409")
    assert await receiver.ask_again(ENGINE, Again(generation=1, dp_rank=4)) == ([], "404")


async def test_load_figures_come_when_they_change_and_fall_to_nothing(
    cast: Cast, bus: Bus, receiver: Receiver, desk: Desk
) -> None:
    text = cast.config.read_text().replace("itl: 0.0", "itl: 0.2")
    cast.config.write_text(text)
    await started(cast, bus, ENGINE, PUBLISHER)
    await eventually(lambda: receiver.loads.get(ENGINE))
    await generate(desk, ENGINE, list(range(10, 90)), tokens=6)
    await eventually(lambda: receiver.loads[ENGINE][-1].idle and len(receiver.loads[ENGINE]) >= 3)
    busy = max(receiver.loads[ENGINE], key=lambda load: load.ranks[0].kv_used)
    assert (busy.ranks[0].running, busy.ranks[0].kv_used, busy.ranks[0].kv_total) == (1, 5, 65_536)
    last = receiver.loads[ENGINE][-1].ranks[0]
    assert (last.running, last.queued, last.kv_used) == (0, 0, 0)
    assert PUBLISHER not in receiver.loads


async def test_prometheus_is_told_of_every_slot_of_the_host(cast: Cast, bus: Bus, desk: Desk) -> None:
    probed = configuration()
    probed["models"][0]["probe"] = {"idle": 0.5}
    cast.config.write_bytes(msgspec.yaml.encode(probed))
    ready = await started(cast, bus, ENGINE, PUBLISHER)
    for begin in range(3):
        await generate(desk, ENGINE, list(range(20 + begin, 120 + begin)))
    at = ready[PUBLISHER]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", at.http or "")

    async def seen() -> bool:
        steps = await value(at, "troupe_slot_steps_total", slot=ENGINE)
        return steps not in (None, 0.0) and await value(at, "troupe_slot_probe_age_seconds", slot=ENGINE) is not None

    async with asyncio.timeout(5):
        while not await seen():
            await asyncio.sleep(0.05)
    families = {family.name: family for family in parse(await page(at))}
    table = {line.name: line for line in HOST}
    assert {name.removesuffix("_total") for name in families} == set(table)
    for family in families.values():
        line = table[family.name.removesuffix("_total")]
        assert family.documentation == line.says
        assert all(set(sample.labels) == set(line.labels) for sample in family.samples)
    states = {
        sample.labels["state"]: sample.value
        for sample in families["troupe_slot_state"].samples
        if sample.labels["slot"] == ENGINE
    }
    assert states == {state: float(state == "ready") for state in states}
    assert await value(at, "troupe_kv_event_batches_total", slot=ENGINE, dp_rank="0") == 3
    assert await value(at, "troupe_slot_kv_total_blocks", slot=ENGINE, model="demo", role="decode") == 65_536
    strict = parse_openmetrics(await page(at, "application/openmetrics-text; version=1.0.0"))  # type: ignore[no-untyped-call]
    assert {family.name for family in strict} == set(table)

    kill(cast, ENGINE)
    await started(cast, bus, ENGINE, generation=2)
    async with asyncio.timeout(5):
        while await value(at, "troupe_slot_generation", slot=ENGINE) != 2:
            await asyncio.sleep(0.05)
    assert await value(at, "troupe_slot_restarts_total", slot=ENGINE) == 1


async def test_events_can_stay_on_zmq_and_it_is_said_where(tmp_path: Path, nats_server: NatsServer, bus: Bus) -> None:
    cast = Cast(tmp_path, nats_server.url, configuration(events="zmq"))
    try:
        receiver = Receiver(bus, cast.subjects)
        await receiver.open()
        desk = Desk(bus, cast.subjects)
        await desk.open()
        ready = await started(cast, bus, ENGINE, PUBLISHER)
        at = ready[ENGINE]
        assert at.events == "zmq"
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", at.kv_sources[0].endpoint)
        assert f"KV events stay on ZMQ: {at.kv_sources[0].endpoint}" in cast.log(ENGINE)
        await generate(desk, ENGINE, list(range(10, 90)))
        events = await reference(at).events()
        assert isinstance(events[0][0], Stored)
        await eventually(lambda: receiver.loads.get(ENGINE))
        assert not receiver.batches
    finally:
        cast.stop()


async def test_a_configured_port_that_is_taken_is_an_error_that_names_it(
    tmp_path: Path, nats_server: NatsServer, bus: Bus
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cast = Cast(tmp_path, nats_server.url, configuration(http={"port": port}))
        try:
            process = cast.start(PUBLISHER)
            await eventually(lambda: process.poll() is not None, 10)
            assert process.returncode == Exit.CONFIG
            assert f"{port}" in cast.exit_note(PUBLISHER).reason
        finally:
            cast.stop()


async def test_the_usual_port_taken_a_free_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(door, "PORT", taken.getsockname()[1])
        opened = door.MetricsDoor(Metrics(), lambda: [], lambda: {})
        await opened.open()
        assert opened.address is not None
        assert not opened.address.endswith(f":{door.PORT}")
        with pytest.raises(HTTPError, match="404"):
            await asyncio.to_thread(urlopen, f"{opened.address}/", timeout=5)
        await opened.close()


async def test_it_is_small_and_quiet_and_knows_no_engine(cast: Cast, bus: Bus) -> None:
    await started(cast, bus, ENGINE, OTHER, PUBLISHER)
    pid = cast.processes[PUBLISHER].pid
    loaded = await asyncio.to_thread(Path(f"/proc/{pid}/maps").read_text)
    assert "zmq" in loaded
    assert "torch" not in loaded
    assert await asyncio.to_thread(procfs.rss_bytes, pid) < 60 << 20
    before = await asyncio.to_thread(procfs.process, pid)
    await asyncio.sleep(5)
    after = await asyncio.to_thread(procfs.process, pid)
    assert before is not None and after is not None
    assert after.cpu_seconds - before.cpu_seconds <= 0.05, "under 1 % of a core with nothing to do"


def test_it_loads_no_engine() -> None:
    code = "import sys, actors.publisher.publisher as p; print(*{'torch', 'sglang', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


async def test_drained_it_leaves_in_good_order(cast: Cast, bus: Bus) -> None:
    await started(cast, bus, ENGINE, PUBLISHER)
    process = cast.processes[PUBLISHER]
    process.terminate()
    await eventually(lambda: process.poll() is not None, 10)
    assert process.returncode == Exit.OK
    assert cast.exit_note(PUBLISHER).reason == "drained"
    registry = await bus.bucket(cast.subjects.registry_bucket)
    assert await registry.get(cast.subjects.registration_key("publisher", PUBLISHER)) is None
