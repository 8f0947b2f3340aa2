"""Actors that another manager starts: the supervisor counts and asks them, and nobody's death costs a request."""

import asyncio
import os
import shutil
import signal
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.lifecycle import Control, Exit, Registration, State
from messages.subjects import Subjects
from messages.submit import Delta
from messages.supervise import SlotStatus, Status
from tests.cluster.manager import Manager
from tests.cluster.stage import loaded
from tests.conftest import NatsServer
from tests.supervisor.cluster import Cluster, answer_of, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

PROMPTS = ["one", "two words", "a third prompt", "and, at last, a fourth one that is longer than the others"]
SLOTS = ["demo-prefill-0", "demo-prefill-1", "demo-decode-0", "demo-decode-1", "demo-processor-0", "demo-processor-1"]


def configuration(url: str) -> dict[str, Any]:
    """Two of each role, all of them external; NATS is somebody else's, too."""
    made = simulated(
        processor={"count": 2, "http": {"port": 0}, "drain_deadline": 5.0},
        prefill={"count": 2, "drain_deadline": 5.0},
        decode={"count": 2, "drain_deadline": 5.0},
    )
    made["nats"] = {"url": url}
    made["models"][0]["spawn"] = "external"
    return made


class Stage:
    """A supervisor and a manager side by side, on one NATS."""

    def __init__(self, folder: Path, url: str) -> None:
        self.cluster = Cluster(folder, configuration(url))
        self.manager = Manager(folder / "hosts", self.cluster.config, SLOTS)

    def slot(self, name: str) -> SlotStatus:
        return self.cluster.slot(name)

    async def until(self, pattern: str, *, after: int = 0, seconds: float = 30.0) -> int:
        return await to_thread(self.cluster.log.until, pattern, seconds, after=after)

    @property
    def said(self) -> int:
        return len(self.cluster.log.lines)


@pytest.fixture
def stage(tmp_path: Path, nats_server: NatsServer) -> Iterator[Stage]:
    made = Stage(tmp_path, nats_server.url)
    made.cluster.up(ready=False)
    made.manager.start()
    try:
        made.cluster.log.until("Ctrl-C drains", 40)
        yield made
    finally:
        made.manager.stop()
        made.cluster.close()


@pytest.mark.drill
async def test_what_dies_and_what_is_drained_is_its_managers_to_start_and_no_request_is_lost(stage: Stage) -> None:
    async with loaded(stage.cluster, PROMPTS, tokens=120, http=0) as load:
        after = stage.said
        await load.until_streaming()
        await to_thread(stage.manager.kill, "demo-decode-0")
        await stage.until("demo-decode-0#1 is gone: .*; its manager starts it", after=after)
        await stage.until("gate of demo open, degraded: missing demo-decode-0", after=after)
        await stage.until("demo-decode-0#2 ready", after=after)
        await stage.until("gate of demo whole again", after=after)
        await load.until_answered(4)

        after = stage.said
        await load.until_streaming()
        done = await to_thread(stage.cluster.command, "restart", "demo-prefill-1", "--wait", "20")
        assert done.returncode == 0, done.stderr
        assert "drains and exits; its manager is to start it again (external)" in done.stdout
        await stage.until("demo-prefill-1#2 ready", after=after)
        assert (await to_thread(stage.manager.until_exits, "demo-prefill-1", 1)) == [Exit.OK]

        await load.until_streaming()
        before = await to_thread(stage.cluster.status)
        await to_thread(stage.cluster.log.kill)
        await load.until_answered(4)
        await to_thread(stage.cluster.up, ready=False)
        for slot in SLOTS:
            await stage.until(f"{slot}#. ready", seconds=10)
        await load.until_answered(4)
        status = await to_thread(stage.cluster.status)
        assert status.gates == before.gates, "it stood open, and nothing has changed"
    assert {slot.spawn for slot in status.slots} == {"external"}
    found = {slot.slot: slot for slot in status.slots}
    assert found["demo-decode-0"].generation == 2
    assert found["demo-decode-0"].pid == stage.manager.pid("demo-decode-0")
    assert all(slot.live and slot.state == "ready" and slot.host for slot in status.slots)
    assert [slot for slot, exits in stage.manager.exits.items() if exits] == ["demo-prefill-1", "demo-decode-0"]
    assert any(record.attempts > 1 for record in load.records), "no stream was hit"


@pytest.mark.drill
async def test_all_of_a_role_close_the_gate_until_one_is_back(stage: Stage) -> None:
    stage.manager.pause = 6.0
    after = stage.said
    for slot in ("demo-decode-0", "demo-decode-1"):
        await to_thread(stage.manager.kill, slot)
    await stage.until("gate of demo closed: missing decode", after=after)
    for slot in ("demo-decode-0", "demo-decode-1"):
        await stage.until(f"{slot}#1 is gone: no heartbeat for .* and nobody listens in its place", after=after)
    await stage.until(r"gate of demo open", after=after)
    done = await to_thread(stage.cluster.command, "submit", "Hello!", "--max-tokens", "8", "--no-stream", "--json")
    assert len(answer_of(done)["token_ids"]) == 8


