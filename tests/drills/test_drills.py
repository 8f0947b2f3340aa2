"""Drills as a user plays them: on a cluster of their own, on one that runs; well, missed, refused and interrupted."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from messages import procfs
from messages.config import Nats
from supervisor import state
from supervisor.drills import history
from supervisor.drills.history import Happened, Head, Mark
from supervisor.drills.records import Record
from supervisor.state import ClusterRecord, Folder
from tests.supervisor.cluster import ROOT, TROUPE, Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.timeout(150)]

LOAD = "clients=4,http=2,requests=12,tokens=40,timeout=60"
SIMULATED = str(ROOT / "configs" / "simulated.yaml")
PATIENT = {"failed": 0, "gap": 60, "detect": 60, "recovery": 100, "itl_p99": 60}
"""Objectives that only what is wrong misses, and no busy machine."""


@pytest.fixture
def drills(tmp_path: Path) -> Path:
    """The drills that come with Troupe, with objectives that a busy machine meets as well.

    What a drill asks nothing of (null) is not asked here, either.
    """
    plan = msgspec.yaml.decode((ROOT / "configs" / "drills.yaml").read_bytes())
    for drill in plan["drills"].values():
        asked = drill.get("objectives", {}).items()
        drill["objectives"] = {name: bound for name, bound in asked if bound is None or name in ("failed", "moved")}
    path = tmp_path / "drills.yaml"
    path.write_bytes(msgspec.yaml.encode(plan | {"objectives": PATIENT, "sglang": {}}))
    return path


def command(name: str, drills: Path, *more: str, load: str = LOAD) -> list[str]:
    """The command line of a drill, with its report beside the plan."""
    return [
        *TROUPE,
        "drill",
        name,
        "--load",
        load,
        "--drills",
        str(drills),
        "--report",
        str(drills.parent / "out"),
        *more,
    ]


def play(name: str, drills: Path, *more: str, load: str = LOAD) -> subprocess.CompletedProcess[str]:
    """Play one to its end."""
    asked = command(name, drills, *more, load=load)
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)


def report(drills: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the JSON of the one run that was played."""
    [path] = (drills.parent / "out").glob("*/report.json")
    return path.parent, json.loads(path.read_text())


def nothing_left(folder: str) -> None:
    """See that no process has to do with a folder, and that the folder is gone."""
    assert not Path(folder).exists()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            assert folder not in (path / "cmdline").read_bytes().decode(errors="replace"), path
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_a_kill_is_survived_and_everything_about_it_is_written_down(drills: Path) -> None:
    done = play("kill", drills, "--config", SIMULATED)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, told = report(drills)
    assert (told["result"], told["ledger"]["sent"], told["ledger"]["ok"]) == ("passed", 48, 48)
    assert {verdict["rule"]: verdict["state"] for verdict in told["verdicts"]} == dict.fromkeys(
        ["I1", "I2", "I3", "I4", "I5", "I6", "I8"], "kept"
    ) | {"I7": "skipped"}
    [struck] = told["injections"]
    assert re.fullmatch(r"pid \d+ is gone", struck["proof"])
    lines = history.read(folder / "history.jsonl")
    restarts = [line for line in lines if isinstance(line, Happened) and line.topic == "restart"]
    [ready] = [event for event in restarts if (event.of, event.what) == (struck["slot"], "ready")]
    assert [stage["name"] for stage in told["recovery"]] == [
        name.replace("_", "-") for name, seconds in ready.detail["recovery"].items() if seconds
    ]
    assert told["recovery"][-1]["end"] <= told["recovered"] + 0.1
    assert isinstance(lines[0], Head)
    records = [line for line in lines if isinstance(line, Record) and not line.reference]
    assert {record.client for record in records} == {f"client-{n}-{'http' if n % 2 else 'nats'}" for n in range(4)}
    marks = [line.name for line in lines if isinstance(line, Mark)]
    assert [name for name in marks if name in ("load", "injected", "proven", "recovered", "finished")] == [
        "load",
        "injected",
        "proven",
        "recovered",
        "finished",
    ]
    told_by_events = [line.what for line in lines if isinstance(line, Happened) and line.topic == "drill"]
    assert told_by_events == ["injected", "healed", "recovered"]
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert (folder / "supervisor.log").exists()
    home = re.search(r"cluster of its own in (\S+)", done.stdout)
    assert home is not None
    nothing_left(home[1])


