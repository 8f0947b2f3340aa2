"""A cluster watched from a terminal: what happened, how a slot came back, a live screen, logs and their levels."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cli import main
from supervisor.recovery import STAGES
from tests.supervisor.cluster import ROOT, TROUPE, Cluster, answer_of, simulated
from tests.supervisor.screen import Screen

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

DECODE = "demo-decode-0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One slot a role; the tests leave it well."""
    made = Cluster(tmp_path_factory.mktemp("watched"), simulated() | {"logs": {"max_bytes": 65_536}})
    try:
        made.up()
        yield made
    finally:
        made.close()


class Following:
    """`troupe events -f` in its own process, read line by line."""

    def __init__(self, cluster: Cluster, *options: str) -> None:
        command = [*TROUPE, "events", "-f", "--json", *options, "--state", str(cluster.state.root)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.events: list[dict[str, object]] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, generation: int, what: str, seconds: float = 20.0) -> dict[str, object]:
        """Wait until this has happened in this life."""
        deadline = time.monotonic() + seconds
        with self._more:
            while True:
                for event in self.events:
                    if (event.get("generation"), event["what"]) == (generation, what):
                        return event
                left = deadline - time.monotonic()
                assert left > 0, f"no {what} of #{generation} within {seconds:g} s: {self.events}"
                self._more.wait(left)

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; return the exit code and what it said on stderr."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, said

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.events.append(json.loads(line))
                self._more.notify_all()


def kill_and_wait(cluster: Cluster, slot: str = DECODE) -> int:
    """Kill a slot and wait until its next life is ready; return the generation that was killed."""
    line = len(cluster.log.lines)
    generation = cluster.kill(slot)
    cluster.log.until(f"{slot}#{generation + 1} ready after", after=line)
    return generation