@pytest.mark.drill
async def test_one_that_hangs_leaves_the_registry_and_comes_back_by_itself(stage: Stage) -> None:
    async with loaded(stage.cluster, PROMPTS, tokens=120, http=0) as load:
        await load.until_streaming()
        after = stage.said
        await to_thread(stage.manager.kill, "demo-decode-1", signal.SIGSTOP)
        await stage.until("demo-decode-1#1 is gone: no heartbeat for .* and no answer", after=after)
        await load.until_answered(4)
        os.kill(stage.manager.pid("demo-decode-1"), signal.SIGCONT)
        await stage.until("demo-decode-1#1 ready", after=after)
        await stage.until("gate of demo whole again", after=after)
    assert not stage.manager.exits["demo-decode-1"], "its own life went on"


@pytest.mark.drill
async def test_a_stuck_engine_is_told_to_exit(stage: Stage) -> None:
    """Its actor lives and beats, and the engine takes no step, as when SGLang's scheduler hangs."""
    record = await to_thread(stage.cluster.state.cluster)
    assert record is not None
    bus = await Bus.connect(record.nats, name="test", wait=5)
    async with Client(record.nats) as troupe:
        asked = asyncio.create_task(_tokens(troupe, 600))
        async with asyncio.timeout(10):
            while not (busy := [slot for slot in await to_thread(_decoding, stage.cluster) if slot.in_flight]):
                pass
        [stuck] = busy
        fault = codec.to_json(Control(fault="hang", seconds=60))
        await bus.request(Subjects().control(stuck.slot, "fault"), fault, timeout=2)
        await bus.close()
        await stage.until(f"{stuck.slot}#1 is told to exit: stalled")
        await stage.until(f"{stuck.slot}#2 ready")
        assert await asked == 600, "the stream went on elsewhere"
    assert await to_thread(stage.manager.until_exits, stuck.slot, 1) == [Exit.ABORTED]
    assert "told to exit: stalled" in stage.manager.log(stuck.slot).read_text()


async def _tokens(troupe: Client, count: int) -> int:
    """Have so many tokens generated; return how many came."""
    asked = troupe.generate("demo", [1, 2, 3], max_tokens=count, ignore_eos=True)
    return sum([len(answer.token_ids) async for answer in asked if isinstance(answer, Delta)])


def _decoding(cluster: Cluster) -> list[SlotStatus]:
    return [slot for slot in cluster.status().slots if slot.role == "decode"]


def test_the_end_of_the_supervisor_ends_nothing_but_itself(stage: Stage) -> None:
    pids = [stage.manager.pid(slot) for slot in SLOTS]
    stage.cluster.log.process.send_signal(signal.SIGTERM)
    assert stage.cluster.log.ended() == 0
    assert "everything has ended, but what other managers have started" in stage.cluster.log.text
    asked = stage.cluster.command("submit", "Hello!", "--max-tokens", "8", "--no-stream", "--json")
    assert len(answer_of(asked)["token_ids"]) == 8
    status = stage.cluster.status()
    assert status.gates[0].open
    assert status.supervisor is None
    assert {slot.slot: slot.state for slot in status.slots} == dict.fromkeys(SLOTS, "ready")
    assert [stage.manager.pid(slot) for slot in SLOTS] == pids
    text = stage.cluster.command("status").stdout
    assert text.count("external, ") == len(SLOTS)
    drained = stage.cluster.command("drain", "demo-decode-0")
    assert "demo-decode-0#1 drains; its manager says whether it comes back" in drained.stdout
    assert stage.manager.until_exits("demo-decode-0", 1) == [Exit.OK]


def test_a_second_process_of_a_slot_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    second = stage.manager.launch("demo-decode-0")
    assert second.wait(20) == Exit.REGISTER
    said = stage.manager.log("demo-decode-0").read_text()
    assert (
        f"demo-decode-0#1 lives on {os.uname().nodename} (pid {stage.manager.pid('demo-decode-0')}) and answers" in said
    )
    assert stage.slot("demo-decode-0").generation == 1
    assert stage.slot("demo-decode-0").state == "ready"


async def test_a_registration_of_another_host_is_taken_out_and_no_process_here_that_has_its_pid(
    tmp_path: Path, nats_server: NatsServer, bus: Bus
) -> None:
    cluster = await to_thread(Cluster, tmp_path, configuration(nats_server.url))
    innocent = await asyncio.create_subprocess_exec("sleep", "60")
    registry = await bus.bucket(Subjects().registry_bucket)
    dead = Registration(
        slot="demo-decode-0",
        role="decode",
        generation=3,
        state=State.READY,
        host="elsewhere",
        pid=innocent.pid,
        model="demo",
        alias="demo",
    )
    key = Subjects().registration_key("decode", "demo-decode-0")
    await registry.put(key, codec.to_json(dead))
    try:
        await to_thread(cluster.up, ready=False)
        async with asyncio.timeout(20):
            while await registry.get(key) is not None:
                await asyncio.sleep(0.05)
        assert innocent.returncode is None
        assert (await to_thread(cluster.slot, "demo-decode-0")).state == "waiting"
    finally:
        innocent.kill()
        await innocent.wait()
        await to_thread(cluster.close)


async def test_nats_that_lost_its_store_has_everybody_registered_again(stage: Stage, nats_server: NatsServer) -> None:
    after = stage.said
    await to_thread(nats_server.stop)
    await to_thread(shutil.rmtree, nats_server._folder)
    await to_thread(nats_server.start)
    await stage.until("connected to NATS again|gate of demo closed", after=after)

    async with asyncio.timeout(30):
        while not _whole(await to_thread(stage.cluster.status)):
            pass
    assert not any(stage.manager.exits.values())


def _whole(status: Status) -> bool:
    return bool(status.gates) and status.gates[0].open and all(slot.live for slot in status.slots)
