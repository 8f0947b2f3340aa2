"""Viewers: a snapshot, then changes; who comes back catches up; who does not read is bounded, and begins again."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from messages.event_log import Told
from messages.lifecycle import Event
from messages.supervise import SlotStatus, Status
from supervisor.dashboard import live, view
from supervisor.dashboard.history import History
from supervisor.dashboard.live import Live
from supervisor.dashboard.server import Server
from supervisor.dashboard.view import View
from tests.conftest import eventually


class Scene:
    """A server with nothing but viewers, of a cluster that is made up."""

    def __init__(self) -> None:
        self.status = Status(
            cluster="t",
            host="h",
            uptime=10.0,
            nats=["nats://user:secret@127.0.0.1:4222"],
            slots=[
                SlotStatus(slot=f"demo-decode-{n}", role="decode", model="demo", state="ready", seconds=5.0)
                for n in range(3)
            ],
        )
        self.looks = 0
        self.seen: View | None = None
        self.rates = view.Rates()
        self.history = History()
        self.live = Live(self.look, self.history, lambda: {"drill": {}}, lambda: None)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.server = Server(listener, "127.0.0.1", [], "token")
        self.server.add("GET", "/api/live", self.live.serve)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.seq = 0

    def look(self) -> View:
        self.looks += 1
        self.seen = view.of_status(self.status, {}, self.rates, self.seen, time.time())
        return self.seen

    def happen(self, what: str, *, anew: bool = False, reason: str = "") -> None:
        self.seq += 1
        event = Event(topic="restart", of="demo-decode-0", what=what, at=time.time(), reason=reason)
        self.live.happened(self.history.take([Told(self.seq, event, b"")], anew), anew=anew)


class Stream:
    """One viewer's connection, event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.last = ""

    async def next(self, *kinds: str) -> tuple[str, Any]:
        """Return the next event of one of these kinds."""
        async with asyncio.timeout(10):
            while True:
                lines: dict[str, str] = {}
                while line := (await self._response.content.readline()).decode().rstrip("\n"):
                    name, _, value = line.partition(": ")
                    lines[name] = value
                self.last = lines.get("id", self.last)
                if lines.get("event") in kinds:
                    return lines["event"], json.loads(lines["data"])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    await made.server.open()
    keeping = asyncio.ensure_future(made.live.keep())
    yield made
    made.live.close()
    await made.server.close()
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


@contextlib.asynccontextmanager
async def watching(scene: Scene, last: str = "") -> AsyncIterator[Stream]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as client:
        headers = {"Last-Event-ID": last} if last else {}
        async with client.get(f"{scene.url}/api/live", headers=headers) as response:
            assert response.status == 200
            yield Stream(response)


async def test_a_snapshot_then_changes(scene: Scene) -> None:
    scene.happen("died", anew=True)
    async with watching(scene) as stream:
        _, whole = await stream.next("snapshot")
        assert set(whole["slots"]) == {"demo-decode-0", "demo-decode-1", "demo-decode-2"}
        assert [event["what"] for event in whole["events"]] == ["died"]
        assert "secret" not in json.dumps(whole)
        scene.status.slots[1].state = "loading"
        scene.live.changed()
        _, change = await stream.next("change")
        assert set(change["slots"]) == {"demo-decode-1"}
        assert change["slots"]["demo-decode-1"]["state"] == "loading"
        scene.happen("ready")
        _, event = await stream.next("event")
        assert (event["what"], event["seq"]) == ("ready", 2)


async def test_nobody_watching_costs_no_look_at_the_cluster(scene: Scene) -> None:
    for _ in range(5):
        scene.live.changed()
        await asyncio.sleep(0)
    assert scene.looks == 0
    async with watching(scene) as stream:
        await stream.next("snapshot")
    await eventually(lambda: scene.live.viewers == 0)


async def test_who_comes_back_gets_what_it_missed(scene: Scene) -> None:
    scene.happen("a", anew=True)
    async with watching(scene) as stream:
        await stream.next("snapshot")
        scene.happen("b")
        await stream.next("event")
        last = stream.last
    scene.happen("c")
    scene.happen("d")
    async with watching(scene, last) as stream:
        _, whole = await stream.next("snapshot")
        assert not whole["anew"]
        assert [event["what"] for event in whole["events"]] == ["c", "d"]
    for strange in ("no-such-9", "99999999999999999999", last.partition("-")[0] + "-777"):
        async with watching(scene, strange) as stream:
            _, whole = await stream.next("snapshot")
            assert whole["anew"]
            assert [event["what"] for event in whole["events"]] == ["a", "b", "c", "d"]


async def test_one_serialisation_serves_all_viewers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    write = live._frame

    def counted(kind: str, value: Any, name: str = "") -> bytes:
        made.append(kind)
        return write(kind, value, name)

    monkeypatch.setattr(live, "_frame", counted)
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watching(scene)) for _ in range(10)]
        for stream in streams:
            await stream.next("snapshot")
        made.clear()
        scene.happen("ready")
        for stream in streams:
            assert (await stream.next("event"))[1]["what"] == "ready"
        assert made.count("event") == 1


async def test_a_viewer_that_does_not_read_is_bounded_and_begins_again(scene: Scene) -> None:
    scene.happen("a", anew=True)
    async with watching(scene) as stream:
        await stream.next("snapshot")
        (viewer,) = scene.live._viewers
        deadline = time.monotonic() + 15
        while not scene.live.dropped and time.monotonic() < deadline:
            for _ in range(100):
                scene.happen("noise", reason="x" * 1_900)
            assert viewer.size <= live.QUEUED_BYTES
            assert len(viewer.frames) <= live.QUEUED
            await asyncio.sleep(0.01)
            if viewer.behind:
                # It has lost something; now it reads again.
                break
        assert viewer.behind or scene.live.dropped
        scene.status.slots[0].state = "failed"
        _, whole = await stream.next("snapshot")
        assert whole["anew"]
        await eventually(lambda: scene.live.dropped == 1)


async def test_another_history_is_told_whole(scene: Scene) -> None:
    scene.happen("a", anew=True)
    async with watching(scene) as stream:
        await stream.next("snapshot")
        scene.happen("z", anew=True)
        _, whole = await stream.next("snapshot")
        assert [event["what"] for event in whole["events"]] == ["z"]


async def test_too_many_viewers_are_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "VIEWERS", 1)
    async with watching(scene) as stream, aiohttp.ClientSession() as client:
        await stream.next("snapshot")
        async with client.get(f"{scene.url}/api/live") as response:
            assert response.status == 503
            assert "1 pages are open already" in (await response.json())["error"]


def test_tokens_a_second_are_measured_over_some_seconds() -> None:
    rates = view.Rates()
    assert rates.of("demo-decode-0", 5_000, 100.0) == 0.0
    assert rates.of("demo-decode-0", 5_500, 101.0) == 0.0
    assert rates.of("demo-decode-0", 6_000, 102.0) == 500.0
    assert rates.of("demo-decode-0", 6_000, 103.0) == 500.0
    assert rates.of("demo-decode-0", 6_000, 104.0) == 0.0
    # A new life counts from nothing, and what was long ago says nothing of now.
    assert rates.of("demo-decode-0", 10, 104.1) == 0.0
    assert rates.of("demo-decode-0", 90_000, 200.0) == 0.0
