"""What the page costs its supervisor: CPU and memory with 10 and 200 slots, each without and with 20 viewers.

    python -m benchmarks.dashboard [--seconds 20] [--viewers 20]

The supervisor and nats-server are real. The slots are not: one process registers all of them as external ones and sends
the heartbeats of all (twice a second each, with figures that change every time), as so many actors would.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.rig import cpu, machine, nats_server, save, table
from messages import procfs
from tests.dashboard import speaker
from tests.supervisor.cluster import Cluster

CASTS = {
    10: {"processor": 1, "prefill": 3, "decode": 6},
    200: {"processor": 8, "prefill": 64, "decode": 128},
}
SETTLE = 5.0


def speak(url: str, names: list[str]) -> None:
    """Speak for all slots until killed."""
    asyncio.run(speaker.Speaker(names, busy=True).run(url))


async def view(url: str, taken: list[int]) -> None:
    """Watch as a browser does, and count the bytes."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(f"{url}/api/live") as answer:
        async for block in answer.content.iter_any():
            taken[0] += len(block)


async def measure(pid: int, url: str, viewers: int, seconds: float) -> dict[str, float]:
    """Measure the supervisor for so long with so many viewers."""
    taken = [0]
    watching = [asyncio.ensure_future(view(url, taken)) for _ in range(viewers)]
    await asyncio.sleep(SETTLE)
    bytes_before, before, began = taken[0], cpu(pid), time.monotonic()
    await asyncio.sleep(seconds)
    spent = time.monotonic() - began
    found = {
        "% of a core": 100 * (cpu(pid) - before) / spent,
        "MB": procfs.rss_bytes(pid) / 1e6,
        "kB/s a viewer": (taken[0] - bytes_before) / spent / 1e3 / viewers if viewers else 0.0,
    }
    for one in watching:
        one.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    return found


def play(count: int, viewers: int, seconds: float) -> dict[str, dict[str, float]]:
    """Run one supervisor with so many slots, without viewers and with them."""
    counts = CASTS[count]
    with tempfile.TemporaryDirectory() as folder, nats_server() as (url, _):
        cluster = Cluster(Path(folder), speaker.configuration(url, **counts))
        voice = multiprocessing.get_context("spawn").Process(target=speak, args=(url, speaker.slots(**counts)))
        try:
            cluster.up(ready=False)
            cluster.log.until("the page is at")
            voice.start()
            cluster.log.until("gate of crowd open", 60)
            record = cluster.state.cluster()
            assert record is not None
            pid = cluster.log.process.pid
            return {
                str(number): asyncio.run(measure(pid, record.dashboard, number, seconds)) for number in (0, viewers)
            }
        finally:
            with contextlib.suppress(ValueError):
                voice.kill()
                voice.join(5)
            cluster.close()


def main() -> None:
    """Measure all, write it down and show it."""
    parser = argparse.ArgumentParser(description="What the page costs its supervisor.")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--viewers", type=int, default=20)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "seconds": options.seconds, "slots": {}}
    for count in CASTS:
        found["slots"][str(count)] = play(count, options.viewers, options.seconds)
    save("dashboard", found)
    rows = [
        {"slots": count, "viewers": viewers} | one
        for count, by_viewers in found["slots"].items()
        for viewers, one in by_viewers.items()
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
