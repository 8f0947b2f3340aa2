"""The end of a slot's log, of its present life or of an earlier one."""

import os
from pathlib import Path
from typing import Final

from messages import logs
from supervisor.dashboard.refusal import RefusalError
from supervisor.state import LOGS_KEPT

BYTES: Final = 256 << 10
LINES: Final = 2_000


def path_of(folder: Path, lives_ago: int) -> Path:
    """Say where the log lies of a life so many before this one. Raises RefusalError for one that is not kept."""
    if not 0 <= lives_ago <= LOGS_KEPT:
        raise RefusalError(404, f"logs are kept of the last {LOGS_KEPT} lives before this one")
    return folder / ("log" if not lives_ago else f"log.{lives_ago}")


def tail(path: Path, lines: int) -> str:
    """Return the last so many lines, as people read them. Raises RefusalError where there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - BYTES))
            data = file.read(BYTES)
    except OSError:
        raise RefusalError(404, f"there is no {path.name} of {path.parent.name}") from None
    found = data.decode(errors="replace").splitlines()
    if size > BYTES:
        found = found[1:]
    return "\n".join(logs.as_text(line) for line in found[-lines:])
