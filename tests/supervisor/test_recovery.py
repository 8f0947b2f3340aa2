"""The way from a death to ready, stage by stage, as histories: what the event says adds up, whatever came between."""

from typing import Any

import msgspec
import pytest

from messages.lifecycle import State
from supervisor import acts
from supervisor.acts import Began, Cleared, Condemned, Exited, Gone, Seen, Started, StartFailed
from supervisor.events import Bus, Tick
from supervisor.lives import Phase
from supervisor.recovery import STAGES
from supervisor.state import last_lines
from tests.supervisor.histories import D0, Played, registration, spec

LOADING = {"start": 0.05, "import": 0.4, "weights": 0.2, "kv_pool": 0.1, "warm_up": 0.3, "register": 0.02}


def ready(**policy: Any) -> Played:
    """One slot whose first generation has been ready since second 1."""
    played = Played(spec(**policy))
    played.at(0, Bus(up=True), Started(D0, 1), Began(D0, 1, 0.1))
    played.at(1, Seen(D0, 1, State.READY, 0.9, LOADING))
    return played


def crash(played: Played, at: float, generation: int, **more: Any) -> None:
    played.at(at, Exited(D0, generation, None, "killed by SIGKILL", **more))


def come_back(played: Played, at: float, generation: int, *, born: float, seen: float) -> dict[str, Any]:
    """Start the next life: its first step was `born`, it was ready 1.2 s later; return the event's detail."""
    played.at(at, Started(D0, generation))
    played.at(born + 0.08, Began(D0, generation, 0.08))
    played.at(seen, Seen(D0, generation, State.READY, 1.2, LOADING))
    return played.notes("ready")[-1].detail


def test_a_first_start_and_a_planned_restart_are_no_recovery() -> None:
    played = ready()
    assert played.notes("ready")[0].detail == {}
    played.at(30, acts.Ask(D0, "restart"))
    played.at(30.5, Gone(D0, 1), Exited(D0, 1, 0, "drained"))
    assert come_back(played, 30.6, 2, born=30.7, seen=32) == {}
    assert played.life().recovered is None


def test_an_exit_is_split_into_stages_that_add_up() -> None:
    played = ready()
    played.at(30.01, Gone(D0, 1, 30.0))
    crash(played, 30.05, 1, how="SIGKILL", last_lines=("one", "two"))
    detail = come_back(played, 30.1, 2, born=30.25, seen=31.5)
    stages = detail["recovery"]
    assert tuple(stages) == STAGES
    wanted = {"detect": 0.01, "clean": 0.04, "backoff": 0.0, "import": 0.4, "load": 0.35, "warm_up": 0.3}
    assert stages == pytest.approx(wanted | {"spawn": 0.33, "register": 0.02, "gate": 0.05}, abs=1e-6)
    assert sum(stages.values()) == pytest.approx(31.5 - 30.0, abs=0.01)
    assert (detail["died"], detail["attempts"], detail["outage"]) == (1, 1, 1.5)
    assert played.life().recovered is not None
    assert played.notes("died")[0].detail == {"exit": "SIGKILL", "last_lines": ["one", "two"], "delay": 0.0}


def test_a_stall_counts_from_the_last_sign_of_life_and_a_gpu_until_its_memory_is_back() -> None:
    played = Played(msgspec.structs.replace(spec(), gpus=(0,)))
    played.at(0, Bus(up=True), Started(D0, 1))
    played.at(1, Seen(D0, 1, State.READY))
    played.at(30, Condemned(D0, 1, "stalled", 28.5))
    played.at(30.2, Gone(D0, 1, 30.2))
    crash(played, 30.3, 1)
    played.at(31.3, Cleared(D0, 1))
    stages = come_back(played, 31.4, 2, born=31.5, seen=32.9)["recovery"]
    assert (stages["detect"], stages["clean"]) == pytest.approx((1.5, 1.3))
    assert sum(stages.values()) == pytest.approx(32.9 - 28.5, abs=0.01)


def test_the_backoff_counts_the_wait_for_the_bus_too() -> None:
    played = ready()
    played.at(30, Bus(up=False))
    crash(played, 30, 1)
    played.at(33, Bus(up=True))
    stages = come_back(played, 33, 2, born=33.1, seen=34.4)["recovery"]
    assert stages["backoff"] == 3
    assert sum(stages.values()) == pytest.approx(4.4, abs=0.01)


def test_failed_attempts_are_counted_and_the_stages_are_those_of_the_last_one() -> None:
    played = ready()
    crash(played, 30, 1)
    played.at(30.1, Started(D0, 2))
    crash(played, 31, 2)
    assert played.life().phase is Phase.WAITING
    played.at(40, Tick(), StartFailed(D0, "no memory"))
    played.at(50, Tick())
    detail = come_back(played, 50.1, 3, born=50.2, seen=51.6)
    assert (detail["died"], detail["attempts"]) == (2, 3)
    assert detail["outage"] == pytest.approx(21.6)
    assert sum(detail["recovery"].values()) == pytest.approx(51.6 - 40, abs=0.01)


def test_what_nobody_heard_begin_is_counted_as_spawning() -> None:
    played = ready()
    crash(played, 30, 1)
    played.at(30, Started(D0, 2))
    said = registration(D0, 2, load_seconds=1.2, stages=LOADING)
    played.at(32, Seen(D0, 2, said.state, said.load_seconds, said.stages))
    stages = played.notes("ready")[-1].detail["recovery"]
    assert (stages["spawn"], stages["gate"]) == (pytest.approx(0.93), 0.0)


def test_the_last_lines_of_a_log_are_bounded(tmp_path: Any) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_text("\n".join(f"line {number}" for number in range(100)) + "\n\n")
    assert last_lines(log) == [f"line {number}" for number in range(80, 100)]
    log.write_text("first\n" + "é" * 10_000 + "\nlast\n")
    found = last_lines(log)
    assert found[-1] == "last"
    assert sum(len(line.encode()) for line in found) <= 4_096
