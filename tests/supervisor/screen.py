"""A terminal as a person has it: a program on a real pseudo-terminal, and what its screen shows."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence

import pyte

from tests.supervisor.cluster import ROOT


class Screen:
    """A program on a terminal of so many columns and lines."""

    def __init__(self, command: Sequence[str], columns: int = 80, lines: int = 24) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self._resize(columns, lines)
        # The kind of terminal that pyte understands wholly; xterm can repeat a character, which it does not know.
        environment = os.environ | {"TERM": "linux", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        self.before = termios.tcgetattr(self._master)
        os.close(slave)
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What the screen shows."""
        with self._more:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def row(self, pattern: str) -> str:
        """The first row that matches; an empty text if none does."""
        return next((line for line in self.text.splitlines() if re.search(pattern, line)), "")

    def until(self, pattern: str, seconds: float = 20.0) -> float:
        """Wait until the screen shows this; return how long that took."""
        began = time.monotonic()
        with self._more:
            while not re.search(pattern, "\n".join(self._screen.display)):
                left = began + seconds - time.monotonic()
                if left <= 0:
                    shown = "\n".join(self._screen.display)
                    raise AssertionError(f"no {pattern!r} on the screen within {seconds:g} s:\n{shown}")
                self._more.wait(left)
        return time.monotonic() - began

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal another size, as dragging its window does."""
        with self._more:
            self._screen.resize(lines, columns)
        self._resize(columns, lines)

    def ended(self, seconds: float = 10.0) -> int:
        """Wait for the program's end; return its exit code."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it, whatever it is at."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        os.close(self._master)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65_536)
            except OSError:
                return
            if not data:
                return
            with self._more:
                self._stream.feed(data)
                self._more.notify_all()
