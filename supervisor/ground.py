"""What a cluster stands on, had before anything is started: its folder, its HTTP ports, a NATS server, the buckets."""

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from messages.bus import Bucket, Bus
from messages.config import Cluster, Http, Nats
from messages.ids import parse_slot
from messages.subjects import Subjects
from supervisor import spawner, state
from supervisor.dashboard.listen import listen
from supervisor.nats_server import NatsServer
from supervisor.ports import Ports, base_url
from supervisor.spec import Spec
from supervisor.state import ClusterRecord, Folder

log = logging.getLogger("troupe.supervisor")

BUS_WAIT: Final = 30.0


class StrandedError(Exception):
    """The state folder belongs to another cluster whose processes still run."""


class Ground:
    """The ground of one supervisor; `bus`, `registry`, `gates` and `record` are there once it is open.

    `listener` is the socket of the supervisor's page, None if it has none.
    """

    def __init__(self, cluster: Cluster, specs: dict[str, Spec], config: Path, folder: Folder) -> None:
        self.folder = folder
        self.subjects = Subjects(cluster.cluster)
        self.embedded = None if cluster.nats.urls else NatsServer(folder.nats, cluster.nats, cluster.cluster)
        self.ports = Ports()
        self.listener: socket.socket | None = None
        self.bus: Bus
        self.registry: Bucket
        self.gates: Bucket
        self.record: ClusterRecord
        self._cluster = cluster
        self._specs = specs
        self._config = config.resolve()
        self._nats = cluster.nats

    @property
    def arguments(self) -> list[str]:
        """What every actor is told on its command line; NATS of one's own is in the configuration, secrets and all."""
        common = ["--config", str(self._config), "--state", str(self.folder.root)]
        return common if self.embedded is None else [*common, "--nats", self.embedded.url]

    async def open(self) -> None:
        """Get hold of all of it.

        Raises ConfigError, PortError, NatsError, BusError or StrandedError, and has then let go of all of it again.
        """
        await asyncio.to_thread(self._check_folder)
        try:
            await asyncio.to_thread(self._take_ports)
            await self._have_server()
            await self._connect()
        except BaseException:
            self._close_ports()
            # Nothing of ours has been started yet; a server that others of ours depend on is left to them.
            if not await asyncio.to_thread(self._living):
                await self.stop_server()
            raise
        await asyncio.to_thread(self._write_record)

    async def renew(self) -> None:
        """Make anew what a server that lost its store would lack. Raises BusError."""
        self.registry = await self.bus.bucket(self.subjects.registry_bucket)
        self.gates = await self.bus.bucket(self.subjects.gate_bucket)
        await self.bus.ensure_stream(self.subjects.event_stream, [self.subjects.events])

    async def close(self, *, ended: bool) -> None:
        """Let go; where the whole cluster has ended, stop the server, last of all, and forget how it was reached."""
        await self.bus.close()
        self._close_ports()
        if ended:
            await self.stop_server()
            await asyncio.to_thread(self.folder.cluster_file.unlink, missing_ok=True)

    async def stop_server(self) -> None:
        """Stop the embedded server, if there is one."""
        if self.embedded is not None:
            await self.embedded.stop()

    def _living(self) -> list[str]:
        return [slot for slot, record in self.folder.slots().items() if spawner.lives(record)]

    def _check_folder(self) -> None:
        """Refuse a folder in which another cluster's processes run; take those of our own as ours."""
        known, living = self.folder.cluster(), self._living()
        if living and known is not None and (known.cluster, known.config) != (self._cluster.cluster, str(self._config)):
            raise StrandedError(
                f"{self.folder.root}: {', '.join(living)} still run, started from {known.config}; "
                "`troupe down` ends them, or use another --state"
            )

    def _take_ports(self) -> None:
        known = self.folder.cluster()
        serving = {(named.alias, named.role) for named in map(parse_slot, self._living())}
        for spec in self._specs.values():
            if spec.http is not None and spec.alias not in self.ports.of:
                before = known.ports.get(spec.alias) if known is not None else None
                self.ports.take(spec.alias, spec.http, before, shared=(spec.alias, "processor") in serving)

        if self._cluster.dashboard.enabled:
            before = urlsplit(known.dashboard).port if known is not None else None
            self.listener = listen(self._cluster.dashboard, before or 0)

    def _close_ports(self) -> None:
        self.ports.close()
        if self.listener is not None:
            self.listener.close()

    async def _have_server(self) -> None:
        if self.embedded is not None:
            adopted = await self.embedded.start()
            self._nats = Nats(url=self.embedded.url, max_payload=self._cluster.nats.max_payload)
            how = "runs on" if adopted else "started"
            log.info("NATS server %s (pid %s) at %s", how, self.embedded.pid, self.embedded.url)

    async def _connect(self) -> None:
        """Connect, and see that the server is fit for us."""
        self.bus = await Bus.connect(self._nats, name="supervisor", wait=BUS_WAIT)
        try:
            await self.bus.require_jetstream()
            await self.renew()
        except BaseException:
            await self.bus.close()
            raise

    def _write_record(self) -> None:
        doors: dict[str, Http] = {spec.alias: spec.http for spec in self._specs.values() if spec.http is not None}
        self.record = ClusterRecord(
            cluster=self._cluster.cluster,
            config=str(self._config),
            nats=self._nats,
            embedded=self.embedded is not None,
            http={alias: base_url(http, self.ports.of[alias]) for alias, http in doors.items()},
            models={spec.alias: spec.model for spec in self._specs.values() if spec.model},
            ports=self.ports.of,
            started=time.time(),
            external=[spec.slot for spec in self._specs.values() if spec.external],
            dashboard=self._page_url(),
        )
        state.write(self.folder.cluster_file, self.record)

    def _page_url(self) -> str:
        if self.listener is None:
            return ""
        return base_url(self._cluster.dashboard, int(self.listener.getsockname()[1]))
