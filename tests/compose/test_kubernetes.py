"""compose/kubernetes.yaml, checked and not run: commands by our own parsers, slots against the cast, limits."""

from typing import Any

import pytest
import yaml

from actors.__main__ import parser as actor_parser
from actors.__main__ import slot_name
from messages.config import read, slots_of
from messages.ids import parse_slot
from supervisor.cli import _parser as troupe_parser
from tests.compose.stack import COMPOSE, CONFIG, ROOT, targets

ITEMS: list[dict[str, Any]] = yaml.safe_load((COMPOSE / "kubernetes.yaml").read_text())["items"]
SETS = {item["metadata"]["name"]: item["spec"] for item in ITEMS if item["kind"] in ("StatefulSet", "Deployment")}
ACTORS = {name: spec for name, spec in SETS.items() if name not in ("nats", "supervisor")}


def container(spec: dict[str, Any]) -> dict[str, Any]:
    [only] = spec["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def test_the_pods_numbers_make_the_slots_of_the_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, spec in ACTORS.items():
        command = container(spec)["command"]
        assert command[:3] == ["python", "-m", "actors"]
        options = actor_parser().parse_args(command[3:])
        assert (str(options.config), options.state, options.generation) == (CONFIG, "/state", None)
        for number in range(spec["replicas"]):
            monkeypatch.setattr("socket.gethostname", lambda name=name, number=number: f"{name}-{number}")
            found.append(slot_name(options.slot))
            assert parse_slot(found[-1]).role == options.role == name
    assert sorted(found) == sorted(slots_of(read(ROOT / "configs" / "containers.yaml")))


def test_the_supervisor_and_its_probe_are_commands_of_ours() -> None:
    found = container(SETS["supervisor"])
    assert troupe_parser().parse_args(found["command"][1:]).command == "up"
    assert troupe_parser().parse_args(found["livenessProbe"]["exec"]["command"][1:]).WHAT == "supervisor"
    assert SETS["supervisor"]["strategy"]["type"] == "Recreate", "one at a time"


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_kept_small_and_every_mount_has_its_volume(name: str) -> None:
    pod, found = SETS[name]["template"]["spec"], container(SETS[name])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    context = found["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert found["resources"]["limits"]["memory"]
    assert found["image"].removeprefix("troupe-") in targets()
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in SETS[name].get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in found["volumeMounts"]} == volumes
    assert SETS[name]["selector"]["matchLabels"] == SETS[name]["template"]["metadata"]["labels"]


def test_whoever_serves_has_the_time_to_drain() -> None:
    for _, spec in [(name, spec) for name, spec in ACTORS.items() if name != "publisher"]:
        assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 40
