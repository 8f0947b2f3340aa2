"""A whole cluster as a user runs it: `troupe up` in its own process, read line by line, ended with the test."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from messages import procfs
from messages.supervise import SlotStatus, Status
from supervisor.state import Folder, ProcessRecord, read

ROOT = Path(__file__).resolve().parents[2]
TROUPE = [sys.executable, "-m", "supervisor.cli"]
TINY = str(ROOT / "models" / "tiny")


def simulated(**cast: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the simulated engine: one slot a role unless `cast` says otherwise."""
    roles: dict[str, dict[str, Any]] = {"processor": {"http": {"port": 0}}, "prefill": {}, "decode": {}}
    parts = {role: part | cast.get(role, {}) for role, part in roles.items() if cast.get(role) != {"count": 0}}
    model = {"name": "demo", "engine": "simulated", "tokenizer": TINY, "load_deadline": 20.0, "cast": parts}
    free = {"publisher": {"enabled": False}, "dashboard": {"port": 0}}
    return {"drills": "allowed", **free, "models": [model]}


class Up:
    """One `troupe up`: its process and all lines that it has written."""

    def __init__(self, config: Path, folder: Path) -> None:
        command = [*TROUPE, "up", str(config), "--state", str(folder)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that it has written."""
        return "\n".join(self.lines)

    def until(self, pattern: str, seconds: float = 20.0, *, after: int = 0) -> int:
        """Wait until a line matches; return its number. `after` leaves out the lines before that number."""
        deadline = time.monotonic() + seconds
        at = after
        with self._more:
            while True:
                for number in range(at, len(self.lines)):
                    if re.search(pattern, self.lines[number]):
                        return number
                at = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or (self._ended and at == len(self.lines)):
                    raise AssertionError(f"no line {pattern!r} within {seconds:g} s:\n{self.text}")
                self._more.wait(left)

    def ended(self, seconds: float = 30.0) -> int:
        """Wait for its end; return its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """End it as the machine's owner might: SIGKILL."""
        self.process.kill()
        self.ended()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()
        self.process.stdout.close()


class Cluster:
    """A state folder, a configuration and what was started on them."""

    def __init__(self, folder: Path, configuration: dict[str, Any] | str) -> None:
        self.state = Folder(folder / "state")
        self.config = folder / "cluster.yaml"
        text = configuration.encode() if isinstance(configuration, str) else msgspec.yaml.encode(configuration)
        self.config.write_bytes(text)
        self.ups: list[Up] = []

    @property
    def log(self) -> Up:
        """The supervisor that was started last."""
        return self.ups[-1]

    def up(self, *, ready: bool = True) -> Up:
        """Start a supervisor, and wait until every gate is open unless told not to."""
        self.ups.append(Up(self.config, self.state.root))
        if ready:
            self.log.until("Ctrl-C drains", 40)
        return self.log

    def command(self, name: str, *arguments: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run another command on this cluster."""
        command = [*TROUPE, name, *arguments, "--state", str(self.state.root)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)

    def status(self) -> Status:
        """What `troupe status --json` says."""
        done = self.command("status", "--json")
        assert done.returncode in (0, 5), done.stderr
        return msgspec.json.decode(done.stdout, type=Status)

    def slot(self, name: str) -> SlotStatus:
        """One slot of the status."""
        return {slot.slot: slot for slot in self.status().slots}[name]

    def record(self, slot: str) -> ProcessRecord:
        """What the state folder says of a slot's process."""
        found = read(self.state.slot(slot) / "process.json", ProcessRecord)
        assert found is not None
        return found

    def records(self) -> dict[str, tuple[int, int]]:
        """Pid and generation of every slot, as the state folder has them."""
        return {slot: (record.pid, record.generation) for slot, record in self.state.slots().items()}

    def kill(self, slot: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a slot's process; return its generation."""
        record = self.record(slot)
        os.kill(record.pid, number)
        return record.generation

    def nats(self) -> ProcessRecord:
        """The embedded server's process."""
        found = read(self.state.nats / "process.json", ProcessRecord)
        assert found is not None
        return found

    def living(self) -> list[str]:
        """Every process whose output goes to a log in this state folder, by its command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                process = procfs.process(int(path.name))
                output = os.readlink(path / "fd" / "1")
                if output.startswith(f"{self.state.root}/") and process is not None and process.state != "Z":
                    found.append((path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "))
        return found

    def close(self) -> None:
        """End all of it, whatever the test left."""
        for up in self.ups:
            if up.process.poll() is None:
                up.process.kill()
            up.ended()
        self.command("down", "--now")
        left = self.living()
        assert not left, f"left running: {left}"


def answer_of(done: subprocess.CompletedProcess[str]) -> Any:
    """Read a command's JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_path() -> dict[str, str]:
    """An environment in which `troupe` is found, as after setting up."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def has(program: str) -> bool:
    """Tell whether a program is installed here."""
    return shutil.which(program) is not None
