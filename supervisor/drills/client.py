"""One client of a drill, in a process of its own: asks one thing after another and keeps its own account of it.

    python -m supervisor.drills.client

The first line on stdin says what to do (`Task`); a second one, or its end, says to ask nothing more. Each step is told
on stdout as one JSON line (`Told`), for the progress; the account itself, one line a request, is the client's own file.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal

import uvloop
from msgspec import Struct

from messages import codec
from messages.config import Nats
from messages.ids import new_request_id
from supervisor.drills import history
from supervisor.drills.asking import Asker, Witness
from supervisor.drills.records import Door, Record

LINGER: Final = 0.3
"""Seconds to wait after the last request, in which a last word too many would still come."""
PAUSE: Final = 0.1
PAUSE_MOST: Final = 1.0


class Task(Struct, kw_only=True):
    """What one client does: `requests` of them (0: until told to stop), the prompts in turn from number `first` on."""

    client: str
    door: Door
    nats: Nats
    cluster: str
    model: str
    http: str
    prompts: list[str]
    tokens: int
    limit: float
    requests: int
    file: str
    first: int = 0
    reference: bool = False


class Told(Struct, array_like=True):
    """One step: a request sent, its first delta, or its end; `at` in monotonic seconds, `tokens` that came by then."""

    what: Literal["sent", "first", "end"]
    id: str
    at: float
    outcome: str = ""
    code: int = 0
    tokens: int = 0
    gap: float = 0.0
    attempts: int = 1


class DrillClient:
    """The client itself."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._stopping = asyncio.Event()
        self.records: list[Record] = []

    async def run(self) -> None:
        """Ask until all is asked or somebody says stop."""
        task = self._task
        reading = asyncio.ensure_future(self._read_stop())
        try:
            if task.door == "nats":
                async with Witness(task.nats, prefix=task.cluster) as witness:
                    try:
                        await self._ask_all(witness)
                    finally:
                        for record in self.records:
                            witness.fill(record)
            else:
                await self._ask_all(None)
        finally:
            reading.cancel()

    async def _ask_all(self, witness: Witness | None) -> None:
        task, pause = self._task, PAUSE
        asker = Asker(
            task.model,
            task.prompts,
            tokens=task.tokens,
            http=task.http,
            client=witness,
            patient=True,
            more={"ignore_eos": True},
            on_piece=self._on_piece,
        )
        while not self._stopping.is_set() and (not task.requests or len(self.records) < task.requests):
            asked = (task.first + len(self.records)) % len(task.prompts)
            record = Record(new_request_id(), task.door, asked, time.monotonic(), task.limit)
            record.client, record.reference = task.client, task.reference
            self.records.append(record)
            _tell(Told("sent", record.id, record.sent))
            await (asker.over_nats(record) if witness is not None else asker.over_http(record))
            tokens = max(len(record.token_ids), len(record.pieces))
            _tell(
                Told("end", record.id, record.ended, record.outcome, record.code, tokens, record.gap, record.attempts)
            )
            if record.outcome == "done":
                pause = PAUSE
            else:
                # Who was refused does not hammer: it would be the drill that takes the machine down.
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_MOST)
        await asyncio.sleep(LINGER)

    def _on_piece(self, record: Record) -> None:
        if len(record.pieces) == 1:
            _tell(Told("first", record.id, time.monotonic()))

    async def _read_stop(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.readline()
        self._stopping.set()


def _tell(told: Told) -> None:
    sys.stdout.buffer.write(codec.to_json(told) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the task, carry it out, write the account down whatever happens."""
    # Unbuffered: what stands behind the first line is for the loop to read.
    task: Any = codec.from_json(_first_line(), Task)

    async def run() -> None:
        client = DrillClient(task)
        try:
            await client.run()
        finally:
            history.write(Path(task.file), client.records)

    uvloop.run(run())


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


if __name__ == "__main__":
    main()
