"""Death to ready: how long a killed decode actor of the real SGLang is missed, started in three ways.

    python -m benchmarks.restart [--times 5] [--ways plain prefork understudy]

The pair of configs/demo.yaml on a CPU, a few streams all the while. `plain` starts a fresh process, `prefork` forks the
parent that has imported everything, `understudy` calls a warm spare (its own loading goes on behind that). Times are
from the SIGKILL to the registration of somebody who generates, and the longest silence of the streams that were hit.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from benchmarks.rig import ROOT, machine, median, save, table
from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.lifecycle import Registration, State
from messages.subjects import Subjects
from messages.submit import Delta
from supervisor import state
from supervisor.state import ClusterRecord, Folder, ProcessRecord

TROUPE: Final = [sys.executable, "-m", "supervisor.cli"]
WAYS: Final[dict[str, dict[str, Any]]] = {
    "plain": {"spawn": "plain"},
    "prefork": {},
    "understudy": {"understudies": 1},
}
STREAMS: Final = 3
TOKENS: Final = 40
"""Few enough that no request meets two kills: it would be taken for their cause, and given up."""
READY_SECONDS: Final = 300.0
STREAM_SECONDS: Final = 60.0


def configuration(folder: Path, way: str) -> Path:
    """Write the demo's configuration, on a free port and with a budget for all these kills."""
    demo = msgspec.yaml.decode((ROOT / "configs" / "demo.yaml").read_bytes())
    [model] = demo["models"]
    model["path"] = str((ROOT / "configs" / model["path"]).resolve())
    model["cast"]["processor"]["http"] = {"port": 0}
    model["cast"]["decode"] |= WAYS[way]
    more = {"restart": {"intensity": 1_000, "backoff": 0.01}, "publisher": {"enabled": False}}
    path = folder / "cluster.yaml"
    path.write_bytes(msgspec.yaml.encode(demo | more))
    return path


@contextlib.asynccontextmanager
async def cluster(folder: Path, way: str) -> AsyncIterator[tuple[Folder, ClusterRecord]]:
    """Run the cluster."""
    where = Folder(folder / "state")
    state_ = ["--state", str(where.root)]
    with (folder / "up.log").open("wb") as log:
        up = await asyncio.create_subprocess_exec(
            *TROUPE, "up", str(configuration(folder, way)), *state_, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                asked = [*TROUPE, "status", "--wait-ready", "20", *state_]
                if (await asyncio.to_thread(subprocess.run, asked, capture_output=True, cwd=ROOT)).returncode == 0:
                    break
        record = where.cluster()
        assert record is not None
        yield where, record
    except TimeoutError:
        raise SystemExit(f"not ready:\n{(folder / 'up.log').read_text()[-4_000:]}") from None
    finally:
        up.send_signal(signal.SIGINT)
        await up.wait()
        await asyncio.to_thread(subprocess.run, [*TROUPE, "down", "--now", *state_], capture_output=True, cwd=ROOT)


class Registered:
    """Who of decode is registered, and how."""

    def __init__(self) -> None:
        self.now: dict[str, Registration] = {}
        self._news = asyncio.Event()

    def whole(self, values: dict[str, bytes]) -> None:
        """Take in the whole registry."""
        self.now.clear()
        for key, value in values.items():
            self.change(key, value)

    def change(self, key: str, value: bytes | None) -> None:
        """Take in a change."""
        role, _, slot = key.partition(".")
        if role != "decode":
            return
        if value is None:
            self.now.pop(slot, None)
        else:
            self.now[slot] = codec.from_json(value, Registration)
        self._news.set()

    async def until(self, *states: State, but: tuple[str, int] = ("", 0)) -> Registration:
        """Wait until somebody is registered in one of these states, other than this life."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                self._news.clear()
                for one in self.now.values():
                    if one.state in states and (one.slot, one.generation) != but:
                        return one
                await self._news.wait()

    async def again(self, slot: str, generation: int) -> None:
        """Wait until a slot's next life is registered as warm."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                self._news.clear()
                one = self.now.get(slot)
                if one is not None and one.generation > generation and one.state in (State.READY, State.STANDBY):
                    return
                await self._news.wait()


class Seen:
    """When the deltas of each stream came."""

    def __init__(self) -> None:
        self.times: list[list[float]] = [[] for _ in range(STREAMS)]
        self._news = asyncio.Event()

    def note(self, number: int) -> None:
        """Note that one has come now."""
        self.times[number].append(time.monotonic())
        self._news.set()

    async def all_after(self, at: float) -> None:
        """Wait until every stream has had one after this moment."""
        async with asyncio.timeout(STREAM_SECONDS):
            while not all(times and times[-1] > at for times in self.times):
                self._news.clear()
                await self._news.wait()

    def silence(self, begin: float, end: float) -> float:
        """The longest time without a delta that lies between the two, in part at least."""
        gaps = [
            later - earlier
            for times in self.times
            for earlier, later in zip(times, times[1:], strict=False)
            if later > begin and earlier < end
        ]
        return max(gaps)


async def stream(client: Client, number: int, seen: Seen) -> None:
    """Ask again and again; note when each delta came."""
    while True:
        prompt = f"Count from {number} to 200."
        async for answer in client.chat("troupe-small-chat", prompt, max_tokens=TOKENS, temperature=0, timeout=300):
            if isinstance(answer, Delta):
                seen.note(number)


async def measure(way: str, count: int) -> list[dict[str, float]]:
    """Kill whoever generates, so many times; say how long it was missed."""
    rows = []
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        async with cluster(Path(folder), way) as (where, record), Client(record.nats, wait=True) as client:
            bus, registered = await Bus.connect(record.nats, name="benchmark", wait=10), Registered()
            registry = await bus.bucket(Subjects(record.cluster).registry_bucket)
            seen = Seen()
            tasks = [asyncio.create_task(registry.keep(">", registered.whole, registered.change))]
            tasks += [asyncio.create_task(stream(client, number, seen)) for number in range(STREAMS)]
            try:
                if way == "understudy":
                    await registered.until(State.STANDBY)
                for _ in range(count):
                    victim = await registered.until(State.READY)
                    await asyncio.sleep(chance.uniform(4, 6))
                    rows.append(await _one(where, registered, victim, seen))
                    for task in tasks:
                        if task.done():
                            task.result()
                    print(way, {name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await bus.close()
    return rows


async def _one(where: Folder, registered: Registered, victim: Registration, seen: Seen) -> dict[str, float]:
    process = await asyncio.to_thread(state.read, where.slot(victim.slot) / "process.json", ProcessRecord)
    assert process is not None and process.generation == victim.generation
    life = (victim.slot, victim.generation)
    struck = time.monotonic()
    os.killpg(process.pid, signal.SIGKILL)
    await registered.until(State.READY, but=life)
    ready = time.monotonic() - struck
    await registered.again(*life)
    whole = time.monotonic() - struck
    await seen.all_after(struck + ready)
    return {"death to ready": ready, "longest silence": seen.silence(struck, struck + ready), "warm spare again": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="kills a way (default: 5)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    about, runs = machine(), dict[str, list[dict[str, float]]]()
    for way in options.ways:
        runs[way] = uvloop.run(measure(way, options.times))
    rows = [
        {"started": way} | {f"{name}, s": median([row[name] for row in found]) for name in found[0]}
        for way, found in runs.items()
    ]
    print(table(rows))
    save("restart", {"machine": about, "after": machine(), "runs": runs, "medians": rows})


if __name__ == "__main__":
    main()
