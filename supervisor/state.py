"""The state folder: who holds it, what runs, on which ports; all that a later supervisor or command needs to know.

dashboard.token       what the page's buttons ask for, mode 0600
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

from messages import codec, logs
from messages.config import Nats

T = TypeVar("T")

LOGS_KEPT: Final = 5
BLOCK: Final = 1 << 20


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

    `external` are the slots that other managers start, of which this folder knows nothing else. `dashboard` is the
    address of the supervisor's page, empty if there is none.
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
    dashboard: str = ""


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
    def token_file(self) -> Path:
        """What proves that a browser's actions are meant: the token of the supervisor's page."""
        return self.root / "dashboard.token"

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
    _make_room(log)
    log.replace(log.with_name("log.1"))


def cut(log: Path, most: int) -> bool:
    """Where a log that is being written has more bytes than that, keep its end as log.1 and begin it anew.

    Whoever writes it appends to it, and goes on as before. What is written in the moment between is lost.
    """
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return False
    if size <= most:
        return False
    _make_room(log)
    with log.open("rb") as whole, log.with_name("log.1").open("wb") as kept:
        whole.seek(size - most)
        whole.readline()
        while block := whole.read(BLOCK):
            kept.write(block)
    os.truncate(log, 0)
    return True


def _make_room(log: Path) -> None:
    for number in range(LOGS_KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            log.with_name(f"log.{number}").replace(log.with_name(f"log.{number + 1}"))


def last_words(log: Path) -> str:
    """Return the last line of a log that says something, at most 300 characters of it."""
    lines = last_lines(log, 1)
    return lines[-1][-300:] if lines else ""


def last_lines(log: Path, count: int = 20, size: int = 4_096) -> list[str]:
    """Return the last lines of a log that say something, as people read them; `size` bounds their bytes together."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * size))
            data = file.read()
    except FileNotFoundError:
        return []
    shown = "\n".join(logs.as_text(line) for line in data.decode(errors="replace").splitlines())
    found: list[str] = []
    for line in reversed(shown.splitlines()):
        if not line.strip():
            continue
        if len(found) == count or size <= 0:
            break
        cut = line.rstrip().encode()[:size]
        size -= len(cut)
        found.append(cut.decode(errors="ignore"))
    return found[::-1]
