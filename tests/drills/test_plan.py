"""The plan and the targets: what comes with Troupe is well, and what is wrong is said in words that help."""

import itertools
from pathlib import Path

import pytest

from messages.supervise import SlotStatus, Status
from supervisor.drills import plan
from supervisor.drills.faults import FAULTS
from supervisor.drills.plan import PlanError
from supervisor.drills.target import TargetError, choose
from tests.supervisor.cluster import ROOT

HERE = ROOT / "configs" / "drills.yaml"


def test_every_fault_is_in_a_drill_and_every_drill_says_what_it_expects() -> None:
    found = plan.read(HERE, FAULTS)
    used = {step.fault for drill in found.drills.values() for step in drill.steps}
    assert used == set(FAULTS)
    assert all(drill.what and drill.hypothesis for drill in found.drills.values())
    assert found.drills["control"].apart
    assert found.objectives_of("stop", "simulated").gap == 2
    assert found.objectives_of("stop", "sglang").gap == 25
    assert found.load_of("kill", plan.read_load("clients=3,requests=7")).clients == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompts: [a]\ndrills: {x: {what: w, hypothesis: h}}", "either steps or among"),
        (
            "prompts: [a]\ndrills: {x: {what: w, hypothesis: h, steps: [{fault: kil}]}}",
            "no fault 'kil'; there are kill",
        ),
        ("prompts: [a]\ndrills: {x: {what: w, hypothesis: h, among: [y]}}", "no drill 'y'"),
        ("prompts: []\ndrills: {x: {what: w, hypothesis: h, steps: [{fault: kill}]}}", "prompts: at least one"),
        (
            "prompts: [a]\ndrills: {x: {what: w, hypothesis: h, steps: [{fault: kill}], objectives: {gaap: 1}}}",
            "objectives: Object contains unknown field `gaap`",
        ),
        ("prompts: [a]\ndrils: {}", "unknown field `drils`"),
        ("prompts: [", "drills.yaml: "),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "drills.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        plan.read(path, FAULTS)
    assert says in str(caught.value)


def test_a_plan_that_is_not_there_and_a_drill_that_is_not_in_it_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        plan.read(tmp_path / "none.yaml", FAULTS)
    with pytest.raises(PlanError, match="did you mean 'bus_kill'"):
        plan.read(HERE, FAULTS).find("bus_kil")


@pytest.mark.parametrize("text", ["clients", "clients=0", "speed=3", "requests=many"])
def test_a_load_that_cannot_be_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(PlanError, match=r"load: .*clients.*requests"):
        plan.read(HERE, FAULTS).load_of("kill", plan.read_load(text))


def test_every_door_has_its_share_of_the_clients() -> None:
    found = plan.read(HERE, FAULTS)
    for clients, http in itertools.product(range(1, 9), range(9)):
        doors = found.load_of("kill", {"clients": clients, "http": http}).doors
        assert (len(doors), doors.count("http")) == (clients, min(clients, http))


def slot(name: str, *, in_flight: int = 0, state: str = "ready", external: bool = False) -> SlotStatus:
    role = next(role for role in ("processor", "prefill", "decode") if role in name)
    return SlotStatus(
        slot=name,
        role=role,  # type: ignore[arg-type]
        model="demo",
        state=state,
        seconds=1,
        pid=1,
        in_flight=in_flight,
        spawn="external" if external else "plain",
    )


STATUS = Status(
    cluster="troupe",
    host="here",
    slots=[
        slot("demo-processor-0"),
        slot("demo-decode-0", in_flight=1),
        slot("demo-decode-1", in_flight=5),
        slot("demo-decode-2", in_flight=9, state="loading"),
        slot("demo-prefill-0", external=True),
    ],
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("decode", "demo-decode-0"),
        ("busiest decode", "demo-decode-1"),
        ("busiest", "demo-decode-1"),
        ("only processor", "demo-processor-0"),
        ("demo-decode-0", "demo-decode-0"),
    ],
)
def test_a_target_is_found(text: str, found: str) -> None:
    assert choose(STATUS, "demo", text) == found


def test_who_is_busiest_is_better_told_by_what_it_streams() -> None:
    streams = {"demo-decode-0": 3, "demo-decode-1": 2}
    assert choose(STATUS, "demo", "busiest decode", streams=lambda name: streams.get(name, 0)) == "demo-decode-0"
    assert choose(STATUS, "demo", "busiest decode", frozenset({"demo-decode-1"})) == "demo-decode-0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("only decode", "no only one: there are demo-decode-0, demo-decode-1"),
        ("encoder", "no encoder of demo"),
        ("prefill", "no prefill of demo"),
        ("demo-prefill-0", "its own manager starts it"),
        ("demo-decode-9", "there is no slot 'demo-decode-9'; there are demo-processor-0"),
        ("the slowest", "is not understood"),
        ("only", "there is no slot 'only'"),
    ],
)
def test_a_target_that_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        choose(STATUS, "demo", text)
    assert says in str(caught.value)
