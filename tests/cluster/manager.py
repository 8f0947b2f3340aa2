"""A manager of containers in small: starts actors, each as if alone on its host, and again when they exit."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from messages import logs
from messages.ids import parse_slot
from messages.lifecycle import ExitNote
from supervisor.state import read
from tests.supervisor.cluster import ROOT


class Manager:
    """Keeps one process a slot running until told otherwise; each has a state folder of its own.

    `pause` is how many seconds go by between an exit and the next start.
    """

    def __init__(self, folder: Path, config: Path, slots: list[str]) -> None:
        self.folder = folder
        self.config = config
        self.slots = slots
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keepers: list[threading.Thread] = []
        self._stopping = threading.Event()
        self.pause = 0.1
        self.exits: dict[str, list[int]] = {slot: [] for slot in slots}

    def start(self) -> None:
        """Start all of them."""
        for slot in self.slots:
            self._processes[slot] = self.launch(slot)
            self._keepers.append(threading.Thread(target=self._keep, args=(slot,), daemon=True))
            self._keepers[-1].start()

    def launch(self, slot: str, *options: str) -> subprocess.Popen[bytes]:
        """Start one process of a slot."""
        self.home(slot).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "actors", parse_slot(slot).role, "--config", str(self.config)]
        command += ["--slot", slot, "--state", str(self.home(slot)), *options]
        with self.log(slot).open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def home(self, slot: str) -> Path:
        """The state folder of a slot's host."""
        return self.folder / slot

    def log(self, slot: str) -> Path:
        """What all lives of a slot have written."""
        return self.home(slot) / "output"

    def said(self, slot: str) -> str:
        """The same, as people read it."""
        return "\n".join(logs.as_text(line) for line in self.log(slot).read_text().splitlines()) + "\n"

    def note(self, slot: str) -> ExitNote | None:
        """Why the last life ended, by its own word."""
        return read(self.home(slot) / "slots" / slot / "exit.json", ExitNote)

    def pid(self, slot: str) -> int:
        """The process that lives in a slot now."""
        return self._processes[slot].pid

    def kill(self, slot: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a slot's process."""
        os.kill(self.pid(slot), number)

    def until_exits(self, slot: str, count: int, seconds: float = 20.0) -> list[int]:
        """Wait until so many lives of a slot have ended; return how."""
        deadline = time.monotonic() + seconds
        while len(self.exits[slot]) < count:
            assert time.monotonic() < deadline, f"{slot} has ended {self.exits[slot]}:\n{self.log(slot).read_text()}"
            time.sleep(0.01)
        return self.exits[slot]

    def _keep(self, slot: str) -> None:
        while True:
            code = self._processes[slot].wait()
            if self._stopping.is_set():
                return
            self.exits[slot].append(code)
            if self._stopping.wait(self.pause):
                return
            self._processes[slot] = self.launch(slot)

    def stop(self, seconds: float = 10.0) -> list[int]:
        """Stop all, gently first; return the exit codes."""
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        codes = []
        for process in self._processes.values():
            try:
                codes.append(process.wait(seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                codes.append(process.wait())
        for keeper in self._keepers:
            keeper.join(seconds)
        return codes
