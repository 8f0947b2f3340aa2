"""The set-up: the pinned versions fit what pyproject.toml asks for, and half-done work is noticed and finished."""

import re
import resource
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(*names: str) -> dict[str, str]:
    """Return the exact versions in the named constraints files."""
    lines = [line for name in names for line in (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {pair[0]: pair[1] for pair in pairs}


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        (PROJECT["dependencies"], ["base"]),
        (EXTRAS["dev"], ["base", "dev"]),
        (EXTRAS["cpu"], ["base", "dev", "cpu"]),
    ],
    ids=["base", "dev", "cpu"],
)
def test_every_range_has_a_pinned_version_inside_it(asked: list[str], files: list[str]) -> None:
    pinned = pins(*files)
    for text in asked:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("files", [["base"], ["base", "dev"]], ids=["base", "dev"])
def test_what_the_pinned_packages_need_is_pinned_too(files: list[str]) -> None:
    pinned = pins(*files)
    for name in pinned:
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                version = pinned.get(canonicalize_name(needed.name))
                assert version and needed.specifier.contains(version), f"{name} needs {text}, pinned is {version}"


def test_constraints_name_no_url_and_no_package_twice() -> None:
    for path in (ROOT / "constraints").iterdir():
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line) for line in lines), path
    names = [name for file in ("base", "dev", "cpu") for name in pins(file)]
    assert len(names) == len(set(names))


@pytest.fixture
def setup(tmp_path: Path) -> Any:
    """The set-up program's names, working on an empty folder in place of the repository."""
    names = runpy.run_path(str(ROOT / ".ci" / "setup.py"))
    functions = names["run_stages"].__globals__
    venv = tmp_path / ".venv"
    functions.update(ROOT=tmp_path, VENV=venv, STAMPS=venv / ".setup", LOG=venv / ".setup" / "log")
    (venv / ".setup").mkdir(parents=True)
    (venv / ".setup" / "venv").write_text(sys.version)
    return SimpleNamespace(**names, root=tmp_path)


def test_a_stage_runs_once_and_again_when_an_input_changes_or_an_output_goes(setup: Any) -> None:
    runs: list[int] = []

    def run() -> None:
        runs.append(len(runs))
        (setup.root / "output").touch()

    stage = setup.Stage("example", "an example", ("input",), run, ("output",))
    (setup.root / "input").write_text("1")
    setup.run_stages((stage,))
    setup.run_stages((stage,))
    assert len(runs) == 1
    (setup.root / "input").write_text("2")
    setup.run_stages((stage,))
    assert len(runs) == 2
    (setup.root / "output").unlink()
    setup.run_stages((stage,))
    assert len(runs) == 3


def test_a_stage_that_was_interrupted_is_run_again(setup: Any) -> None:
    runs: list[int] = []

    def run() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise KeyboardInterrupt

    stage = setup.Stage("example", "an example", (), run)
    with pytest.raises(KeyboardInterrupt):
        setup.run_stages((stage,))
    setup.run_stages((stage,))
    setup.run_stages((stage,))
    assert len(runs) == 2


def test_a_package_that_was_half_unpacked_is_forgotten(setup: Any) -> None:
    packages = setup.root / ".venv" / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole": ["METADATA", "INSTALLER"], "half": ["METADATA"]}.items():
        for file in files:
            path = packages / f"{name}-1.0.dist-info" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    setup.drop_half_installed()
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_a_virtual_environment_of_somebody_else_is_left_alone(setup: Any) -> None:
    stamps = setup.root / ".venv" / ".setup"
    (stamps / "venv").unlink()
    stamps.rmdir()
    (setup.root / ".venv" / "mine").touch()
    with pytest.raises(setup.SetupError, match="move it away"):
        setup.run_stages(())
    assert (setup.root / ".venv" / "mine").exists()


def test_a_second_call_does_nothing_and_takes_under_a_second() -> None:
    command = ["make", "--silent", "setup"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=15)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # CPU seconds, not the clock's: the machine may be busy with something else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
