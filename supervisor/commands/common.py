"""What the commands share: exit codes, how the cluster of a state folder is found, how its supervisor is asked."""

import contextlib
import json
import logging
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from enum import IntEnum
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from messages import codec, config
from messages.bus import Bus, BusError, NobodyThereError, SilentError
from messages.subjects import Subjects
from messages.supervise import Order
from supervisor.state import ClusterRecord, Folder

T = TypeVar("T")

DEFAULT_STATE: Final = ".troupe"
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 3.0


class Code(IntEnum):
    """What the exit codes of `troupe` mean; `troupe --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    NOT_RUNNING = 4
    NOT_READY = 5
    TAKEN = 6
    REFUSED = 7
    INTERRUPTED = 130


MEANINGS: Final = {
    Code.OK: "done",
    Code.FAILED: "it did not work; the last line says why",
    Code.USAGE: "the command line itself is wrong",
    Code.CONFIG: "the configuration is wrong",
    Code.NOT_RUNNING: "no cluster (or no supervisor, where one is needed) runs in this state folder",
    Code.NOT_READY: "not ready (in time): a gate is closed, or a slot did not get there",
    Code.TAKEN: "another supervisor holds the state folder, or somebody else the port",
    Code.REFUSED: "the request or the order was refused",
    Code.INTERRUPTED: "interrupted",
}


class CommandError(Exception):
    """The command ends here, with this exit code and this sentence."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def say(text: str = "") -> None:
    """Write a line for people, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def folder_of(options: Namespace) -> Folder:
    """Find the state folder: the one given, or the configuration's, or the default one."""
    if options.state is not None:
        return Folder(Path(options.state))
    if options.config is not None:
        return Folder(Path(read_config(Path(options.config)).state))
    return Folder(Path(DEFAULT_STATE))


def read_config(path: Path) -> config.Cluster:
    """Read a configuration; raises CommandError with the code for a wrong one."""
    try:
        return config.read(path)
    except config.ConfigError as error:
        raise CommandError(Code.CONFIG, str(error)) from None


def record_of(folder: Folder) -> ClusterRecord:
    """Say how the folder's cluster is reached; raises CommandError if none runs there."""
    record = folder.cluster()
    if record is None:
        raise CommandError(
            Code.NOT_RUNNING, f"no cluster runs in {folder.root}; `troupe up CONFIG` starts one, --state names another"
        )
    return record


@contextlib.asynccontextmanager
async def connected(record: ClusterRecord) -> AsyncIterator[Bus]:
    """Connect to the cluster's NATS; raises CommandError if that cannot be."""
    quiet = logging.getLogger("troupe.bus")
    quiet.setLevel(logging.ERROR)
    try:
        bus = await Bus.connect(record.nats, name="command", wait=CONNECT_SECONDS)
    except BusError as error:
        raise CommandError(Code.NOT_RUNNING, str(error)) from None
    try:
        yield bus
    finally:
        await bus.close()


async def ask(bus: Bus, record: ClusterRecord, order: str, kind: type[T], slot: str = "") -> T | None:
    """Ask the cluster's supervisor; None if there is none. Raises CommandError for an answer that makes no sense."""
    subject = Subjects(record.cluster).supervise(order)
    try:
        answer = await bus.request(subject, codec.to_json(Order(slot=slot)), timeout=ANSWER_SECONDS)
        return codec.from_json(answer.data, kind)
    except (NobodyThereError, SilentError):
        return None
    except (BusError, msgspec.DecodeError) as error:
        raise CommandError(Code.FAILED, f"the supervisor cannot be asked: {error}") from None


def pretty(value: object) -> str:
    """Write a struct as indented JSON."""
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False)


def span(seconds: float) -> str:
    """Write a span of time shortly: 0.4 s, 12 s, 3 min, 5.2 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h"


def table(rows: list[list[str]]) -> str:
    """Lay out rows in columns, the first row being the heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
