"""Tells all viewers what changes, by server-sent events: each thing is put into words once, whoever listens.

A viewer first gets a snapshot, then changes. One that does not read as fast as they come has a bounded queue; when
that is full the queue is thrown away, and a new snapshot is what it gets next.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from messages import codec
from supervisor.dashboard import view
from supervisor.dashboard.history import QUIET, History, Line, shown
from supervisor.dashboard.refusal import RefusalError
from supervisor.dashboard.view import View

log = logging.getLogger("troupe.supervisor")

VIEWERS: Final = 100
QUEUED: Final = 400
QUEUED_BYTES: Final = 1 << 20
PAUSE: Final = 0.1
"""Seconds between two looks at the cluster at least: what happens together is told together."""
FIGURES: Final = 1.0
"""Seconds after which figures are looked at again while nothing happens."""
BEAT: Final = 5.0
"""Seconds of silence after which a viewer is told that there is nothing to tell."""
STUCK: Final = 60.0
"""Seconds after which a viewer that takes nothing at all is let go."""
EVENTS: Final = 300
"""Events of a snapshot."""
CATCH_UP: Final = 1_000
SSE: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
RETRY: Final = b"retry: 1000\n\n"

Extras = Callable[[], dict[str, Any]]


class Viewer:
    """One open page: what it has yet to be sent; `behind` says that it has lost something and needs a snapshot."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.size = 0
        self.behind = False
        self.wake = asyncio.Event()

    def put(self, frame: bytes) -> None:
        """Queue a frame; where there are too many, forget all of them."""
        if self.behind:
            return
        if len(self.frames) >= QUEUED or self.size + len(frame) > QUEUED_BYTES:
            self.frames.clear()
            self.size = 0
            self.behind = True
        else:
            self.frames.append(frame)
            self.size += len(frame)
        self.wake.set()

    def take(self) -> bytes:
        """Take all that is queued."""
        taken = b"".join(self.frames)
        self.frames.clear()
        self.size = 0
        return taken


class Live:
    """All viewers; `look` makes the status anew, `extras` what else a snapshot holds, `more` tells what time brings."""

    def __init__(self, look: Callable[[], View], history: History, extras: Extras, more: Callable[[], None]) -> None:
        self._look = look
        self._history = history
        self._extras = extras
        self._more = more
        self._viewers: set[Viewer] = set()
        self._changed = asyncio.Event()
        self._watched = asyncio.Event()
        self._closing = False
        self._view: View | None = None
        self._snapshot: bytes | None = None
        self._snapshot_at = 0.0
        self._history_id = secrets.token_hex(4)
        self.dropped = 0

    @property
    def viewers(self) -> int:
        """How many are watching."""
        return len(self._viewers)

    def changed(self) -> None:
        """Say that something has happened in the cluster."""
        self._changed.set()

    def happened(self, lines: list[Line], *, anew: bool = False) -> None:
        """Tell events; with `anew` the history is another one, and all begin again."""
        self._snapshot = None
        if anew:
            self._history_id = secrets.token_hex(4)
            for viewer in self._viewers:
                self._renew(viewer)
        elif self._viewers:
            for line in lines:
                if line.event.topic not in QUIET:
                    self.tell("event", line.shown, seq=line.seq)

    def tell(self, kind: str, value: Any, *, seq: int | None = None) -> None:
        """Tell all viewers something, put into words once."""
        self._snapshot = None
        if self._viewers:
            frame = _frame(kind, value, self._id(seq))
            for viewer in self._viewers:
                viewer.put(frame)

    async def keep(self) -> None:
        """Look at the cluster when something happens, and every second for the figures; while nobody watches, never."""
        while True:
            await self._watched.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIGURES):
                    await self._changed.wait()
            self._changed.clear()
            self._look_again()
            self._more()
            await asyncio.sleep(PAUSE)

    def close(self) -> None:
        """Let all viewers go."""
        self._closing = True
        for viewer in self._viewers:
            viewer.wake.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one viewer until it goes. Raises RefusalError where there are too many."""
        if len(self._viewers) >= VIEWERS:
            raise RefusalError(503, f"{VIEWERS} pages are open already; close some")
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        viewer = Viewer()
        viewer.put(RETRY + self._first(request.headers.get("Last-Event-ID", "")))
        self._viewers.add(viewer)
        self._watched.set()
        try:
            while not self._closing:
                await self._send(response, viewer)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._watched.clear()
                self._view = self._snapshot = None
        return response

    async def _send(self, response: web.StreamResponse, viewer: Viewer) -> None:
        """Send what there is, or after a while of silence that there is nothing."""
        try:
            async with asyncio.timeout(BEAT):
                await viewer.wake.wait()
        except TimeoutError:
            viewer.put(_frame("beat", round(time.time(), 2)))
        viewer.wake.clear()
        if viewer.behind:
            viewer.behind = False
            self.dropped += 1
            viewer.put(self._whole())
        if data := viewer.take():
            async with asyncio.timeout(STUCK):
                await response.write(data)

    def _renew(self, viewer: Viewer) -> None:
        viewer.frames.clear()
        viewer.size = 0
        viewer.behind = True
        viewer.wake.set()

    def _look_again(self) -> None:
        """See what has changed, and tell it."""
        before, self._view = self._view, self._look()
        if before is None:
            self._snapshot = None
        elif told := view.changes(before, self._view):
            self.tell("change", told)

    def _first(self, last: str) -> bytes:
        """Make what a new viewer gets: everything, or if it was here before the status and what it has missed."""
        named, _, number = last.partition("-")
        ours = named == self._history_id and number.isdecimal() and len(number) < 16
        missed = self._history.after(int(number), CATCH_UP) if ours else None
        if missed is None:
            return self._whole()
        return self._say_whole([line for line in missed if line.event.topic not in QUIET], anew=False)

    def _whole(self) -> bytes:
        """Make the snapshot, once for all that need it before something changes."""
        if self._snapshot is None or time.monotonic() - self._snapshot_at > FIGURES:
            self._snapshot_at = time.monotonic()
            self._snapshot = self._say_whole(self._history.select(most=EVENTS), anew=True)
        return self._snapshot

    def _say_whole(self, lines: list[Line], *, anew: bool) -> bytes:
        if self._view is None:
            self._view = self._look()
        told = view.whole(self._view) | self._extras() | {"events": shown(lines), "anew": anew}
        return _frame("snapshot", told, self._id(self._history.newest))

    def _id(self, seq: int | None) -> str:
        """Name a place in the history: browsers say it when they come again. Another history has other names."""
        return f"{self._history_id}-{seq}" if seq is not None else ""


def _frame(kind: str, value: Any, name: str = "") -> bytes:
    """Write one server-sent event; JSON has no line breaks in it."""
    number = b"id: %s\n" % name.encode() if name else b""
    return b"%sevent: %s\ndata: %s\n\n" % (number, kind.encode(), codec.to_json(value))