def test_a_death_is_told_with_its_last_lines_and_the_way_back_by_stages(cluster: Cluster) -> None:
    generation = kill_and_wait(cluster)
    done = cluster.command("events", "--since", "5m", "--slot", DECODE, "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(event["what"], event.get("generation")): event for event in told if event["topic"] == "restart"}
    died = found["died", generation]["detail"]
    assert died["exit"] == "SIGKILL"
    assert any("ready after" in line for line in died["last_lines"])
    assert not any(line.startswith("{") for line in died["last_lines"]), "as people read them"
    ready = found["ready", generation + 1]
    stages = ready["detail"]["recovery"]
    assert tuple(stages) == STAGES
    assert ready["detail"]["attempts"] == 1
    # The event says when it was published, which is as good as when it died: a pidfd tells at once.
    seen = ready["at"] - found["died", generation]["at"]
    assert sum(stages.values()) == pytest.approx(seen, abs=0.5)
    assert stages["spawn"] > 0
    assert stages["load"] + stages["warm_up"] > 0
    text = cluster.command("events", "--slot", DECODE, "--kind", "restart").stdout
    assert f"{DECODE}#{generation}  died: killed by SIGKILL; starting again" in text
    assert "s after it died (" in text
    assert "demo-prefill" not in text
    slot = answer_of(cluster.command("status", DECODE, "--json"))
    assert slot["recovery"] == stages
    shown = cluster.command("status", DECODE)
    assert shown.returncode == 0
    for word in (f"{DECODE}#{generation + 1} ready for", "killed by SIGKILL", "ago", "warm-up", "backoff"):
        assert word in shown.stdout


def test_bad_arguments_and_absent_clusters_are_told(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, word in (
        (["--since", "soon"], "90s, 10m, 2h or 1d"),
        (["--kind", "birth"], "there is no kind 'birth'"),
        (["--lines", "some"], "no number of lines"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["events", *options])
        assert word in capsys.readouterr().err
    for name in ("events", "top"):
        assert main([name, "--state", str(tmp_path)]) == 4
        assert "no cluster runs in" in capsys.readouterr().err
    assert main(["top", "--state", str(cluster.state.root)]) == 2
    assert "needs a terminal" in capsys.readouterr().err
    screen = Screen(["env", "TERM=dumb", *TROUPE, "top", "--state", str(cluster.state.root)])
    screen.until("cannot be used: it cannot write")
    assert screen.ended() == 1
    screen.close()
    for command in (["events", "--slot", "demo-decode-9"], ["log-level", "no", "info"]):
        done = cluster.command(*command)
        assert done.returncode == 2
        assert "there are demo-" in done.stderr


def test_following_goes_on_after_nats_has_been_killed(cluster: Cluster) -> None:
    following = Following(cluster, "--kind", "restart", "--slot", DECODE)
    generation = kill_and_wait(cluster)
    following.until(generation + 1, "ready")
    line = len(cluster.log.lines)
    os.kill(cluster.nats().pid, signal.SIGKILL)
    cluster.log.until("connected to NATS again", after=line)
    generation = kill_and_wait(cluster)
    following.until(generation, "died")
    following.until(generation + 1, "ready")
    code, said = following.interrupt()
    assert (code, "NATS is away" in said, "NATS is back" in said) == (130, True, True)
    seen = [(event["generation"], event["what"]) for event in following.events]
    assert len(seen) == len(set(seen)), "nothing is told twice"


def test_the_screen_shows_a_kill_live_and_a_key_restarts_a_slot(cluster: Cluster) -> None:
    screen = Screen([*TROUPE, "top", "--state", str(cluster.state.root)])
    try:
        screen.until("demo  gate open")
        screen.until(r"decode-0 +ready ")
        assert all(len(line) <= 80 for line in screen.text.splitlines())
        assert "what happened" in screen.text
        generation = cluster.kill(DECODE)
        screen.until(rf"{DECODE}#{generation}  died: killed by SIGKILL", 10)
        screen.until(rf"{DECODE}#{generation + 1}  ready after", 10)
        screen.until(r"(?m)^> prefill-0")
        screen.press("j")
        screen.until(r"(?m)^> decode-0")
        screen.press("r")
        screen.until(rf"y/n  restart {DECODE}\?")
        screen.press("n")
        screen.until("nothing done")
        screen.press("r")
        screen.until("y/n  restart")
        screen.press("y")
        screen.until(rf"{DECODE}#{generation + 2}  ready after", 20)
        screen.press("l")
        screen.until(f"log of {DECODE}")
        screen.until("ready after")
        screen.press("l/processor\r")
        screen.until("only with 'processor'")
        assert not screen.row(r"^[> ] decode-0")
        screen.resize(120, 40)
        screen.until(r"(?s)q quit.*\Z")
        screen.press("\x1b")
        screen.until(r"decode-0 +ready ")
        cluster.log.kill()
        screen.until("no supervisor answers", 20)
        cluster.up(ready=False)
        screen.until("supervisor [0-9]+ up", 20)
        os.kill(cluster.nats().pid, signal.SIGSTOP)
        screen.until("STALE for", 20)
        os.kill(cluster.nats().pid, signal.SIGCONT)
        screen.until(r"decode-0 +ready ", 20)
        screen.until(r"\A(?!STALE)", 20)
        screen.press("q")
        assert screen.ended() == 0
    finally:
        os.kill(cluster.nats().pid, signal.SIGCONT)
        screen.close()


def test_an_engine_that_writes_and_writes_does_not_fill_the_disk(cluster: Cluster) -> None:
    folder = cluster.state.slot("demo-prefill-0")
    line = len(cluster.log.lines)
    with (folder / "log").open("ab") as log:
        log.write(b"an engine's own word\n" * 20_000)
    cluster.log.until("demo-prefill-0: its log had more than 65536 bytes", after=line)
    assert sum(path.stat().st_size for path in folder.glob("log*")) <= 6 * 65_536
    assert "an engine's own word" in cluster.command("logs", "demo-prefill-0", "-p", "1").stdout
