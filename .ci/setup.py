"""Makes `.venv` what the Makefile's targets need, stage by stage, and finishes what an earlier call left half done.

Life of one call: take the lock, then for each stage compare its stamp (a hash of all that went into it) with what it
would be now; where they differ, run the stage and write the stamp last. A stage that was interrupted has no stamp and
is run again, after packages that were being unpacked at that moment have been removed. Standard library only, since
nothing is installed yet when it runs.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / ".setup"
LOG = STAMPS / "setup.log"
OLDEST, NEWEST = (3, 11), (3, 13)
NPM_SECONDS = 120


class SetupError(Exception):
    """Set-up cannot go on; the text says what to do."""


@dataclass(frozen=True)
class Stage:
    """One step of the set-up, done again whenever one of its inputs changes.

    `inputs` are paths from the repository's root; `outputs` are paths that must exist for the stage to count as done.
    """

    name: str
    says: str
    inputs: tuple[str, ...]
    run: Callable[[], None]
    outputs: tuple[str, ...] = ()

    def digest(self) -> str:
        digest = hashlib.sha256(f"{self.name} {sys.version}".encode())
        for path in self.inputs:
            digest.update(path.encode() + b"\0" + (ROOT / path).read_bytes() + b"\0")
        return digest.hexdigest()

    def is_done(self) -> bool:
        stamp = STAMPS / self.name
        if not stamp.exists() or stamp.read_text() != self.digest():
            return False
        return all((ROOT / path).exists() for path in self.outputs)


def make_venv() -> None:
    if VENV.exists() and not STAMPS.exists():
        raise SetupError(f"{VENV} was not made by this set-up and would be overwritten: move it away and call again")
    if VENV.exists():
        shutil.rmtree(VENV)
    # First the folder of stamps: it tells the next call that what lies here is ours, however far this one gets.
    STAMPS.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"python -m venv failed (on Debian the package python3-venv is needed):\n{done.stdout}{done.stderr}"
        )


def install_base() -> None:
    pip("install", "-r", "constraints/base.txt", "-r", "constraints/dev.txt")


def install_troupe() -> None:
    # "compat" puts this folder on the path as it is, so packages and modules that come later need no new set-up.
    pip("install", "--no-build-isolation", "--config-settings=editable_mode=compat", "--editable", ".")


def install_cpu() -> None:
    index = os.environ.get("TORCH_INDEX", "")
    pip("install", "-r", "constraints/cpu.txt", *(["--extra-index-url", index] if index else []))
    for version in VENV.glob("lib/python*/site-packages/torch/version.py"):
        if "cuda: Optional[str] = None" not in version.read_text():
            pip("uninstall", "--yes", "torch")
            raise SetupError(
                "pip found a CUDA build of PyTorch, which cannot be loaded here. Call again with TORCH_INDEX set to "
                "the package index that has the CPU builds; the README's set-up section says where that is."
            )


def install_node() -> None:
    """Install what the JavaScript examples need, exactly as locked, and without running anything that comes with it."""
    place = VENV / "node"
    place.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "submitting" / name, place / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NPM_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"npm did not end within {NPM_SECONDS} s") from None
    if done.returncode:
        raise SetupError(f"npm failed:\n{done.stdout}{done.stderr}")


def build_model() -> None:
    subprocess.run([str(PYTHON), "-m", "models.build_tiny"], cwd=ROOT, check=True)


STAGES = (
    Stage(
        "base",
        "libraries and test tools (about 65 MB to download)",
        ("constraints/base.txt", "constraints/dev.txt"),
        install_base,
    ),
    Stage("troupe", "Troupe itself, as it lies in this folder", ("pyproject.toml",), install_troupe),
    Stage("cpu", "PyTorch and SGLang for a CPU (about 365 MB to download)", ("constraints/cpu.txt",), install_cpu),
    Stage(
        "model",
        "the tiny model (nothing to download)",
        ("models/build_tiny.py", "models/tiny/config.json"),
        build_model,
        ("models/tiny/model.safetensors",),
    ),
)
NODE = Stage(
    "node",
    "nats.js for the JavaScript examples, because npm is here (about 0.3 MB to download)",
    ("tests/submitting/package.json", "tests/submitting/package-lock.json"),
    install_node,
    (".venv/node/node_modules/@nats-io/transport-node/package.json",),
)
"""Only where npm is: nothing but one test needs it."""


def pip(*arguments: str) -> None:
    """Run pip, print a line for each large download, keep the rest in the log."""
    command = [str(PYTHON), "-m", "pip", *arguments]
    environ = {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        # Every version is pinned and every dependency listed: SGLang's own list cannot be resolved without CUDA.
        "PIP_NO_DEPS": "1",
    }
    # Without .pyc files each start of an engine costs some 20 CPU seconds more; pip compiles what it installs.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ.pop("PIP_NO_COMPILE", None)
    drop_half_installed()
    said: list[str] = []
    with LOG.open("a") as log:
        log.write(f"\n{time.strftime('%F %T')} {' '.join(command)}\n")
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                said.append(line)
                show(line)
    if process.returncode:
        raise SetupError(f"pip failed ({LOG.relative_to(ROOT)} has all of it):\n{''.join(said[-12:])}")


def show(line: str) -> None:
    """Print what a person waits for: the packages of 1 MB or more as they are fetched, and when all are unpacked."""
    if found := re.match(
        r"\s*(?:Downloading|Using cached|Processing) (\S+?)(?: \(([\d.]+ [kMG]B)\))?(?: \(from .*\))?\s*$", line
    ):
        name = found[1].rsplit("/", 1)[-1].split("-cp")[0].split("-py")[0].removesuffix(".metadata")
        size = found[2] or megabytes(found[1])
        if size.endswith(("MB", "GB")):
            print(f"  {name} ({size})", flush=True)
    elif line.startswith("Installing collected packages"):
        print(f"  unpacking {line.count(',') + 1} packages", flush=True)


def megabytes(path: str) -> str:
    """Return the size of a wheel that pip takes from a folder, or nothing if it is small or not there."""
    file = Path(path)
    return f"{file.stat().st_size / 1e6:.1f} MB" if file.is_file() and file.stat().st_size >= 1e6 else ""


def drop_half_installed() -> None:
    """Forget packages whose unpacking was cut short, so that pip does not take them for installed.

    pip writes `INSTALLER` into a package's dist-info after all its files (pip/_internal/operations/install/wheel.py).
    """
    for info in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "INSTALLER").exists():
            shutil.rmtree(info)


@contextmanager
def locked() -> Iterator[None]:
    """Hold the set-up's lock; a second call at the same time waits and then finds everything done."""
    with (ROOT / ".ci" / ".setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is running here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_stages(stages: tuple[Stage, ...]) -> None:
    if not (STAMPS / "venv").exists() or (STAMPS / "venv").read_text() != sys.version:
        print(f"set-up: a virtual environment in .venv with Python {sys.version.split()[0]}", flush=True)
        make_venv()
        (STAMPS / "venv").write_text(sys.version)
    for stage in stages:
        if stage.is_done():
            continue
        print(f"set-up: {stage.says}", flush=True)
        start = time.monotonic()
        (STAMPS / stage.name).unlink(missing_ok=True)
        stage.run()
        (STAMPS / stage.name).write_text(stage.digest())
        print(f"  done in {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("upto", nargs="?", choices=[stage.name for stage in STAGES], help="the last stage wanted")
    wanted = parser.parse_args().upto
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetupError(
            f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is needed, this is {sys.version.split()[0]}: "
            "make PYTHON=python3.11 ..."
        )
    names = [stage.name for stage in STAGES]
    with locked():
        run_stages(STAGES[: names.index(wanted) + 1] if wanted else STAGES)
        if not wanted and shutil.which("npm"):
            try:
                run_stages((NODE,))
            except SetupError as error:
                print(f"set-up: without the JavaScript examples, whose test will be skipped: {error}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"set-up: {error}")
    except KeyboardInterrupt:
        sys.exit("\nset-up: interrupted; the next call goes on from here")
