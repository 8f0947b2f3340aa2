"""The one file that touches processes: starts them, adopts them, signals them and learns of their end.

Every process gets a session of its own and no parent-death signal, so that neither Ctrl-C nor the supervisor's death
reaches it. Its end is told by a pidfd within milliseconds, whoever its parent is; what is left of its session is
killed before anybody hears of it, so that nothing of it, its memory on a GPU included, outlives it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from messages import procfs
from supervisor.state import ProcessRecord

SWEEP_SECONDS: Final = 10.0
SWEEP_PAUSE: Final = 0.02
DEAD: Final = ("Z", "X")


class SpawnError(Exception):
    """No process could be started; the text says why."""


class Process:
    """One process that is watched until its end; `ended_at` is when that was, in monotonic seconds."""

    def __init__(self, pid: int, start_time: int, pidfd: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.start_time = start_time
        self._pidfd = pidfd
        self._popen = popen
        self._ended = asyncio.Event()
        self.ended_at: float | None = None
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._ended.is_set()

    async def state(self) -> str | None:
        """Return its state as /proc has it, or None if it is gone."""
        found = await asyncio.to_thread(procfs.process, self.pid)
        return found.state if found is not None and found.start_time == self.start_time else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; to one that is gone, to nobody."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL to it and to its process group; `wait` does the same to what is left of its session."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)

    async def wait(self) -> int | None:
        """Wait until it is gone, and all of its session with it.

        Returns its exit code (minus the signal that ended it), or None where it was not our child.
        """
        await self._ended.wait()
        for _ in range(round(SWEEP_SECONDS / SWEEP_PAUSE)):
            if not await asyncio.to_thread(kill_session, self.pid):
                break
            await asyncio.sleep(SWEEP_PAUSE)
        # Reaped only now: until then nobody else can get the pid that names the session.
        return self._popen.poll() if self._popen is not None else None

    async def wait_alone(self) -> None:
        """Wait until it is gone, and leave the rest of its session be: for a process that is none of our making."""
        await self._ended.wait()

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended_at = time.monotonic()
        self._ended.set()


async def start(argv: list[str], *, env: dict[str, str], log: Path) -> Process:
    """Start a program with its output going to `log`; raises SpawnError."""
    popen, start_time = await asyncio.to_thread(_popen, argv, env, log)
    return Process(popen.pid, start_time, os.pidfd_open(popen.pid), popen)


def _popen(argv: list[str], env: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    try:
        with log.open("ab") as output:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | env,
                start_new_session=True,
            )
    except OSError as error:
        raise SpawnError(f"{argv[0]}: {error.strerror or error}") from None
    # Nobody else can reap it, so the pid is its own even if it has ended by now.
    found = procfs.process(popen.pid)
    return popen, found.start_time if found is not None else 0


async def adopt(pid: int, start_time: int) -> Process | None:
    """Watch a process that somebody else started; None if it is gone, or its pid is another's by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    # Looked at after the pidfd was opened: from then on the pid cannot change hands unnoticed.
    found = await asyncio.to_thread(procfs.process, pid)
    if found is None or found.start_time != start_time or found.state in DEAD:
        os.close(pidfd)
        return None
    return Process(pid, start_time, pidfd)


def lives(record: ProcessRecord) -> bool:
    """Tell whether the process of a record still runs."""
    found = procfs.process(record.pid)
    return found is not None and found.start_time == record.start_time and found.state not in DEAD


def record_of(process: Process, argv: list[str]) -> ProcessRecord:
    """Make the record by which a later supervisor finds a process again."""
    return ProcessRecord(pid=process.pid, start_time=process.start_time, argv=argv, started=time.time())


def kill_session(session: int) -> list[int]:
    """Send SIGKILL to every living member of a session but its leader; return their pids.

    One whose first thread is a zombie lives as long as it has others: the last of them closes its files, and only then
    has a GPU its memory back.
    """
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == session:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(name)) != session:
                continue
            member = procfs.process(int(name))
            if member is not None and (member.state not in DEAD or _has_threads(int(name))):
                os.kill(int(name), signal.SIGKILL)
                found.append(int(name))
    return found


def _has_threads(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


async def end(process: Process, seconds: float) -> None:
    """Ask a process to end with SIGTERM, and kill its session if it has not after so many seconds."""
    process.signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
            return
    except TimeoutError:
        process.kill()
    await process.wait()


def has_gpu() -> bool:
    """Tell whether this machine has an NVIDIA GPU, without loading anything that knows about GPUs."""
    return Path("/dev/nvidiactl").exists()
