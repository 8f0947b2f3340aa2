"""Takes pictures of the page as it is in many a situation: `python -m tests.dashboard.screenshots FOLDER [SCENE ...]`.

The situations are real: a simulated cluster with load on it, whose processes are killed and restarted; the one with 200
slots has one process that speaks for all of them.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from messages.client import Client
from tests.conftest import NatsServer
from tests.dashboard import browser, speaker
from tests.dashboard.test_cluster import Api
from tests.supervisor.cluster import Cluster, simulated

LOAD_SECONDS = 25.0
CLIENTS = 12


@contextlib.contextmanager
def cluster_of(load: float = 0.4) -> Iterator[Cluster]:
    """A cluster with two of what computes, under load."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = simulated(decode={"count": 2}, prefill={"count": 2})
        configuration["models"][0] |= {
            "name": "demo",
            "simulated": {"load": load, "ttft": 0.06, "itl": 0.012, "total_blocks": 256},
        }
        cluster = Cluster(Path(folder), configuration)
        asking = threading.Event()
        try:
            cluster.up()
            load_ = threading.Thread(target=lambda: asyncio.run(keep_asking(cluster, asking)), daemon=True)
            load_.start()
            yield cluster
            asking.set()
            load_.join(20)
        finally:
            cluster.close()


async def keep_asking(cluster: Cluster, enough: threading.Event) -> None:
    """Ask the cluster for texts until told that it is enough."""
    record = cluster.state.cluster()
    assert record is not None

    async def one(number: int) -> None:
        async with Client(record.nats.urls[0]) as client:
            while not enough.is_set():
                with contextlib.suppress(Exception):
                    async for _ in client.chat("demo", f"Tell me of {number}.", max_tokens=60 + 10 * number):
                        if enough.is_set():
                            break

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))


def opened(chromium: Browser, api: Api, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
    """Open the page and wait until it is live."""
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.on("console", lambda message: say(f"console {message.type}: {message.text}"))
    page.goto(api.url)
    page.wait_for_selector(".tile", timeout=30_000)
    return page


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def well(chromium: Browser, folder: Path) -> None:
    """All well, under load, with a recovery behind it: wide, narrow and dark."""
    with cluster_of() as cluster:
        api = Api(cluster)
        page = opened(chromium, api)
        time.sleep(LOAD_SECONDS / 2)
        generation = cluster.kill("demo-decode-1")
        api.until("demo-decode-1", lambda slot: slot["state"] == "ready" and slot["generation"] > generation)
        api.ask("/api/slots/demo-prefill-0/restart", "POST", trusted=True)
        time.sleep(LOAD_SECONDS / 2)
        api.until("demo-prefill-0", lambda slot: slot["state"] == "ready")
        time.sleep(6)
        page.screenshot(path=folder / "well.png")
        page.screenshot(path=folder / "well-whole.png", full_page=True)
        page.locator(".entry[data-kind=recovery] summary").first.click()
        page.locator('.tile[data-slot="demo-decode-1"]').click()
        time.sleep(0.5)
        page.screenshot(path=folder / "slot.png")
        opened(chromium, api, dark=True).screenshot(path=folder / "dark.png")
        narrow = opened(chromium, api, 390, 844)
        time.sleep(1)
        narrow.screenshot(path=folder / "narrow.png")
        narrow.screenshot(path=folder / "narrow-whole.png", full_page=True)


def troubled(chromium: Browser, folder: Path) -> None:
    """One slot loading, one crash-looping, the gate closed."""
    with cluster_of(load=3.0) as cluster:
        api = Api(cluster)
        page = opened(chromium, api)
        dark = opened(chromium, api, dark=True)
        time.sleep(6)
        cluster.kill("demo-decode-0")
        api.until("demo-decode-0", lambda slot: slot["state"] == "loading" and slot.get("stage") == "weights")
        time.sleep(0.4)
        page.screenshot(path=folder / "loading.png")
        api.until("demo-decode-0", lambda slot: slot["state"] == "ready")
        for _ in range(3):
            api.until("demo-decode-1", lambda slot: slot["state"] in ("loading", "ready"))
            cluster.kill("demo-decode-1")
            time.sleep(0.3)
        api.until("demo-decode-1", lambda slot: slot["state"] == "waiting", 5)
        time.sleep(0.3)
        page.screenshot(path=folder / "crash-loop.png")
        cluster.kill("demo-prefill-0")
        cluster.kill("demo-prefill-1")
        time.sleep(2.2)
        page.screenshot(path=folder / "gate-closed.png")
        dark.screenshot(path=folder / "gate-closed-dark.png")


def drill(chromium: Browser, folder: Path) -> None:
    """During a drill, and its report."""
    with cluster_of() as cluster:
        api = Api(cluster)
        page = opened(chromium, api)
        assert api.ask("/api/drills/kill", "POST", trusted=True)[0] == 200
        page.locator("#drills-open").click()
        expect(page.locator("#drill-now pre")).to_contain_text("proof:", timeout=60_000)
        time.sleep(0.5)
        page.locator("#drills").scroll_into_view_if_needed()
        page.screenshot(path=folder / "drill.png")
        deadline = time.monotonic() + 120
        while json.loads(api.ask("/api/drills")[1])["playing"] and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(1)
        page.screenshot(path=folder / "drill-over.png", full_page=True)


def crowd(chromium: Browser, folder: Path) -> None:
    """200 slots, one of which has fallen silent."""
    counts = {"processor": 8, "prefill": 64, "decode": 128}
    with tempfile.TemporaryDirectory() as place:
        server = NatsServer(Path(place) / "jetstream")
        server.start()
        cluster = Cluster(Path(place), speaker.configuration(server.url, **counts))
        voice = speaker.Speaker(speaker.slots(**counts), busy=True)
        speaking = threading.Thread(target=lambda: asyncio.run(voice.run(server.url)), daemon=True)
        try:
            cluster.up(ready=False)
            cluster.log.until("the page is at")
            speaking.start()
            cluster.log.until("gate of crowd open", 60)
            page = opened(chromium, Api(cluster), height=1100)
            time.sleep(4)
            page.screenshot(path=folder / "crowd.png")
            say(f"frames longer than 50 ms in 5 s: {page.evaluate(LONG_FRAMES)}")
            voice.silent.add("crowd-decode-17")
            page.wait_for_selector('.tile[data-slot="crowd-decode-17"]:not([data-state=ready])', timeout=30_000)
            time.sleep(0.5)
            page.screenshot(path=folder / "crowd-trouble.png")
        finally:
            cluster.close()
            server.stop()


LONG_FRAMES = """() => new Promise((done) => {
  let last = performance.now(), long = 0, end = last + 5000;
  const frame = (now) => {
    if (now - last > 50) long++;
    last = now;
    if (now < end) requestAnimationFrame(frame); else done(long);
  };
  requestAnimationFrame(frame);
})"""

SCENES: dict[str, Callable[[Browser, Path], None]] = {
    "well": well,
    "troubled": troubled,
    "drill": drill,
    "crowd": crowd,
}


def main() -> None:
    """Take the pictures of the scenes that are named, or of all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or list(SCENES):
        say(name)
        with browser.chromium() as chromium:
            SCENES[name](chromium, folder)


if __name__ == "__main__":
    main()
