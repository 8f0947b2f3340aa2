"""The processes of the slots: each in a folder of its own, started one of two ways, adopted, and asked how it ended."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from messages import codec, leftovers
from messages.ids import short
from messages.lifecycle import Exit, ExitNote, Stage
from messages.prefork import Spawn
from supervisor import spawner, state
from supervisor.forks import ForkError, ForkParent
from supervisor.spawner import Process, SpawnError
from supervisor.spec import Spec
from supervisor.state import Folder, ProcessRecord

log = logging.getLogger("troupe.slots")

STATUS_SECONDS: Final = 0.5
LINE_BYTES: Final = 65_536
LAST_WORDS: Final = 300
"""Characters of a log's last line that stand in a reason."""

OnStage = Callable[[str, Stage], None]
OnExit = Callable[[str, int, int | None, str], None]


class End(NamedTuple):
    """How a life ended: its exit code (None: nobody knows), why, what that code or signal is called, its last lines."""

    code: int | None
    reason: str
    how: str
    last_lines: tuple[str, ...]


class Running:
    """One life of a slot that has a process; `parent` is who forked it, if somebody did."""

    def __init__(
        self, process: Process, record: ProcessRecord, parent: ForkParent | None, *, adopted: bool = False
    ) -> None:
        self.process = process
        self.record = record
        self.parent = parent
        self.adopted = adopted
        self.stage = ""


