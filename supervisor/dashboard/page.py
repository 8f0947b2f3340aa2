"""The supervisor's page as a whole: its routes, what they tell, and the tasks that keep it live.

Life: made once the bus is there; further routes are added to `server`; `open`; then `keep` runs until the end; `close`.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiohttp import web

from messages import event_log, ways
from messages.bus import BusError
from messages.config import Cluster
from messages.event_log import Told
from supervisor.dashboard import asked, history, view
from supervisor.dashboard.drills import REPORT_POLICY, Drills
from supervisor.dashboard.history import History
from supervisor.dashboard.live import Live
from supervisor.dashboard.orders import Orders
from supervisor.dashboard.plots import Plots
from supervisor.dashboard.refusal import RefusalError
from supervisor.dashboard.server import Server
from supervisor.dashboard.static_files import StaticFiles
from supervisor.dashboard.tail import LINES, path_of, tail
from supervisor.dashboard.view import View
from supervisor.desk import Desk
from supervisor.ground import Ground
from supervisor.teller import Teller
from supervisor.traffic import Ledger

log = logging.getLogger("troupe.supervisor")

MOST_EVENTS: Final = 1_000
AGAIN: Final = 5.0
ASKED_AT_ONCE: Final = 2
"""Look-ups of requests under way at a time: each asks every processor."""
ASKED: Final = 20
"""Look-ups under way or waiting for their turn."""

Own = Callable[[Coroutine[Any, Any, None]], None]


class Page:
    """The page of one supervisor, on a socket that listens already."""

    def __init__(
        self,
        ground: Ground,
        cluster: Cluster,
        listener: socket.socket,
        secret: str,
        desk: Desk,
        teller: Teller,
        ledger: Ledger,
        own: Own,
    ) -> None:
        self._ground = ground
        self._desk = desk
        self._teller = teller
        self._own = own
        self._history = History()
        self._files = StaticFiles()
        self._seen: View | None = None
        self._rates = view.Rates()
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._asked = 0
        self._plots = Plots(ledger)
        self._live = Live(self._look, self._history, self._extras, self._more)
        self._drills = Drills(ground.folder.root, cluster.drills == "allowed", self._live.tell)
        self.server = Server(listener, cluster.dashboard.host, cluster.dashboard.names, secret)
        self._add_routes()

    def _add_routes(self) -> None:
        add = self.server.add
        add("GET", "/", self._files.serve)
        add("GET", "/static/{name:.+}", self._files.serve)
        add("GET", "/api/status", self._status)
        add("GET", "/api/live", self._live.serve)
        add("GET", "/api/events", self._events)
        add("GET", "/api/events/{seq}", self._event, token=True)
        add("GET", "/api/token", self._token, token=True)
        add("POST", "/api/slots/{slot}/{order}", Orders(self._desk, self._told_order).order, token=True)
        add("GET", "/api/slots/{slot}/log", self._log, token=True)
        add("GET", "/api/traffic", self._traffic)
        add("GET", "/api/requests/{request}", self._request)
        add("GET", "/api/drills", self._list_drills)
        add("POST", "/api/drills/{name}", self._start_drill, token=True)
        add("DELETE", "/api/drills", self._stop_drill, token=True)
        add("GET", "/api/drills/{run}/report", self._report)

    async def open(self) -> None:
        """Begin to answer."""
        await asyncio.to_thread(self._files.read)
        await self.server.open()

    async def keep(self) -> None:
        """Keep the history and the viewers, for ever; what fails here is told, and nothing but the page suffers."""
        stream, newest = self._ground.subjects.event_stream, history.KEPT
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(event_log.follow(self._ground.bus, stream, self._take, newest=newest))
                    tasks.create_task(self._live.keep())
                    tasks.create_task(self._drills.take_over())
            except Exception:
                log.exception("the page failed; it goes on in %g s", AGAIN)
                await asyncio.sleep(AGAIN)

    async def close(self, *, ended: bool) -> None:
        """Let the viewers go and answer no more; where the cluster has ended, a drill ends, too."""
        if ended:
            await self._drills.close()
        self._live.close()
        await self.server.close()

    def changed(self) -> None:
        """Say that something has happened in the cluster."""
        self._live.changed()

    # What there is to tell.

    def _look(self) -> View:
        self._seen = view.of_status(
            self._desk.status(), self._plots.now(time.time()), self._rates, self._seen, time.time()
        )
        return self._seen

    def _extras(self) -> dict[str, Any]:
        return {"drill": self._drills.status, "history": self._history.known, "points": self._plots.all(time.time())}

    def _more(self) -> None:
        """Tell of the last few seconds' traffic, once they are over."""
        if points := self._plots.more(time.time()):
            self._live.tell("points", points)

    def _take(self, told: list[Told], anew: bool) -> None:
        self._live.happened(self._history.take(told, anew), anew=anew)

    def _told_order(self, slot: str, reason: str, detail: dict[str, Any]) -> None:
        generation = self._desk.generation(slot)
        self._teller.publish(
            "restart", slot, "asked", generation=generation, reason=reason, planned=True, detail=detail
        )

    # Routes.

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return Server.json(view.whole(self._look()))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        before = asked.number(request, "before", 0, 1, 1 << 53)
        found = self._history.select(
            of=asked.word(request, "of"),
            topic=asked.word(request, "topic"),
            what=asked.word(request, "what"),
            before=before or None,
            since=asked.moment(request, "since"),
            quiet=asked.word(request, "quiet") != "no",
            most=asked.number(request, "limit", 200, 1, MOST_EVENTS),
        )
        return Server.json({"events": history.shown(found), "newest": self._history.newest})

    async def _event(self, request: web.Request) -> web.StreamResponse:
        """One event, log lines and all."""
        seq = request.match_info["seq"]
        found = self._history.find(int(seq)) if seq.isdecimal() and len(seq) < 16 else None
        if found is None:
            raise RefusalError(404, f"there is no event {seq[:20]!r} among the newest {history.KEPT}")
        return Server.json({"seq": found.seq, "event": found.event})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        """Say that the token is the right one."""
        return Server.json({"ok": True})

    async def _log(self, request: web.Request) -> web.StreamResponse:
        slot = request.match_info["slot"]
        if not self._desk.knows(slot):
            raise RefusalError(404, f"there is no slot {slot[:80]!r} here; GET /api/status lists them")
        path = path_of(self._ground.folder.slot(slot), asked.number(request, "previous", 0, 0, 1_000_000))
        text = await asyncio.to_thread(tail, path, asked.number(request, "lines", 300, 1, LINES))
        return web.Response(text=text, content_type="text/plain", headers={"Cache-Control": "no-store"})

    async def _traffic(self, request: web.Request) -> web.StreamResponse:
        now = time.time()
        return Server.json({"now": self._plots.now(now), "points": self._plots.all(now)})

    async def _request(self, request: web.Request) -> web.StreamResponse:
        """Where a request has been, by the word of the processors that remember it."""
        try:
            wanted = ways.request_id(request.match_info["request"])
        except ValueError as error:
            raise RefusalError(400, str(error).partition(";")[0]) from None
        if self._asked >= ASKED:
            raise RefusalError(429, f"{ASKED} requests are being looked up already; ask again in a moment")
        self._asked += 1
        try:
            async with self._asking:
                there = await ways.processors(self._ground.registry)
                found = await ways.ways(self._ground.bus, self._ground.subjects, there, wanted)
        except BusError as error:
            raise RefusalError(503, f"the processors cannot be asked: {error}") from None
        finally:
            self._asked -= 1
        if not found:
            raise RefusalError(404, f"no processor that is there ({', '.join(there) or 'none'}) remembers {wanted}")
        return Server.json({"ways": found})

    async def _list_drills(self, request: web.Request) -> web.StreamResponse:
        return Server.json(await self._drills.listing())

    async def _start_drill(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        await self._drills.start(name)
        by = f"asked for by the page, from {request.remote}"
        self._teller.publish("drill", name, "asked", reason=by, planned=True)
        self._own(self._drills.follow())
        self._live.tell("drill", self._drills.status)
        return Server.json({"done": True, "message": f"drill {name} begins"})

    async def _stop_drill(self, request: web.Request) -> web.StreamResponse:
        self._drills.stop()
        return Server.json({"done": True, "message": "the drill heals what it hurt, and ends"})

    async def _report(self, request: web.Request) -> web.StreamResponse:
        body = await self._drills.report(request.match_info["run"])
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)
