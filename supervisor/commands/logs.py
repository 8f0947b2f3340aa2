"""`troupe logs`: what a slot, the supervisor or the NATS server has said; lines of JSON are shown as text."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Final

from messages.logs import as_text
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of
from supervisor.state import Folder

POLL: Final = 0.2
BLOCK: Final = 65_536
MOST: Final = 1 << 20


class Shower:
    """Writes what is read from a log to stdout: as people read it, or raw."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._rest = b""

    def show(self, fd: int) -> None:
        """Show all that can be read now; of a line that is being written, the part that is there waits for the rest."""
        while data := os.read(fd, BLOCK):
            if self._raw:
                sys.stdout.buffer.write(data)
                continue
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._write(lines)
        sys.stdout.flush()

    def end(self) -> None:
        """Show what has no end: nothing more will come."""
        if self._rest:
            self._write([self._rest])
        self._rest = b""
        sys.stdout.flush()

    def _write(self, lines: list[bytes]) -> None:
        for line in lines:
            sys.stdout.buffer.write(as_text(line.decode(errors="replace")).encode(errors="replace") + b"\n")


def logs(options: Namespace) -> Code:
    """Show the end of a log; with -f go on, across restarts, until Ctrl-C."""
    folder = folder_of(options)
    path = _path(folder, options.SLOT)
    if options.previous:
        path = path.with_name(f"{path.name}.{options.previous}")
    if not path.exists():
        raise CommandError(Code.NOT_RUNNING, f"there is no log {path}")
    with path.open("rb") as file:
        shower = Shower(raw=options.raw)
        _seek_to_last(file.fileno(), options.lines)
        shower.show(file.fileno())
        if not options.follow:
            shower.end()
            return Code.OK
        end, inode = os.lseek(file.fileno(), 0, os.SEEK_CUR), os.fstat(file.fileno()).st_ino
        _follow(path, end, inode, shower)
    return Code.OK


def last(folder: Folder, name: str, lines: int) -> list[str]:
    """Return the last lines of a log as people read them; raises CommandError if there is none."""
    path = _path(folder, name)
    try:
        with path.open("rb") as file:
            _seek_to_last(file.fileno(), lines)
            text = os.read(file.fileno(), MOST).decode(errors="replace")
    except OSError as error:
        raise CommandError(Code.NOT_RUNNING, f"{path} cannot be read: {error.strerror}") from None
    return "\n".join(as_text(line) for line in text.splitlines()).splitlines()[-lines:]


def _path(folder: Folder, name: str) -> Path:
    """Find the log of a slot, or of one of the programs beside the slots."""
    if name == "supervisor":
        return folder.root / "supervisor.log"
    if name == "nats" or name.startswith("prefork-"):
        return folder.root / name / "log"
    known = sorted(path.parent.name for path in (folder.root / "slots").glob("*/log"))
    if not known and not folder.cluster_file.exists():
        raise CommandError(Code.NOT_RUNNING, f"no cluster has run in {folder.root}; --state names another folder")
    if name not in known:
        others = ["supervisor", "nats"]
        raise CommandError(
            Code.USAGE if known else Code.NOT_RUNNING,
            f"there is no log of {name!r} in {folder.root}; there are {', '.join(known + others)}",
        )
    return folder.slot(name) / "log"


def _seek_to_last(fd: int, lines: int) -> None:
    """Go to where the last so many lines begin."""
    at, seen = os.lseek(fd, 0, os.SEEK_END), -1
    while at > 0:
        size = min(BLOCK, at)
        block = os.pread(fd, size, at - size)
        for index in range(size - 1, -1, -1):
            if block[index] == 0x0A or at - size + index == 0:
                seen += block[index] == 0x0A
                if seen == lines:
                    os.lseek(fd, at - size + index + 1, os.SEEK_SET)
                    return
        at -= size
    os.lseek(fd, 0, os.SEEK_SET)


def _follow(path: Path, at: int, inode: int, shower: Shower) -> None:
    """Show what is added; a new life of the slot begins a new file, which is then shown from its start."""
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, at, os.SEEK_SET)
    while True:
        shower.show(fd)
        try:
            now = path.stat()
        except FileNotFoundError:
            time.sleep(POLL)
            continue
        if now.st_ino != inode or now.st_size < os.lseek(fd, 0, os.SEEK_CUR):
            shower.show(fd)
            shower.end()
            os.close(fd)
            fd, inode = os.open(path, os.O_RDONLY), now.st_ino
        time.sleep(POLL)
