"""A real cluster under a real supervisor: it comes up, things die, it is ended; seen as its user sees it."""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.client import Client, RequestError
from messages.lifecycle import Control, Event, Heartbeat
from messages.subjects import Subjects
from messages.submit import Delta, Done
from tests.supervisor.cluster import ROOT, Cluster, answer_of, has, on_path, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

SLOTS = [f"demo-{role}-{index}" for role in ("prefill", "decode", "processor") for index in (0, 1)]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of configs/simulated.yaml, on a free port; the tests on it leave it well."""
    text = (ROOT / "configs" / "simulated.yaml").read_text()
    assert "port: 8000" in text
    text = text.replace("port: 8000", "port: 0").replace("../models", str(ROOT / "models"))
    cluster = Cluster(tmp_path_factory.mktemp("six"), text)
    cluster.up()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of this test's own, one slot a role, not yet started."""
    made = Cluster(tmp_path, simulated())
    yield made
    made.close()


@contextlib.asynccontextmanager
async def on_bus(cluster: Cluster) -> AsyncIterator[Bus]:
    """A connection to the cluster's NATS."""
    record = await asyncio.to_thread(cluster.state.cluster)
    assert record is not None
    bus = await Bus.connect(record.nats, name="test", wait=5)
    try:
        yield bus
    finally:
        await bus.close()


def ask(cluster: Cluster) -> list[int]:
    """Ask the model something and return its tokens."""
    done = cluster.command("submit", "Hello!", "--max-tokens", "8", "--temperature", "0", "--no-stream", "--json")
    tokens: list[int] = answer_of(done)["token_ids"]
    assert len(tokens) == 8
    return tokens


def until_listed(url: str, seconds: float = 2.0) -> str:
    """Read a list of models until there are some: the processors hear of an open gate when everybody else does."""
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
        if '"data":[]' not in text or time.monotonic() > deadline:
            return text


def test_up_says_how_to_talk_to_the_model_and_each_of_it_works(six: Cluster) -> None:
    lines = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in six.log.lines if line.startswith("  ")}
    assert "troupe.v1.submit.demo.chat" in lines["NATS"]
    assert '"demo"' in until_listed(f"{lines['HTTP']}/models")
    submit = subprocess.run(shlex.split(lines["or"]), env=on_path(), capture_output=True, timeout=15)
    assert submit.returncode == 0, submit.stderr
    assert len(submit.stdout) > 1
    if has("curl"):
        curl = subprocess.run([*shlex.split(lines["try"]), "-s"], capture_output=True, text=True, timeout=15)
        assert '"finish_reason"' in curl.stdout


def test_status_shows_addresses_gate_and_slots(six: Cluster) -> None:
    found = six.status()
    assert found.supervisor == six.log.process.pid
    assert found.nats_pid == six.nats().pid
    assert [(gate.model, gate.open, gate.degraded) for gate in found.gates] == [("demo", True, False)]
    assert {slot.slot: slot.state for slot in found.slots if slot.role != "publisher"} == dict.fromkeys(SLOTS, "ready")
    assert all(slot.live and slot.pid == six.record(slot.slot).pid for slot in found.slots)
    text = six.command("status").stdout
    for word in [*SLOTS, "gate    demo: open", found.nats[0], found.http["demo"], "LAST REASON"]:
        assert word in text


def test_the_state_folder_is_for_its_owner_alone(six: Cluster) -> None:
    assert six.state.root.stat().st_mode & 0o077 == 0
    assert six.state.cluster_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("slot", ["demo-processor-0", "demo-prefill-0", "demo-decode-0"])
def test_a_killed_actor_comes_back_and_nobody_else_is_touched(six: Cluster, slot: str) -> None:
    before, line = six.records(), len(six.log.lines)
    generation = six.kill(slot)
    died = six.log.until(f"{slot}#{generation} died: killed by SIGKILL", after=line)
    six.log.until(f"gate of demo open, degraded: missing {slot}", after=line)
    six.log.until(f"{slot}#{generation + 1} ready after", after=died)
    six.log.until("gate of demo whole again", after=died)
    after = six.records()
    assert after.pop(slot)[1] == generation + 1
    assert after == {name: record for name, record in before.items() if name != slot}
    assert six.slot(slot).reason == "killed by SIGKILL"
    ask(six)


