"""What /proc says of processes: who a pid really is, how it is, what it has used."""

import os
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One process as /proc/<pid>/stat has it; `start_time` in clock ticks since boot tells a pid from its reuse."""

    pid: int
    state: str
    parent: int
    start_time: int
    cpu_seconds: float


def process(pid: int) -> Process | None:
    """Look a process up, or return None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return Process(pid, fields[0], int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICK)


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process in bytes, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def descendants(pid: int) -> list[int]:
    """List the children of a process and theirs, parents first."""
    found: list[int] = []
    todo = [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += children
            todo += children
    return found
