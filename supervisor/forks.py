"""The supervisor's end of a prefork parent: keeps one running, has it fork actors, hears of their exits.

The parent imports everything once and forks an actor in well under a second where a fresh start takes half a minute.
It is started when it is first needed, adopted from an earlier supervisor, started again when it dies, and its
absence is never fatal: whoever asks is told to start the actor the plain way.
"""

import asyncio
import contextlib
import hashlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from messages import codec
from messages.prefork import Exited, Failed, FromParent, Heard, Ready, Spawn, Spawned
from supervisor import spawner, state
from supervisor.spawner import Process
from supervisor.state import ProcessRecord

log = logging.getLogger("troupe.prefork")

PROGRAM: Final = (sys.executable, "-m", "actors", "prefork")
READY_SECONDS: Final = 180.0
FORK_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0
LAST_LINES_SECONDS: Final = 0.2
BACKOFF: Final = 1.0
BACKOFF_MAX: Final = 60.0
EXITS_KEPT: Final = 256
SOCKET_PATH_BYTES: Final = 100
"""A Unix socket's path may have 107 bytes; deep state folders are longer than that."""


class ForkError(Exception):
    """The parent did not fork; start the actor the plain way. The text says why."""


class ForkParent:
    """One prefork parent, for one kind of device."""

    def __init__(self, folder: Path, device: str, program: Sequence[str] = PROGRAM) -> None:
        self._folder = folder
        self._program = list(program)
        self._device = device
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._pending: dict[tuple[str, int], asyncio.Future[Spawned]] = {}
        self._exits: dict[int, int] = {}
        self._heard = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._kept = asyncio.Event()
        self._kept.set()
        self._was_ready = False
        self._resting = False
        self._refusing = False
        self._trouble = ""

    @property
    def pid(self) -> int | None:
        """The parent's process, if it runs."""
        return self._process.pid if self._process is not None and not self._process.ended else None

    async def keep(self) -> None:
        """Keep a parent running and connected until `stop`; run it as a task. Cancelled, it leaves the parent be."""
        self._kept.clear()
        try:
            await self._keep()
        finally:
            self._kept.set()

    async def _keep(self) -> None:
        streak = 0
        while not self._stopping.is_set():
            self._was_ready = False
            try:
                await self._run()
                why = "it died"
            except (ForkError, spawner.SpawnError, OSError, msgspec.DecodeError) as error:
                why = str(error) or type(error).__name__
            self._disconnected(why)
            if self._process is not None:
                # Gone as a rule; one that lives without listening to us is no parent to rely on.
                await spawner.end(self._process, STOP_SECONDS)
            if self._stopping.is_set():
                return
            streak = 0 if self._was_ready else streak + 1
            pause = min(BACKOFF * 2 ** min(streak, 10), BACKOFF_MAX) if streak else 0.0
            log.warning("the prefork parent for %s is gone (%s); starting it again in %g s", self._device, why, pause)
            if pause:
                self._resting = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                self._resting = self._refusing

    async def fork(self, asked: Spawn) -> Spawned:
        """Have an actor forked, waiting while the parent is still importing. Raises ForkError."""
        key = (asked.slot, asked.generation)
        if self._resting:
            raise ForkError(self._trouble)
        lost = self._lost
        waiting = asyncio.ensure_future(self._ready.wait())
        dead = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({waiting, dead}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            dead.cancel()
        if not self._ready.is_set() or self._writer is None:
            raise ForkError(self._trouble or f"the prefork parent was not ready within {READY_SECONDS:g} s")
        answer: asyncio.Future[Spawned] = asyncio.get_running_loop().create_future()
        self._pending[key] = answer
        try:
            self._send(asked)
            async with asyncio.timeout(FORK_SECONDS):
                return await answer
        except TimeoutError:
            raise ForkError(f"the prefork parent did not answer within {FORK_SECONDS:g} s") from None
        finally:
            self._pending.pop(key, None)

    def refuse(self, why: str) -> None:
        """Fork no more, and tell those who wait."""
        self._refusing = self._resting = True
        self._trouble = why
        self._fail_all(why)

    async def status_of(self, pid: int, seconds: float) -> int | None:
        """Return how a forked actor ended, waiting at most so long for the parent to tell; None if it does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._heard:
                await self._heard.wait_for(lambda: pid in self._exits)
        return self._exits.pop(pid, None)

    async def stop(self) -> None:
        """End the parent; the actors that it forked live on."""
        self._stopping.set()
        if self._process is not None:
            await spawner.end(self._process, STOP_SECONDS)
        await self._kept.wait()
        self._disconnected("it was ended")
        for path in (self._folder / "process.json", socket_path(self._folder)):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _run(self) -> None:
        """Adopt or start the parent, connect, and listen to it until it goes away."""
        self._process = await self._adopt() or await self._start()
        process, path = self._process, socket_path(self._folder)
        if self._stopping.is_set():
            return
        reader, writer = await self._connect(process, path)
        try:
            ready = codec.from_json(await reader.readline(), Ready)
            log.info(
                "prefork parent for %s is ready (pid %d, imports took %.1f s)",
                self._device,
                ready.pid,
                ready.import_seconds,
            )
            self._writer = writer
            self._ready.set()
            self._was_ready = True
            await self._listen(process, reader)
        finally:
            writer.close()

    async def _listen(self, process: Process, reader: asyncio.StreamReader) -> None:
        """Take in what the parent says until it hangs up or ends; a child of its might hold the line open for ever."""

        async def lines() -> None:
            while line := await reader.readline():
                await self._on_line(codec.from_json(line, FromParent))  # type: ignore[arg-type]

        reading = asyncio.ensure_future(lines())
        ending = asyncio.ensure_future(process.wait_alone())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait({reading}, timeout=LAST_LINES_SECONDS)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            ending.cancel()
            await asyncio.gather(reading, ending, return_exceptions=True)

    async def _adopt(self) -> Process | None:
        record = await asyncio.to_thread(state.read, self._folder / "process.json", ProcessRecord)
        return await spawner.adopt(record.pid, record.start_time) if record is not None else None

    async def _start(self) -> Process:
        path = socket_path(self._folder)
        await asyncio.to_thread(self._prepare, path)
        argv = [*self._program, "--socket", str(path), "--device", self._device]
        process = await spawner.start(argv, env={}, log=self._folder / "log")
        await asyncio.to_thread(state.write, self._folder / "process.json", spawner.record_of(process, argv))
        log.info("prefork parent for %s started (pid %d)", self._device, process.pid)
        return process

    def _prepare(self, path: Path) -> None:
        self._folder.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        state.rotate(self._folder / "log")

    async def _connect(self, process: Process, path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as soon as the parent listens, which is when its imports are done."""
        for _ in range(round(READY_SECONDS / 0.05)):
            if process.ended:
                words = await asyncio.to_thread(state.last_words, self._folder / "log")
                raise ForkError(f"it ended while importing: {words}")
            try:
                return await asyncio.open_unix_connection(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.05)
        raise ForkError(f"it did not listen within {READY_SECONDS:g} s")

    async def _on_line(self, said: FromParent) -> None:
        match said:
            case Spawned(slot=slot, generation=generation):
                answer = self._pending.get((slot, generation))
                if answer is not None and not answer.done():
                    answer.set_result(said)
                elif (late := await spawner.adopt(said.pid, said.start_time)) is not None:
                    # Whoever asked has given up and started the slot another way by now.
                    late.kill()
            case Failed(slot=slot, generation=generation, reason=reason):
                answer = self._pending.get((slot, generation))
                if answer is not None and not answer.done():
                    answer.set_exception(ForkError(reason))
            case Exited(pid=pid, status=status):
                async with self._heard:
                    while len(self._exits) >= EXITS_KEPT:
                        self._exits.pop(next(iter(self._exits)))
                    self._exits[pid] = status
                    self._heard.notify_all()
                self._send(Heard(pid=pid))
            case Ready():
                pass

    def _send(self, said: Spawn | Heard) -> None:
        if self._writer is None:
            raise ForkError("the prefork parent is not connected")
        self._writer.write(codec.to_json(said) + b"\n")

    def _disconnected(self, why: str) -> None:
        self._trouble = why
        self._writer = None
        self._ready.clear()
        self._fail_all(f"the prefork parent is gone: {why}")

    def _fail_all(self, why: str) -> None:
        """Tell everybody who waits for a fork, or for the parent to be ready, that there will be none."""
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ForkError(why))
        self._lost.set()
        self._lost = asyncio.Event()


def socket_path(folder: Path) -> Path:
    """Return where a parent listens: in its folder, or in the temporary one where that path would be too long."""
    path = folder / "socket"
    if len(str(path).encode()) <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"troupe-{digest}.socket"