def test_a_stopped_actor_is_found_by_its_lease_and_its_process(six: Cluster) -> None:
    line = len(six.log.lines)
    generation = six.kill("demo-decode-1", signal.SIGSTOP)
    six.log.until(rf"demo-decode-1#{generation} is killed: no heartbeat for .* and its process is stopped", after=line)
    six.log.until(f"demo-decode-1#{generation + 1} ready after", after=line)


async def test_a_hanging_engine_is_found_by_its_steps(six: Cluster) -> None:
    """Its heartbeats go on: only the work that does not shows it."""
    line = len(six.log.lines)
    owner: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def see(msg: Msg) -> None:
        beat = codec.from_json(msg.data, Heartbeat)
        if "decode" in beat.slot and beat.steps and beat.in_flight and not owner.done():
            owner.set_result(beat.slot)

    async with on_bus(six) as bus, Client(bus.urls) as troupe:
        await bus.subscribe(Subjects().heartbeats, see)
        stream = aiter(troupe.chat("demo", "Hello!", max_tokens=500, timeout=30))
        await anext(stream)
        async with asyncio.timeout(5):
            slot = await owner
        fault = codec.to_json(Control(fault="hang", seconds=60.0))
        await bus.request(Subjects().control(slot, "fault"), fault, timeout=2)
        found = await asyncio.to_thread(
            six.log.until, f"{slot}#.* is killed: stalled: 1 requests in flight", after=line
        )
        with contextlib.suppress(RequestError):
            async for _ in stream:
                pass
    await asyncio.to_thread(six.log.until, f"{slot}#.* ready after", after=found)


def test_the_nats_server_comes_back_on_its_port_and_no_actor_minds(six: Cluster) -> None:
    before, server, line = six.records(), six.nats(), len(six.log.lines)
    os.kill(server.pid, signal.SIGKILL)
    six.log.until("NATS server is back", after=line)
    six.log.until("connected to NATS again", after=line)
    assert six.nats().port == server.port
    ask(six)
    assert six.records() == before
    assert {slot.state for slot in six.status().slots} == {"ready"}


def test_a_drained_slot_stays_stopped_and_a_restart_brings_it_back(six: Cluster) -> None:
    slot, generation = "demo-prefill-1", six.record("demo-prefill-1").generation
    drained = six.command("drain", slot, "--wait", "10")
    assert (drained.returncode, drained.stdout.splitlines()[-1]) == (
        0,
        f"{slot}#{generation} stopped: drained (exit code 0)",
    )
    found = six.slot(slot)
    assert (found.state, found.planned, found.pid) == ("stopped", True, None)
    assert six.command("drain", slot).returncode == 7
    ask(six)
    restarted = six.command("restart", slot, "--wait", "10")
    assert (restarted.returncode, restarted.stdout.splitlines()[-1]) == (0, f"{slot}#{generation + 1} ready")


def test_a_planned_restart_is_no_crash(six: Cluster) -> None:
    line = len(six.log.lines)
    assert six.command("restart", "demo-processor-1", "--wait", "10").returncode == 0
    found = six.slot("demo-processor-1")
    assert (found.reason, found.planned) == ("restart asked for", True)
    assert "died" not in "\n".join(six.log.lines[line:])


@pytest.mark.parametrize("command", ["drain", "restart", "logs"])
def test_an_unknown_slot_is_answered_with_those_there_are(six: Cluster, command: str) -> None:
    done = six.command(command, "demo-decode-7")
    assert done.returncode == 2
    assert "demo-decode-7" in done.stderr
    assert "demo-decode-0, demo-decode-1" in done.stderr


def test_logs_show_the_end_of_a_slots_log_and_of_its_earlier_lives(six: Cluster) -> None:
    line = len(six.log.lines)
    generation = six.kill("demo-decode-1")
    six.log.until(f"demo-decode-1#{generation + 1} ready", after=line)
    now = six.command("logs", "demo-decode-1", "-n", "1").stdout.splitlines()
    assert len(now) == 1
    assert f"demo-decode-1#{generation + 1} ready after" in now[0]
    assert f"demo-decode-1#{generation} ready" in six.command("logs", "demo-decode-1", "-p", "1").stdout
    assert "Server is ready" in six.command("logs", "nats").stdout
    assert "gate of demo open" in six.command("logs", "supervisor", "-n", "500").stdout


