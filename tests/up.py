"""A whole cluster as a user runs it: `troupe up` in a process of its own, on free ports, in a folder of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from messages import codec
from messages.supervise import Status
from tests.harness import ROOT

TROUPE = str(Path(sys.executable).parent / "troupe")
UP_SECONDS = 90


class Up:
    """A running cluster; `configuration` is what the YAML would say, its HTTP ports free ones."""

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self.state = folder / "state"
        self.config = folder / "cluster.yaml"
        self.config.write_bytes(msgspec.yaml.encode(configuration))
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the supervisor; does not wait."""
        with self.log.open("ab") as log:
            command = [TROUPE, "up", str(self.config), "--state", str(self.state)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def until_ready(self, seconds: float = UP_SECONDS) -> Status:
        """Wait for every gate to open; return what `troupe status --json` says then."""
        said = self.run("status", "--json", "--wait-ready", str(seconds), within=seconds + 20)
        assert said.returncode == 0, f"{said.stdout}{said.stderr}\n{self.log.read_text()}"
        return codec.from_json(said.stdout.encode(), Status)

    def run(self, command: str, *options: str, within: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one `troupe` command against this cluster."""
        arguments = [TROUPE, command, "--state", str(self.state), *options]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=within, cwd=ROOT)

    def slot_log(self, slot: str) -> str:
        """What a slot's process has written."""
        return (self.state / "slots" / slot / "log").read_text()

    def stop(self) -> None:
        """End everything, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        self.run("down")
