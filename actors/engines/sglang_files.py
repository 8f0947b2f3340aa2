"""The files outside the slot's folder that one engine of SGLang has made, and a kill leaves behind."""

from pathlib import Path
from typing import Any, Final

SCHEME: Final = "ipc://"


def files_of(engine: Any) -> list[Path]:
    """List the files of its sockets, and its load figures in shared memory, as far as this version has them."""
    ports = getattr(engine, "port_args", None)
    if ports is None:
        return []
    names = [value for value in vars(ports).values() if isinstance(value, str) and value.startswith(SCHEME)]
    found = [Path(name.removeprefix(SCHEME)) for name in names]
    try:
        from sglang.srt.managers.load_snapshot import shm_path_for
    except ImportError:
        return found
    instance = getattr(ports, "instance_id", "")
    return [*found, Path(shm_path_for(instance))] if instance else found