def test_a_second_supervisor_is_refused(six: Cluster) -> None:
    second = six.up(ready=False)
    six.ups.remove(second)
    assert second.ended() == 6
    assert f"a supervisor (pid {six.log.process.pid}) is at work on" in second.text


async def test_what_happened_is_in_the_event_stream(six: Cluster) -> None:
    heard: list[Event] = []
    enough = asyncio.Event()

    async def hear(msg: Msg) -> None:
        heard.append(codec.from_json(msg.data, Event))
        if {("restart", "ready"), ("gate", "whole"), ("actor", "ready")} <= {(e.topic, e.what) for e in heard}:
            enough.set()

    async with on_bus(six) as bus:
        await bus.subscribe(Subjects().events, hear)
        await bus.flush()
        generation = await asyncio.to_thread(six.kill, "demo-decode-0")
        async with asyncio.timeout(10):
            await enough.wait()
    died = next(event for event in heard if event.topic == "restart" and event.what == "died")
    assert (died.of, died.generation, died.reason, died.planned) == (
        "demo-decode-0",
        generation,
        "killed by SIGKILL",
        False,
    )


def test_a_killed_supervisor_takes_nobody_with_it_and_the_next_one_adopts_all(six: Cluster) -> None:
    before = six.records()
    six.log.kill()
    ask(six)
    found = six.status()
    assert found.supervisor is None
    assert {slot.state for slot in found.slots} == {"ready"}
    assert "Nothing that dies is started again until `troupe up` has been called." in six.command("status").stdout
    no_one = six.command("restart", "demo-decode-0")
    assert (no_one.returncode, "no supervisor lives" in no_one.stderr) == (4, True)
    server = six.nats()
    six.up(ready=False)
    for slot, (pid, generation) in before.items():
        six.log.until(rf"{slot}#{generation} runs on \(pid {pid}\), adopted")
    six.log.until("demo-processor-1#.* ready")
    assert six.command("status", "--wait-ready", "10").returncode == 0
    assert six.records() == before
    assert six.nats().pid == server.pid
    assert "gate of demo closed" not in six.log.text
    generation = six.kill("demo-decode-0")
    six.log.until(f"demo-decode-0#{generation} died: killed, cause unknown")
    six.log.until(f"demo-decode-0#{generation + 1} ready after")


def test_what_died_while_no_supervisor_lived_is_started_by_the_next_one(six: Cluster) -> None:
    six.log.kill()
    generation = six.kill("demo-prefill-0")
    six.up(ready=False)
    six.log.until(f"demo-prefill-0#{generation + 1} ready after")
    assert six.command("status", "--wait-ready", "10").returncode == 0


def test_ctrl_c_drains_and_leaves_nothing_behind(cluster: Cluster) -> None:
    cluster.up()
    record = cluster.state.cluster()
    assert record is not None

    async def ask_and_interrupt() -> list[Delta | Done]:
        answers: list[Delta | Done] = []
        async with Client(record.nats) as troupe:
            async for answer in troupe.chat("demo", "Hello!", max_tokens=200):
                answers.append(answer)
                if len(answers) == 1:
                    cluster.log.process.send_signal(signal.SIGINT)
        return answers

    answers = asyncio.run(ask_and_interrupt())
    assert isinstance(answers[-1], Done)
    assert answers[-1].usage.completion_tokens == 200
    assert cluster.log.ended() == 0
    stops = [
        cluster.log.until(rf"demo-{role}-0#\d+ stopped: drained", 1) for role in ("processor", "prefill", "decode")
    ]
    assert stops == sorted(stops)
    assert cluster.living() == []
    assert cluster.command("status").returncode == 4


