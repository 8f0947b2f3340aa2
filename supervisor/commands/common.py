"""What the commands share: how the cluster of a state folder is found, how its supervisor is asked, how it is shown."""

import contextlib
import json
import logging
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from messages import codec, config
from messages.bus import Bus, BusError, NobodyThereError, SilentError
from messages.subjects import Subjects
from messages.supervise import Order
from supervisor.commands.codes import DEFAULT_STATE, Code, CommandError
from supervisor.state import ClusterRecord, Folder

T = TypeVar("T")

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 3.0


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


def check_slot(folder: Folder, record: ClusterRecord, slot: str, *others: str) -> None:
    """Raise CommandError for a slot that this cluster has not; `others` are what else might have been named."""
    known = [*folder.slots(), *record.external]
    if known and slot not in known:
        raise CommandError(Code.USAGE, f"there is no slot {slot!r} here; there are {', '.join([*known, *others])}")


def record_of(folder: Folder) -> ClusterRecord:
    """Say how the folder's cluster is reached; raises CommandError if none runs there."""
    record = folder.cluster()
    if record is None:
        raise CommandError(
            Code.NOT_RUNNING, f"no cluster runs in {folder.root}; `troupe up CONFIG` starts one, --state names another"
        )
    return record


def quiet() -> None:
    """Keep what the bus has to say off the terminal: commands say it in their own words."""
    logging.getLogger("troupe.bus").setLevel(logging.CRITICAL)


@contextlib.asynccontextmanager
async def connected(record: ClusterRecord) -> AsyncIterator[Bus]:
    """Connect to the cluster's NATS; raises CommandError if that cannot be."""
    quiet()
    try:
        bus = await Bus.connect(record.nats, name="command", wait=CONNECT_SECONDS)
    except BusError as error:
        raise CommandError(Code.NOT_RUNNING, str(error)) from None
    try:
        yield bus
    finally:
        await bus.close()


async def ask(
    bus: Bus, record: ClusterRecord, order: str, kind: type[T], slot: str = "", *, asked: Order | None = None
) -> T | None:
    """Ask the cluster's supervisor; None if there is none. Raises CommandError for an answer that makes no sense.

    `asked` is the whole of an order that says more than a slot.
    """
    subject = Subjects(record.cluster).supervise(order)
    try:
        answer = await bus.request(subject, codec.to_json(asked or Order(slot=slot)), timeout=ANSWER_SECONDS)
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
