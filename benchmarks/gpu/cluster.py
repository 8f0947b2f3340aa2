"""A Troupe cluster for a measurement: started from a dict, waited for, watched, and stopped again."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.rig import ROOT
from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.lifecycle import Registration, State
from messages.subjects import Subjects
from messages.supervise import Status

TROUPE = [sys.executable, "-m", "supervisor.cli"]


class NotReadyError(Exception):
    """The cluster did not become ready in time; the text has the ends of its logs."""


@dataclass
class Cluster:
    """A running cluster: its status when it became ready, its state folder, and how long it took in seconds."""

    status: Status
    state: Path
    seconds: float
    registrations: "Registrations"

    def http(self, alias: str) -> str:
        """The base URL of a model's HTTP door, without a slash at its end."""
        return self.status.http[alias].rstrip("/")

    async def troupe(self, *words: str, wait: float = 60) -> str:
        """Run a command of `troupe` against it and return what it says; raises RuntimeError if it fails."""
        command = [*TROUPE, *words, "--state", str(self.state)]
        said = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=wait, check=False
        )
        if said.returncode:
            raise RuntimeError(f"troupe {' '.join(words)}: {said.stdout}{said.stderr}")
        return said.stdout


@contextlib.asynccontextmanager
async def cluster(folder: Path, config: dict[str, Any], wait: float) -> AsyncIterator[Cluster]:
    """Run a cluster in a folder of its own until the block is left; `wait` seconds at most until it is ready.

    `config` is what stands in a configuration file. Raises NotReadyError, with the ends of the logs, where it is not.
    """
    path, state = folder / "cluster.yaml", folder / "state"
    _write(path, {"drills": "allowed", "dashboard": {"enabled": False}} | config)
    began = time.monotonic()
    with (folder / "up.log").open("wb") as log:
        up = await asyncio.create_subprocess_exec(
            *TROUPE, "up", str(path), "--state", str(state), cwd=ROOT, stdout=log, stderr=log
        )
    try:
        status = await _ready(up, state, began + wait)
        if status is None:
            raise NotReadyError(f"not ready after {time.monotonic() - began:.0f} s\n{logs(folder)}")
        seconds = time.monotonic() - began
        bus = await Bus.connect(Nats(url=status.nats), name="benchmark", wait=5)
        registrations = Registrations()
        keeping = asyncio.ensure_future(registrations.keep(bus))
        try:
            yield Cluster(status, state, seconds, registrations)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await bus.close()
    finally:
        await _stop(up, state)


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.yaml.encode(config))


async def _ready(up: asyncio.subprocess.Process, state: Path, deadline: float) -> Status | None:
    while time.monotonic() < deadline and up.returncode is None:
        command = [*TROUPE, "status", "--json", "--wait-ready", "5", "--state", str(state)]
        said = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        if said.returncode == 0:
            return codec.from_json(said.stdout.encode(), Status)
        await asyncio.sleep(0.2)
    return None


async def _stop(up: asyncio.subprocess.Process, state: Path) -> None:
    """Ask twice, as Ctrl-C does, the second time without a drain; then end it."""
    for seconds in (3, 15):
        with contextlib.suppress(ProcessLookupError):
            up.send_signal(2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await up.wait()
                return
    down = await asyncio.create_subprocess_exec(*TROUPE, "down", "--now", "--state", str(state), cwd=ROOT)
    await down.wait()
    if up.returncode is None:
        up.kill()
        await up.wait()


def logs(folder: Path, most: int = 2_500) -> str:
    """The ends of all logs below a folder, for what went wrong."""
    files = sorted(found for found in folder.rglob("*") if found.is_file())
    kept = [path for path in files if path.suffix == ".log" or path.name.startswith("log") or "logs" in path.parts]
    return "\n".join(f"--- {path.relative_to(folder)}\n{path.read_text(errors='replace')[-most:]}" for path in kept)


class Registrations:
    """Each slot's newest registration, as it is seen."""

    def __init__(self) -> None:
        self.known: dict[str, Registration] = {}
        self.changed = asyncio.Condition()

    async def keep(self, bus: Bus) -> None:
        """Follow the registry until cancelled."""
        bucket = await bus.bucket(Subjects().registry_bucket)
        news: asyncio.Queue[bytes] = asyncio.Queue()

        def whole(values: dict[str, bytes]) -> None:
            for key, value in values.items():
                change(key, value)

        def change(key: str, value: bytes | None) -> None:
            if value is not None and not key.startswith("gen."):
                news.put_nowait(value)

        keeping = asyncio.ensure_future(bucket.keep(">", whole, change))
        try:
            while True:
                found = codec.from_json(await news.get(), Registration)
                async with self.changed:
                    self.known[found.slot] = found
                    self.changed.notify_all()
        finally:
            keeping.cancel()

    async def ready(self, slot: str, generation: int, seconds: float) -> Registration:
        """Wait until that generation of a slot, or a later one, is ready; raises TimeoutError."""

        def there() -> bool:
            known = self.known.get(slot)
            return known is not None and known.generation >= generation and known.state is State.READY

        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(there)
        return self.known[slot]