def test_ctrl_c_twice_aborts_what_is_left_and_says_so_to_its_client(cluster: Cluster) -> None:
    cluster.up()
    record = cluster.state.cluster()
    assert record is not None

    async def ask_and_interrupt() -> None:
        async with Client(record.nats) as troupe:
            seen = False
            async for _ in troupe.chat("demo", "Hello!", max_tokens=3_000):
                if not seen:
                    seen = True
                    cluster.log.process.send_signal(signal.SIGINT)
                    await asyncio.to_thread(cluster.log.until, "demo-processor-0#1 drains")
                    cluster.log.process.send_signal(signal.SIGINT)

    with pytest.raises(RequestError, match="503|499"):
        asyncio.run(ask_and_interrupt())
    assert cluster.log.ended() == 0
    assert "aborting what is left" in cluster.log.text
    assert cluster.living() == []


def test_down_ends_everything_without_a_supervisor_too(cluster: Cluster) -> None:
    cluster.up()
    cluster.log.kill()
    assert len(cluster.living()) == 4
    done = cluster.command("down")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "everything has ended")
    assert cluster.living() == []
    again = cluster.command("down")
    assert (again.returncode, again.stdout) == (0, f"nothing runs in {cluster.state.root}\n")


def test_down_has_a_living_supervisor_drain(cluster: Cluster) -> None:
    cluster.up()
    assert cluster.command("down").returncode == 0
    assert cluster.log.ended() == 0
    assert "demo-decode-0#1 stopped: drained" in cluster.log.text
    assert cluster.living() == []


def test_a_budget_that_is_gone_fails_the_slot_and_no_one_else(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, simulated(decode={"restart": {"intensity": 1, "backoff": 0.05}}))
    with contextlib.closing(cluster):
        cluster.up()
        cluster.kill("demo-decode-0")
        cluster.log.until("demo-decode-0#2 ready")
        cluster.log.until("gate of demo open$", after=cluster.log.until("demo-decode-0#2 started"))
        cluster.kill("demo-decode-0")
        failed = cluster.log.until(r"demo-decode-0#2 failed: .* \(2 crashes within 60 s, 1 are allowed\)")
        cluster.log.until("gate of demo closed: missing decode", after=failed - 2)
        found = cluster.command("status")
        assert found.returncode == 5
        assert "demo-decode-0" in found.stdout
        assert cluster.slot("demo-decode-0").state == "failed"
        assert cluster.slot("demo-prefill-0").state == "ready"
        assert cluster.command("restart", "demo-decode-0", "--wait", "10").returncode == 0
        assert cluster.command("status", "--wait-ready", "10").returncode == 0


def test_a_slot_that_cannot_load_in_time_is_given_up_while_the_rest_stays(tmp_path: Path) -> None:
    slow = simulated(decode={"load_deadline": 0.5, "restart": {"crashes_before_ready": 1, "backoff": 0.05}})
    slow["models"][0]["simulated"] = {"load": 30}
    slow["models"][0]["cast"].pop("prefill")
    cluster = Cluster(tmp_path, slow)
    with contextlib.closing(cluster):
        cluster.up(ready=False)
        line = cluster.log.until("demo-decode-0#2 failed:", 15)
        assert "crashed 2 times before it was ready" in cluster.log.lines[line]
        assert "loading took longer than its deadline" in cluster.log.lines[line]
        assert cluster.log.process.poll() is None
        waited = cluster.command("status", "--wait-ready", "0.3")
        assert waited.returncode == 5
        assert "demo-decode-0 (failed" in waited.stdout


def test_a_configuration_changed_to_the_worse_is_not_retried(cluster: Cluster) -> None:
    """The supervisor has read it while it was well; an actor that starts later reads it as it is then."""
    cluster.up()
    text = cluster.config.read_text()
    cluster.config.write_text(text.replace("tokenizer", "tokeniser"))
    cluster.kill("demo-decode-0")
    line = cluster.log.until("demo-decode-0#2 failed:")
    assert "tokeniser: unknown; did you mean 'tokenizer'?" in cluster.log.lines[line]
    assert "starting again cannot mend this" in cluster.log.lines[line]
    cluster.config.write_text(text)
    assert cluster.command("restart", "demo-decode-0", "--wait", "10").returncode == 0
