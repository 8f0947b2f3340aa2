"""The state folder: who holds it, what runs, on which ports; all that a later supervisor or command needs to know.

lock                  held by the living supervisor (flock), with its pid in it
cluster.json          how to reach the cluster, mode 0600: it may hold credentials
supervisor.log        what the supervisor said
nats/                 the embedded server: its configuration, log, JetStream store and process.json
prefork-<device>/     the parent that forks engines: its socket, log and process.json
slots/<slot>/         log (earlier ones log.1 and on), exit.json, stages (a named pipe), process.json
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct, field

from messages import codec
from messages.config import Nats

T = TypeVar("T")

LOGS_KEPT: Final = 5


class HeldError(Exception):
    """Another living supervisor holds the state folder."""

    def __init__(self, folder: Path, pid: int) -> None:
        super().__init__(f"a supervisor (pid {pid}) is at work on {folder} already; `troupe down` ends it")
        self.pid = pid


class ProcessRecord(Struct, kw_only=True):
    """A process that was started: `start_time` (clock ticks since boot) tells its pid from a later reuse of it.

    `started` is wall-clock time. `restarts` and `reason` are the slot's history, for the supervisor after this one.
    `port` is the one a NATS server listens on.
    """

    pid: int
    start_time: int
    argv: list[str]
    started: float
    generation: int = 0
    spawn: Literal["prefork", "plain"] = "plain"
    restarts: int = 0
    reason: str = ""
    port: int = 0


class ClusterRecord(Struct, kw_only=True):
    """How to reach the cluster of this folder; `http` has the base URL of each model's door, `models` their aliases.

    `external` are the slots that other managers start, of which this folder knows nothing else.
    """

    cluster: str
    config: str
    nats: Nats
    embedded: bool
    http: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    started: float = 0.0
    external: list[str] = field(default_factory=list)


class Folder:
    """One state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def make(self) -> None:
        """Make the folder for us alone; raises OSError if that cannot be."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.root / "slots").mkdir(exist_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder as its one supervisor; raises HeldError if another living one does."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HeldError(self.root, self.holder() or 0) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(fd)

    def holder(self) -> int | None:
        """Return the pid of the living supervisor, or None if there is none."""
        try:
            fd = os.open(self.root / "lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0)
            return int(text) if text.isdigit() else 0
        else:
            return None
        finally:
            os.close(fd)

    def slot(self, slot: str) -> Path:
        """Return a slot's own folder."""
        return self.root / "slots" / slot

    def slots(self) -> dict[str, ProcessRecord]:
        """Return what was last started in each slot that this folder knows, living or not."""
        found = {}
        for path in sorted((self.root / "slots").glob("*/process.json")):
            if (record := read(path, ProcessRecord)) is not None:
                found[path.parent.name] = record
        return found

    def parents(self) -> dict[Path, ProcessRecord]:
        """Return the prefork parents that this folder knows, by their folder."""
        found = {}
        for path in sorted(self.root.glob("prefork-*/process.json")):
            if (record := read(path, ProcessRecord)) is not None:
                found[path.parent] = record
        return found

    @property
    def nats(self) -> Path:
        """The embedded server's folder."""
        return self.root / "nats"

    @property
    def cluster_file(self) -> Path:
        """Where it is written how to reach the cluster."""
        return self.root / "cluster.json"

    def cluster(self) -> ClusterRecord | None:
        """Return how to reach the cluster, or None if none was started here or it was ended."""
        return read(self.cluster_file, ClusterRecord)


def read(path: Path, kind: type[T]) -> T | None:
    """Read a JSON file, or return None if it is not there or was cut off by a crash."""
    try:
        return codec.from_json(path.read_bytes(), kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def write(path: Path, value: Struct) -> None:
    """Write a JSON file in one step, readable by us alone."""
    spare = path.with_name(f".{path.name}.new")
    fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(codec.to_json(value))
    spare.replace(path)


def rotate(log: Path) -> None:
    """Keep the log of the life before as log.1, the one before that as log.2, and so on; the oldest goes."""
    if not log.exists() or log.stat().st_size == 0:
        return
    for number in range(LOGS_KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            log.with_name(f"log.{number}").replace(log.with_name(f"log.{number + 1}"))
    log.replace(log.with_name("log.1"))


def last_words(log: Path) -> str:
    """Return the last line of a log that says something, at most 300 characters of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4_096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return ""
    return lines[-1][-300:] if lines else ""