def test_a_fault_that_misses_its_target_fails_loudly(drills: Path) -> None:
    done = play("control", drills, "--config", SIMULATED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MISSED: demo-decode-" in done.stdout
    folder, told = report(drills)
    assert told["result"] == "missed"
    assert told["ledger"]["ok"] == told["ledger"]["sent"] == 48
    assert "as alive as before" in (folder / "report.html").read_text()


def test_what_an_engine_has_not_got_cannot_be_killed_and_that_is_said_at_once(drills: Path) -> None:
    done = play("engine_kill", drills, "--config", SIMULATED)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "the simulated engine has no process of its own" in done.stdout
    assert report(drills)[1]["ledger"]["sent"] == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster that allows drills, with two decode actors."""
    made = Cluster(tmp_path_factory.mktemp("running"), simulated(decode={"count": 2}))
    try:
        made.up()
        yield made
    finally:
        made.close()


def test_a_running_cluster_is_told_what_it_is_about_to_lose_and_survives_it(cluster: Cluster, drills: Path) -> None:
    generation = cluster.record("demo-decode-1").generation
    done = play("kill", drills, "--state", str(cluster.state.root), "--target", "demo-decode-1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"this hurts the running cluster 'troupe' in {cluster.state.root}" in done.stdout
    assert f"hurting: kill demo-decode-1#{generation}" in done.stdout
    assert cluster.record("demo-decode-1").generation == generation + 1
    assert "--target demo-decode-1" in report(drills)[1]["command"]


def test_ctrl_c_heals_what_was_hurt(cluster: Cluster, drills: Path) -> None:
    server = cluster.nats()
    asked = command("bus_pause", drills, "--state", str(cluster.state.root))
    with subprocess.Popen(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as playing:
        assert playing.stdout is not None
        said = []
        for line in playing.stdout:
            said.append(line)
            if "proof: " in line:
                found = procfs.process(server.pid)
                assert found is not None
                assert found.state == "T"
                playing.send_signal(signal.SIGINT)
        code = playing.wait(60)
    assert code == 130, "".join(said)
    assert f"healing: SIGCONT to pid {server.pid}" in "".join(said)
    found = procfs.process(server.pid)
    assert found is not None
    assert found.state != "T"
    assert report(drills)[1]["result"] == "interrupted"
    deadline = time.monotonic() + 30
    while cluster.command("status", "--wait-ready", "20").returncode:
        assert time.monotonic() < deadline


def test_only_its_owner_can_bring_a_running_clusters_supervisor_back(cluster: Cluster, drills: Path) -> None:
    done = play("supervisor_kill", drills, "--state", str(cluster.state.root))
    assert done.returncode == 7, done.stdout + done.stderr
    assert "only the owner of a running cluster can start its next supervisor; use --config" in done.stdout
    assert cluster.log.process.poll() is None


def test_a_cluster_that_does_not_allow_drills_is_left_alone(tmp_path: Path, drills: Path) -> None:
    folder, config = Folder(tmp_path / "state"), tmp_path / "cluster.yaml"
    folder.make()
    config.write_bytes(msgspec.yaml.encode(simulated() | {"drills": "refused"}))
    record = ClusterRecord(cluster="troupe", config=str(config), nats=Nats(url="nats://127.0.0.1:1"), embedded=True)
    state.write(folder.cluster_file, record)
    done = play("kill", drills, "--state", str(folder.root))
    assert (done.returncode, "refuses drills; set `drills: allowed`" in done.stderr) == (7, True)
    nobody = play("kill", drills, "--state", str(tmp_path / "nowhere"))
    assert (nobody.returncode, "no cluster runs in" in nobody.stderr) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kil"], "did you mean 'kill'"),
        (["kill", "--load", "speed=3"], "known are clients"),
        (["all", "--target", "demo-decode-0"], "--target is for a drill of one fault"),
        (["kill", "--times", "none"], "is no number of times"),
        (["kill", "--drills", "/nowhere.yaml"], "No such file"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(arguments: list[str], says: str) -> None:
    done = subprocess.run([*TROUPE, "drill", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_the_list_names_every_drill() -> None:
    done = subprocess.run([*TROUPE, "drill", "--list"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    named = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert (done.returncode, named[0], {"stop", "bus_kill", "random", "control"} <= set(named)) == (0, "kill", True)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "kill_prefill", "kill_processor", "stop", "spin", "drain", "restart", "crash_loop", "bus_kill", "bus_pause",
        "bus_cut", "slow_network", "slow_consumer", "supervisor_kill", "two",
    ],
)  # fmt: skip
def test_each_other_fault_is_survived(drills: Path, name: str) -> None:
    done = play(name, drills, "--config", SIMULATED, load="clients=6,http=3,requests=30,tokens=64,timeout=60")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_random_drill_is_played_again_from_its_seed(drills: Path) -> None:
    orders = []
    for _ in range(2):
        asked = command("random", drills, "--config", SIMULATED, "--minutes", "1.5", "--seed", "1", load="clients=6")
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        orders.append(re.findall(r"random, seed 1: (\w+)", done.stdout))
    assert len(min(orders, key=len)) >= 3
    assert all(first == second for first, second in zip(*orders, strict=False))
