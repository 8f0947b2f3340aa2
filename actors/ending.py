"""How an actor ends: with a code, for a reason, and with both written down where they can be found."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from messages import codec
from messages.bus import BusError
from messages.lifecycle import Exit, ExitNote

log = logging.getLogger("troupe.actor")


class Ending(Exception):
    """The actor must end, with this exit code and for this reason."""

    def __init__(self, code: Exit, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def note_exit(folder: Path, generation: int, ending: Ending) -> None:
    """Write `exit.json`: a supervisor that is not our parent sees no exit code. What cannot be written is let be."""
    note = ExitNote(generation=generation, code=int(ending.code), reason=ending.reason)
    with contextlib.suppress(OSError):
        spare = folder / "exit.json.new"
        spare.write_bytes(codec.to_json(note))
        spare.replace(folder / "exit.json")


def cause_of(group: BaseExceptionGroup[BaseException]) -> Ending:
    """Find out of what failed (nested groups included) why the actor ends: an ending if there is one."""
    failures = list(_flat(group))
    for failure in failures:
        if isinstance(failure, Ending):
            return failure
    log.error("failed", exc_info=failures[0])
    code = Exit.BUS_LOST if isinstance(failures[0], BusError) else Exit.INTERNAL
    return Ending(code, f"{type(failures[0]).__name__}: {failures[0]}")


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for failure in group.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            yield from _flat(failure)
        else:
            yield failure


async def cancelled(task: "asyncio.Future[Any]", seconds: float) -> None:
    """Cancel until it has ended: nats-py swallows a cancellation that meets it while it flushes."""
    deadline = time.monotonic() + seconds
    while not task.done() and time.monotonic() < deadline:
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