class Slots:
    """All processes of this supervisor's slots, by slot."""

    def __init__(self, folder: Folder, arguments: list[str], on_stage: OnStage, tasks: asyncio.TaskGroup) -> None:
        self._folder = folder
        self._arguments = arguments
        self._on_stage = on_stage
        self._pipes: dict[str, int] = {}
        self._parents: dict[str, ForkParent] = {}
        self._tasks = tasks
        self._ending = False
        self.running: dict[str, Running] = {}

    async def start(self, spec: Spec, generation: int, more: list[str], restarts: int, reason: str) -> Running:
        """Start the next life of a slot; raises SpawnError. `more` are arguments of this slot alone."""
        folder = self._folder.slot(spec.slot)
        await asyncio.to_thread(_prepare, folder)
        self._open_pipe(spec.slot, folder)
        argv = [spec.role, *self._arguments, "--slot", spec.slot, "--generation", str(generation), *more]
        plain = [sys.executable, "-m", "actors", *argv]
        running = await self._fork(spec, generation, argv, folder) if spec.spawn == "prefork" else None
        if running is None:
            process = await spawner.start(plain, env=spec.env, log=folder / "log")
            running = Running(process, spawner.record_of(process, plain), None)
        running.record = msgspec.structs.replace(
            running.record, generation=generation, restarts=restarts, reason=reason
        )
        await asyncio.to_thread(state.write, folder / "process.json", running.record)
        self.running[spec.slot] = running
        return running

    async def adopt(self, spec: Spec) -> Running | None:
        """Take over the slot's process that an earlier supervisor started, if it still runs."""
        folder = self._folder.slot(spec.slot)
        record = await asyncio.to_thread(state.read, folder / "process.json", ProcessRecord)
        if record is None or (process := await spawner.adopt(record.pid, record.start_time)) is None:
            return None
        parent = self._parent(spec.device) if record.spawn == "prefork" else None
        await asyncio.to_thread(_make_pipe, folder)
        self._open_pipe(spec.slot, folder)
        self.running[spec.slot] = running = Running(process, record, parent, adopted=True)
        return running

    async def ended(self, slot: str) -> End:
        """Wait until the slot's process is gone; return how it ended."""
        running = self.running[slot]
        status = await running.process.wait()
        folder = self._folder.slot(slot)
        await asyncio.to_thread(leftovers.clear, folder)
        note = await asyncio.to_thread(state.read, folder / "exit.json", ExitNote)
        if note is not None and note.generation != running.record.generation:
            note = None
        if status is None and note is None and running.parent is not None:
            status = await running.parent.status_of(running.process.pid, STATUS_SECONDS)
        del self.running[slot]
        return _verdict(status, note, await asyncio.to_thread(state.last_lines, folder / "log"))

    def signal(self, slot: str, generation: int, number: signal.Signals) -> None:
        """Send a signal to the actor of this life; to an earlier one, to nobody."""
        running = self.running.get(slot)
        if running is not None and running.record.generation == generation:
            running.process.signal(number)

    def kill(self, slot: str, generation: int) -> None:
        """Kill this life and all of its session."""
        running = self.running.get(slot)
        if running is not None and running.record.generation == generation:
            running.process.kill()

    def trim_logs(self, most: int) -> None:
        """Begin anew the logs that have more bytes than that; what they said last is kept as log.1."""
        for slot in list(self.running):
            with contextlib.suppress(OSError):
                if state.cut(self._folder.slot(slot) / "log", most):
                    log.info("%s: its log had more than %d bytes; it goes on as a new one", slot, most)

    def refuse_forks(self) -> None:
        """Let nobody wait for a parent any more: everything ends."""
        self._ending = True
        for parent in self._parents.values():
            parent.refuse("the cluster is being ended")

    async def stop_parents(self) -> None:
        """End the prefork parents, and those that an earlier supervisor left."""
        for parent in self._parents.values():
            await parent.stop()
        await end_parents(self._folder)

    def close(self) -> None:
        """Let go of the pipes."""
        for fd in self._pipes.values():
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._pipes.clear()

    async def _fork(self, spec: Spec, generation: int, argv: list[str], folder: Path) -> Running | None:
        """Have the slot's actor forked; None, with the reason in the log, where it is to be started the plain way."""
        parent = self._parent(spec.device)
        asked = Spawn(
            slot=spec.slot, generation=generation, argv=argv, env=spec.env, log=str((folder / "log").resolve())
        )
        try:
            spawned = await parent.fork(asked)
        except ForkError as error:
            if self._ending:
                raise SpawnError(str(error)) from None
            log.warning("%s is started the plain way: %s", short(spec.slot, generation), error)
            return None
        process = await spawner.adopt(spawned.pid, spawned.start_time)
        if process is None:
            words = await asyncio.to_thread(state.last_words, folder / "log")
            raise SpawnError(f"its forked process ended at once: {words}")
        record = ProcessRecord(
            pid=spawned.pid, start_time=spawned.start_time, argv=argv, started=time.time(), spawn="prefork"
        )
        return Running(process, record, parent)

    def _parent(self, device: str) -> ForkParent:
        if device not in self._parents:
            self._parents[device] = ForkParent(self._folder.root / f"prefork-{device}", device)
            self._tasks.create_task(self._parents[device].keep())
        return self._parents[device]

    def _open_pipe(self, slot: str, folder: Path) -> None:
        """Hold both ends of the slot's pipe, so that it outlives every writer."""
        if slot in self._pipes:
            return
        fd = self._pipes[slot] = os.open(folder / "stages", os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(fd, self._read_pipe, slot, fd)

    def _read_pipe(self, slot: str, fd: int) -> None:
        try:
            data = os.read(fd, LINE_BYTES)
        except BlockingIOError:
            return
        # Each stage is one write below PIPE_BUF, so that lines come whole.
        for line in data.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                stage = codec.from_json(line, Stage)
                running = self.running.get(slot)
                if running is not None and running.record.generation == stage.generation:
                    running.stage = f"{stage.stage} {stage.detail}" if stage.stage == "download" else stage.stage
                self._on_stage(slot, stage)


def _prepare(folder: Path) -> None:
    """Make a slot's folder ready for its next life."""
    folder.mkdir(parents=True, exist_ok=True)
    state.rotate(folder / "log")
    (folder / "log").touch(mode=0o600)
    (folder / "exit.json").unlink(missing_ok=True)
    _make_pipe(folder)


def _make_pipe(folder: Path) -> None:
    path = folder / "stages"
    if not path.is_fifo():
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)


async def end_parents(folder: Folder) -> None:
    """End every prefork parent that the folder knows."""
    for path, record in (await asyncio.to_thread(folder.parents)).items():
        if (process := await spawner.adopt(record.pid, record.start_time)) is not None:
            await spawner.end(process, STATUS_SECONDS)
        await asyncio.to_thread((path / "process.json").unlink, missing_ok=True)


def _verdict(status: int | None, note: ExitNote | None, lines: list[str]) -> End:
    """Say how a life ended: by what the actor wrote, by what its parent saw, by its last line."""
    last = tuple(lines)
    if status is not None and status < 0:
        name = _signal_name(-status)
        return End(None, f"killed by {name}", name, last)
    if note is not None:
        return End(note.code, f"{note.reason} ({_code_name(note.code)})", _name(note.code), last)
    if status is None:
        return End(None, "killed, cause unknown", "", last)
    words = lines[-1][-LAST_WORDS:] if lines else ""
    return End(status, f"{_code_name(status)}{': ' + words if words else ''}", _name(status), last)


def _code_name(code: int) -> str:
    name = _name(code)
    return f"exit code {code}{', ' + name if name and code else ''}"


def _name(code: int) -> str:
    return {int(known): known.name.lower().replace("_", " ") for known in Exit}.get(code, "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
