"""Nothing left behind after fifty kills: no process, connection, subscription, consumer or open file, nor any file."""

import contextlib
import json
import os
import random
import re
import socket
import time
import urllib.request
from asyncio import to_thread
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from messages import procfs
from tests.cluster.stage import configuration, loaded, log
from tests.conftest import NatsServer
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.long, pytest.mark.timeout(900)]

KILLS = 50
FIRST = 10
MORE_MIB = 12.0
"""MiB by which a process may have grown between the first ten kills and the last."""
QUIET = 3.0
SETTLED = 60.0
"""Seconds within which the server has forgotten the consumers of those who are gone."""
ENGINES = 3
SURVIVOR = "demo-processor-0"
PROMPTS = ["one", "two words", "and a third prompt"]


class Server(NatsServer):
    """A server that tells of its connections at `monitor`."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.monitor = f"http://127.0.0.1:{free.getsockname()[1]}"
        super().__init__(folder, "-m", self.monitor.rpartition(":")[2])

    def ask(self, what: str) -> Any:
        """Read one of its pages."""
        with urllib.request.urlopen(f"{self.monitor}/{what}", timeout=5) as answer:
            return json.loads(answer.read())


class Left(NamedTuple):
    """What a cluster holds at a moment: what the server knows, its processes, and two of these' open files."""

    connections: list[str]
    subscriptions: int
    consumers: int
    processes: int
    supervisor_files: int
    processor_files: int


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, with monitoring."""
    made = Server(tmp_path / "jetstream")
    made.start()
    yield made
    made.stop()


def held(server: Server, cluster: Cluster) -> Left:
    """Look at what there is now."""
    connections = server.ask("connz?limit=1000")["connections"]
    streams = server.ask("jsz?streams=true&consumers=true")
    return Left(
        connections=sorted(one.get("name", "").rpartition("-g")[0] or one.get("name", "") for one in connections),
        subscriptions=sum(one["subscriptions"] for one in connections),
        consumers=streams["consumers"],
        processes=len(cluster.living()),
        supervisor_files=len(os.listdir(f"/proc/{cluster.log.process.pid}/fd")),
        processor_files=len(os.listdir(f"/proc/{cluster.record(SURVIVOR).pid}/fd")),
    )


def settled(look: Callable[[], Left], like: Left | None = None) -> Left:
    """Look until what is held is as it was (where that is not said: has stayed the same), or it has had its time."""
    deadline = time.monotonic() + SETTLED
    found, since = look(), time.monotonic()
    while time.monotonic() < deadline:
        if found == like or (like is None and time.monotonic() - since > QUIET):
            break
        time.sleep(0.5)
        if (now := look()) != found:
            found, since = now, time.monotonic()
    return found


def memory(cluster: Cluster) -> dict[str, float]:
    """MiB that the supervisor and the processor that nobody kills have in memory."""
    pids = {"supervisor": cluster.log.process.pid, SURVIVOR: cluster.record(SURVIVOR).pid}
    return {name: procfs.rss_bytes(pid) / 2**20 for name, pid in pids.items()}


@pytest.fixture
def cluster(server: Server, tmp_path: Path) -> Cluster:
    """Two processors and two prefill actors, a decode actor with an understudy; as many restarts as one likes."""
    decode = {"count": 1, "understudies": 1}
    more = {
        "nats": {"url": server.url},
        "restart": {"intensity": 1_000, "crashes_before_ready": 1_000, "backoff": 0.01, "backoff_max": 0.05},
    }
    return Cluster(tmp_path, simulated(processor={"count": 2}, prefill={"count": 2}, decode=decode) | more)


async def test_nothing_is_left_behind_after_fifty_kills(server: Server, cluster: Cluster) -> None:
    chance = random.Random(1)
    try:
        await to_thread(cluster.up)
        await to_thread(cluster.log.until, "demo-decode-[01]#1 is at work")
        await to_thread(cluster.log.until, "demo-decode-[01]#1 standby after")
        before = await to_thread(settled, lambda: held(server, cluster))
        slots = [slot for slot in await to_thread(cluster.records) if slot != SURVIVOR]
        began, first = time.monotonic(), dict[str, float]()
        async with loaded(cluster, PROMPTS, tokens=60, nats=2, http=1, limit=60, may_close=True) as load:
            for kill in range(1, KILLS + 1):
                slot, line = chance.choice(slots), len(cluster.log.lines)
                generation = await to_thread(cluster.kill, slot)
                back = rf"{slot}#{generation + 1} (ready|standby) after"
                await to_thread(cluster.log.until, back, 60, after=line)
                if kill == FIRST:
                    first = await to_thread(memory, cluster)
            await load.until_answered(4, 60)
        took, last = time.monotonic() - began, await to_thread(memory, cluster)
        after = await to_thread(settled, lambda: held(server, cluster), before)
        grown = {name: round(last[name] - first[name], 1) for name in last}
        log.info("%d kills in %.0f s; before %s; after %s", KILLS, took, before, after)
        log.info("MiB after %d kills %s, after %d %s, grown %s", FIRST, first, KILLS, last, grown)
        assert after == before
        assert all(more <= MORE_MIB for more in grown.values()), grown
    finally:
        await to_thread(cluster.close)
    assert (await to_thread(server.ask, "connz"))["num_connections"] == 0


def outside(cluster: Cluster, slot: str) -> set[str]:
    """List the files in shared memory, and the Unix sockets outside its folder, that a slot's processes have."""
    pid, home = cluster.record(slot).pid, str(cluster.state.root)
    pids = [pid, *procfs.descendants(pid)]
    sockets = {
        line.split()[6]: line.split()[7] for line in Path("/proc/net/unix").read_text().splitlines() if "/" in line
    }
    found: set[str] = set()
    for one in pids:
        with contextlib.suppress(OSError):
            found |= set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{one}/maps").read_text()))
            links = [os.readlink(link) for link in Path(f"/proc/{one}/fd").iterdir()]
            found |= {sockets[inode] for link in links if (inode := link[8:-1]) in sockets}
    return {path for path in found if Path(path).exists() and not path.startswith(home)}


@pytest.mark.sglang
def test_a_killed_engine_of_sglang_leaves_no_file_in_shared_memory_or_among_the_temporary_ones(tmp_path: Path) -> None:
    cluster, slot, seen = Cluster(tmp_path, configuration("demo.yaml")), "demo-decode-0", set[str]()
    try:
        cluster.up(ready=False).until("Ctrl-C drains", 300)
        for _ in range(ENGINES):
            held_now = outside(cluster, slot)
            assert any(path.startswith("/dev/shm/sglang_loads_") for path in held_now), held_now
            seen |= held_now
            line = len(cluster.log.lines)
            generation = cluster.kill(slot)
            cluster.log.until(f"{slot}#{generation + 1} ready after", 300, after=line)
            assert not [path for path in held_now if Path(path).exists()]
        seen |= outside(cluster, slot) | outside(cluster, "demo-prefill-0")
        log.info("%d files of %d engines", len(seen), ENGINES + 2)
        assert cluster.command("down", seconds=60).returncode == 0
    finally:
        cluster.close()
    assert not [path for path in seen if Path(path).exists()]
