"""The cluster that a drill is played on: one that runs already, or one of the drill's own, started for it and ended."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from messages import codec, config
from messages.config import Http
from messages.subjects import Subjects
from messages.supervise import Said, Status
from supervisor import state
from supervisor.commands.common import ask
from supervisor.drills.observer import Observer
from supervisor.drills.proxy import Proxy
from supervisor.nats_server import NatsServer
from supervisor.spec import Spec
from supervisor.state import ClusterRecord, Folder, ProcessRecord


class StageError(Exception):
    """The cluster cannot be drilled on; the text says why."""


class Stage:
    """All that a fault needs: the folder, the configuration, the observer; `own` is None on a cluster that runs."""

    def __init__(
        self,
        folder: Folder,
        record: ClusterRecord,
        cluster: config.Cluster,
        specs: dict[str, Spec],
        observer: Observer,
        model: config.Model,
        own: "Own | None",
    ) -> None:
        self.folder = folder
        self.record = record
        self.cluster = cluster
        self.specs = specs
        self.observer = observer
        self.model = model
        self.own = own
        self.subjects = Subjects(record.cluster)

    async def status(self) -> Status | None:
        """Ask the supervisor how everything stands; None if none answers."""
        return await ask(self.observer.bus, self.record, "status", Status)

    async def order(self, order: str, slot: str) -> Said:
        """Ask the supervisor to drain or restart a slot. Raises StageError where it refuses."""
        said = await ask(self.observer.bus, self.record, order, Said, slot)
        if said is None or not said.done:
            raise StageError(f"{order} {slot}: {said.message if said is not None else 'no supervisor answers'}")
        return said

    async def process(self, slot: str) -> ProcessRecord:
        """Return what the folder says of a slot's process. Raises StageError."""
        record = await asyncio.to_thread(state.read, self.folder.slot(slot) / "process.json", ProcessRecord)
        if record is None:
            raise StageError(f"{self.folder.slot(slot)} knows no process")
        return record

    async def nats(self) -> ProcessRecord:
        """Return what the folder says of the embedded NATS server. Raises StageError where it is another's."""
        record = await asyncio.to_thread(state.read, self.folder.nats / "process.json", ProcessRecord)
        if record is None:
            raise StageError("the NATS server is none of this cluster's own (nats.url), so it is not ours to hurt")
        return record

    def whole(self) -> bool:
        """Whether the gate is open and nothing is missing, as far as the observer has read."""
        gate = self.observer.gates.get(self.model.slug)
        return gate is not None and gate.open and not gate.degraded


class Own:
    """A cluster started for a drill alone: on free ports, in a folder of its own, ended and cleared away after it."""

    def __init__(self, cluster: config.Cluster, folder: Path, *, proxied: bool = False) -> None:
        self.proxy: Proxy | None = None
        self._proxied = proxied
        self._server: NatsServer | None = None
        self.cluster = msgspec.convert(msgspec.to_builtins(cluster), config.Cluster)
        self.cluster.drills = "allowed"
        self.cluster.state = str(folder / "state")
        self.cluster.nats.port = 0
        self.cluster.publisher.http.port = 0
        if self.cluster.nats.urls:
            self.cluster.cluster = f"{cluster.cluster}-drill-{os.getpid()}"
        for model in self.cluster.models:
            if (part := model.cast.get("processor")) is not None:
                part.http = msgspec.structs.replace(part.http or Http(), port=0)
        self.folder = Folder(folder / "state")
        self.config = folder / "cluster.yaml"
        self.log = folder / "up.log"
        self.startup = 0.0
        self._process: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        """Start the first supervisor, and before it NATS with a proxy before that, where a fault wants one."""
        if self._proxied and self.cluster.nats.urls:
            raise StageError("a proxy can be put only before a NATS server of the drill's own; leave nats.url out")
        if self._proxied:
            folder = self.config.parent / "nats"
            self._server = NatsServer(folder, self.cluster.nats, self.cluster.cluster)
            await self._server.start()
            self.proxy = Proxy(self._server.url)
            await self.proxy.open()
            self.cluster.nats.url = self.proxy.url
        await self.up()

    async def up(self) -> None:
        """Start a supervisor on the folder."""
        await asyncio.to_thread(self._write)
        self._process = await _start(["up", str(self.config), "--state", str(self.folder.root)], self.log)

    async def ready(self, seconds: float) -> ClusterRecord:
        """Wait until every gate is open; return how the cluster is reached. Raises StageError."""
        assert self._process is not None
        began = time.time()
        waiting = asyncio.ensure_future(
            _answer("status", "--json", "--wait-ready", f"{seconds:g}", "--state", str(self.folder.root))
        )
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                words = await asyncio.to_thread(state.last_words, self.log)
                raise StageError(f"the cluster did not start: {words}")
            code, output = waiting.result()
        finally:
            waiting.cancel()
            ended.cancel()
            await asyncio.gather(waiting, ended, return_exceptions=True)
        record = await asyncio.to_thread(self.folder.cluster)
        if code or record is None:
            words = await asyncio.to_thread(state.last_words, self.log)
            raise StageError(f"the cluster was not ready within {seconds:g} s: {words}")
        found = codec.from_json(output, Status)
        self.startup = max(gate.since for gate in found.gates) - began
        return record

    async def down(self) -> None:
        """End all of it; what does not end in good order is killed."""
        code, output = await _answer("down", "--timeout", "20", "--state", str(self.folder.root))
        if code:
            await _answer("down", "--now", "--state", str(self.folder.root))
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                async with asyncio.timeout(5):
                    await self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self.proxy is not None:
            await self.proxy.close()
        if self._server is not None:
            await self._server.stop()

    def _write(self) -> None:
        self.config.write_bytes(msgspec.yaml.encode(msgspec.to_builtins(self.cluster)))
        self.config.chmod(0o600)


def model_of(cluster: config.Cluster, name: str | None) -> config.Model:
    """Find the model to drill: the one named, or the only one that generates. Raises StageError."""
    able = [model for model in cluster.models if not model.embeds and "completions" in model.served]
    if name is not None:
        able = [model for model in able if name in (model.name, model.slug)]
    if len(able) != 1:
        known = ", ".join(model.name for model in cluster.models)
        why = f"is {name!r}" if name is not None else "can be told to be the one meant"
        raise StageError(f"no one model that serves completions {why} (there is {known}); --model names one")
    return able[0]


async def _start(arguments: list[str], log: Path) -> asyncio.subprocess.Process:
    def opened() -> int:
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    output = await asyncio.to_thread(opened)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "supervisor.cli",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


async def _answer(*arguments: str) -> tuple[int, bytes]:
    """Run another command of ours to its end; return its exit code and what it has written."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output
