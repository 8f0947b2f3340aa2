"""Where Prometheus scrapes a host: `/metrics`, on loopback unless the configuration says otherwise."""

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from actors.publisher.metrics import Ready, engines
from messages.config import Metrics

log = logging.getLogger("troupe.publisher")

PORT: Final = 9400
SHUTDOWN_SECONDS: Final = 1.0


class MetricsDoor:
    """The HTTP door; `ours` makes our own metrics, `folders` names the engines' files by slot."""

    def __init__(
        self, config: Metrics, ours: Callable[[], list[Metric]], folders: Callable[[], dict[str, str]]
    ) -> None:
        self._config = config
        self._ours = ours
        self._folders = folders
        self._one_at_a_time = asyncio.Lock()
        self._runner: web.ServerRunner | None = None
        self.address: str | None = None

    async def open(self) -> None:
        """Listen; where no port is configured and the usual one is taken, on a free one. Raises OSError."""
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        port = self._config.port
        try:
            await web.TCPSite(self._runner, self._config.host, PORT if port is None else port).start()
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise
            await web.TCPSite(self._runner, self._config.host, 0).start()
        host, bound = self._runner.addresses[0][:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        log.info("metrics for Prometheus at %s/metrics", self.address)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="there is /metrics here, and nothing else\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        async with self._one_at_a_time:
            theirs = await asyncio.to_thread(engines, self._folders())
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Ready(self._ours() + theirs))
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": kind})
