"""`troupe logs`: what a slot, the supervisor or the NATS server has said."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Final

from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of
from supervisor.state import Folder

POLL: Final = 0.2
BLOCK: Final = 65_536


def logs(options: Namespace) -> Code:
    """Show the end of a log; with -f go on, across restarts, until Ctrl-C."""
    folder = folder_of(options)
    path = _path(folder, options.SLOT)
    if options.previous:
        path = path.with_name(f"{path.name}.{options.previous}")
    if not path.exists():
        raise CommandError(Code.NOT_RUNNING, f"there is no log {path}")
    with path.open("rb") as file:
        _seek_to_last(file.fileno(), options.lines)
        _copy(file.fileno())
        if not options.follow:
            return Code.OK
        end, inode = file.tell(), os.fstat(file.fileno()).st_ino
        _follow(path, end, inode)
    return Code.OK


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


def _copy(fd: int) -> int:
    copied = 0
    while data := os.read(fd, BLOCK):
        sys.stdout.buffer.write(data)
        copied += len(data)
    sys.stdout.buffer.flush()
    return copied


def _follow(path: Path, at: int, inode: int) -> None:
    """Show what is added; a new life of the slot begins a new file, which is then shown from its start."""
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, at, os.SEEK_SET)
    while True:
        _copy(fd)
        try:
            now = path.stat()
        except FileNotFoundError:
            time.sleep(POLL)
            continue
        if now.st_ino != inode or now.st_size < os.lseek(fd, 0, os.SEEK_CUR):
            _copy(fd)
            os.close(fd)
            fd, inode = os.open(path, os.O_RDONLY), now.st_ino
        time.sleep(POLL)
