"""Drills that the page starts: `troupe drill NAME` as a process of this host, one at once, its words told live.

The process outlives the supervisor: its words go to a file, and what runs is written down, so that the next
supervisor tells on. Ending it is asking it to heal what it hurt (SIGTERM).
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from messages import codec
from supervisor import spawner, state
from supervisor.dashboard.refusal import RefusalError
from supervisor.spawner import Process

log = logging.getLogger("troupe.supervisor")

POLL: Final = 0.25
"""Seconds between two looks at a drill's words while one runs: a file, which nobody announces."""
HEAL_SECONDS: Final = 10.0
SHOWN_BYTES: Final = 64 << 10
RUNS: Final = 20
REPORT_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a report may do: nothing but be looked at."""


class Playing(Struct, kw_only=True):
    """A drill that was started from here."""

    drill: str
    pid: int
    start_time: int
    started: float


class Drills:
    """The drills of this cluster's page; `tell` shows their state to all viewers."""

    def __init__(self, root: Path, allowed: bool, tell: Callable[[str, Any], None]) -> None:
        self._root = root
        self._reports = root / "drills"
        self._tell = tell
        self._playing: Playing | None = None
        self._process: Process | None = None
        self._text = ""
        self._busy = False
        self._known: list[dict[str, Any]] | None = None
        self.allowed = allowed

    @property
    def status(self) -> dict[str, Any]:
        """What is played now, and its words so far."""
        playing = self._playing
        return {
            "allowed": self.allowed,
            "playing": {"drill": playing.drill, "started": playing.started} if playing is not None else None,
            "text": self._text,
        }

    async def listing(self) -> dict[str, Any]:
        """What drills there are, and what the last ones came to. Raises RefusalError where the plan cannot be read."""
        if self._known is None:
            self._known = await asyncio.to_thread(self._read_plan)
        return self.status | {"drills": self._known, "runs": await asyncio.to_thread(self._runs)}

    async def take_over(self) -> None:
        """Go on telling of a drill that an earlier supervisor started, for as long as it runs. Run it as a task."""
        found = await asyncio.to_thread(state.read, self._reports / "playing.json", Playing)
        if found is None:
            return
        process = await spawner.adopt(found.pid, found.start_time)
        if process is None:
            await asyncio.to_thread((self._reports / "playing.json").unlink, missing_ok=True)
            return
        self._playing, self._process = found, process
        await self.follow()

    async def start(self, name: str) -> None:
        """Start a drill. Raises RefusalError where it may not be, or one is at it."""
        if not self.allowed:
            raise RefusalError(403, "this cluster refuses drills; `drills: allowed` in its configuration allows them")
        if self._playing is not None or self._busy:
            at_it = f" ({self._playing.drill})" if self._playing is not None else ""
            raise RefusalError(409, f"a drill is being played already{at_it}; one at once")
        self._busy = True
        try:
            known = [one["name"] for one in (await self.listing())["drills"]]
            if name not in known:
                raise RefusalError(404, f"there is no drill {name[:80]!r}; there are {', '.join(known)}")
            await asyncio.to_thread(_make_ready, self._reports)
            command = [sys.executable, "-m", "supervisor.cli", "drill", name, "--state", str(self._root)]
            command += ["--report", str(self._reports)]
            process = await spawner.start(command, env={}, log=self._reports / "playing.log")
            self._playing = Playing(drill=name, pid=process.pid, start_time=process.start_time, started=time.time())
            self._process = process
            await asyncio.to_thread(state.write, self._reports / "playing.json", self._playing)
        except spawner.SpawnError as error:
            raise RefusalError(500, f"the drill could not be started: {error}") from None
        finally:
            self._busy = False

    def stop(self) -> None:
        """Ask the drill to heal what it hurt and to end. Raises RefusalError where none is played."""
        if self._process is None:
            raise RefusalError(409, "no drill is being played")
        self._process.signal(signal.SIGTERM)

    async def report(self, run: str) -> bytes:
        """Return the report of one run. Raises RefusalError."""
        folder = (self._reports / run).resolve()
        if folder.parent != self._reports.resolve() or not run or run.startswith("."):
            raise RefusalError(404, "there is no such report")
        try:
            return await asyncio.to_thread((folder / "report.html").read_bytes)
        except OSError:
            raise RefusalError(404, f"there is no report of {run[:80]!r}") from None

    async def close(self) -> None:
        """Have the drill heal what it hurt and end, where the cluster itself ends."""
        if self._process is not None:
            await spawner.end(self._process, HEAL_SECONDS)

    async def follow(self) -> None:
        """Tell the words of the drill that was just started, until it has ended. Run it as a task."""
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        try:
            while True:
                await asyncio.wait({ended}, timeout=POLL)
                over = ended.done()
                text = await asyncio.to_thread(_words, self._reports / "playing.log")
                if text != self._text or over:
                    self._text = text
                    if over:
                        self._playing = self._process = None
                    self._tell("drill", self.status)
                if over:
                    break
        finally:
            ended.cancel()
        await asyncio.to_thread((self._reports / "playing.json").unlink, missing_ok=True)

    @staticmethod
    def _read_plan() -> list[dict[str, Any]]:
        # Loaded when they are asked for: the supervisor itself has no use for them.
        from supervisor.cli import drills_file
        from supervisor.drills import plan
        from supervisor.drills.faults import FAULTS

        try:
            chosen = plan.read(Path(drills_file()), FAULTS)
        except plan.PlanError as error:
            raise RefusalError(404, f"there is no plan of drills: {error}") from None
        return [
            {"name": name, "what": one.what, "expected": one.hypothesis, "faults": [step.fault for step in one.steps]}
            for name, one in chosen.drills.items()
        ]

    def _runs(self) -> list[dict[str, Any]]:
        """The last runs, newest first, with their results."""
        from supervisor.drills.outcome import Outcome

        path = self._reports / "runs.jsonl"
        try:
            lines = path.read_bytes().splitlines()[-RUNS:]
        except OSError:
            return []
        found = []
        for line in reversed(lines):
            with contextlib.suppress(msgspec.DecodeError):
                one = codec.from_json(line, Outcome)
                found.append(
                    {
                        "run": one.run,
                        "drill": one.drill,
                        "result": one.result,
                        "why": one.why,
                        "started": one.started,
                        "detected": one.detected,
                        "recovered": one.recovered,
                    }
                )
        return found


async def end_playing(root: Path) -> bool:
    """Have a drill that was started from the page heal what it hurt and end; say whether one was at it."""
    path = root / "drills" / "playing.json"
    found = await asyncio.to_thread(state.read, path, Playing)
    process = await spawner.adopt(found.pid, found.start_time) if found is not None else None
    if process is not None:
        await spawner.end(process, HEAL_SECONDS)
    await asyncio.to_thread(path.unlink, missing_ok=True)
    return process is not None


def _make_ready(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "playing.log").write_bytes(b"")


def _words(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return data[-SHOWN_BYTES:].decode(errors="replace")
