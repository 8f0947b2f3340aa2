"""Files outside a slot's folder that a killed life cannot remove: noted by it while it lives, removed after its end.

SGLang makes some for each engine, and removes them only if it ends in good order: empty files in the temporary folder
in whose place its sockets come, and a table of load figures in shared memory. Fifty kills would leave three hundred.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

NAME: Final = "leftovers"
SHARED_MEMORY: Final = Path("/dev/shm")


def note(folder: Path, paths: Iterable[Path]) -> None:
    """Add to the list of a slot's folder what is to be removed after this life."""
    with (folder / NAME).open("a") as file:
        file.writelines(f"{path}\n" for path in paths)


def clear(folder: Path) -> int:
    """Remove what the list of a slot's folder names, and the list; return how many there were.

    For when nobody of that life lives any more. What does not look like one of ours is left alone.
    """
    try:
        lines = (folder / NAME).read_text().splitlines()
    except OSError:
        return 0
    removed = 0
    for path in map(Path, lines):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if about.st_uid != os.getuid():
                continue
            if stat.S_ISDIR(about.st_mode) and path.name.startswith("troupe-"):
                shutil.rmtree(path, ignore_errors=True)
            elif _is_of_sglang(path, about):
                path.unlink()
            else:
                continue
            removed += 1
    with contextlib.suppress(OSError):
        (folder / NAME).unlink()
    return removed


def _is_of_sglang(path: Path, about: os.stat_result) -> bool:
    if path.parent == SHARED_MEMORY:
        return path.name.startswith("sglang_loads_")
    empty = stat.S_ISREG(about.st_mode) and about.st_size == 0
    return path.name.startswith("tmp") and (empty or stat.S_ISSOCK(about.st_mode))
