"""A cluster under load, and the faults that befall it: real processes, real signals, each shown to have struck."""

import contextlib
import logging
import os
import re
import signal
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec

from messages import procfs
from supervisor.drills.records import faults, figures
from supervisor.state import ClusterRecord
from tests.cluster.load import Load
from tests.supervisor.cluster import ROOT, Cluster

log = logging.getLogger("tests.cluster")


def configuration(name: str) -> str:
    """One of the configurations that come with Troupe, on a free port, and with a budget for more kills than usual."""
    text = (ROOT / "configs" / name).read_text()
    assert "port: 8000" in text
    text = text.replace("port: 8000", "port: 0").replace("../models", str(ROOT / "models"))
    more = {"log_level": "debug", "restart": {"intensity": 100, "backoff_max": 2.0}}
    return msgspec.yaml.encode(msgspec.yaml.decode(text) | more).decode()


def running(folder: Path, text: dict[str, Any] | str, seconds: float = 15.0) -> Iterator[Cluster]:
    """Run a cluster for a fixture, and end it with `troupe down`."""
    cluster = Cluster(folder, text)
    try:
        cluster.up(ready=False).until("Ctrl-C drains", seconds)
        yield cluster
        down(cluster)
    finally:
        cluster.close()


def address(cluster: Cluster) -> ClusterRecord:
    """How the cluster is reached."""
    record = cluster.state.cluster()
    assert record is not None
    return record


@contextlib.asynccontextmanager
async def loaded(
    cluster: Cluster,
    prompts: list[str],
    *,
    tokens: int,
    nats: int = 8,
    http: int = 4,
    limit: float = 30.0,
    may_close: bool = False,
    lossy: bool = False,
) -> AsyncIterator[Load]:
    """Keep a cluster busy while the body does its worst; then judge what the clients saw.

    `may_close` says that processors are among what the body kills, `lossy` that the NATS server is.
    """
    async with Load(
        await to_thread(address, cluster), prompts, tokens=tokens, nats=nats, http=http, limit=limit
    ) as load:
        load.start()
        await load.until_streaming(limit)
        yield load
        await load.stop(load.limit + 10)
        log.info("%s", figures(load.records))
        wrong = [str(record) for record in load.records if record.outcome == "error"]
        wrong += faults(load.records, load.wholes, may_close=may_close, lossy=lossy)
        assert not wrong, "\n".join(wrong[:20]) + await to_thread(_said, cluster, load)


def _said(cluster: Cluster, load: Load) -> str:
    """What the actors' logs say of the requests that did not end well."""
    failed = [record.id for record in load.records if record.outcome == "error"]
    lines = [
        f"\n{path.parent.name}: {line}"
        for path in sorted((cluster.state.root / "slots").glob("*/log*"))
        for line in path.read_text(errors="replace").splitlines()
        if any(id in line for id in failed) or " lost" in line or "watch" in line
    ]
    return "".join(lines[-100:]) + "\n" + cluster.log.text


async def kill(cluster: Cluster, load: Load, *slots: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to actors in the middle of their work; wait until each is back and new requests are answered."""
    await load.until_streaming(load.limit)
    after, struck = len(cluster.log.lines), time.monotonic()
    generations = {slot: await to_thread(cluster.kill, slot, number) for slot in slots}
    await back(cluster, generations, after, struck, seconds=load.limit)
    await load.until_answered(4, load.limit)


async def back(cluster: Cluster, generations: dict[str, int], after: int, struck: float, seconds: float = 30.0) -> None:
    """Wait until the next life of each slot is ready, and the whole cast with them."""
    for slot, generation in generations.items():
        ready = f"{slot}#{generation + 1} ready after"
        await to_thread(cluster.log.until, ready, seconds, after=after)
        log.info("%s is back %.2f s after it was struck", slot, time.monotonic() - struck)
    await to_thread(cluster.log.until, r"gate of \S+ (whole again|open$)", seconds, after=after)


def down(cluster: Cluster) -> None:
    """End a cluster as its user does, and see that nothing is left of any process that it ever started."""
    started = {int(pid) for up in cluster.ups for pid in re.findall(r"\(pid (\d+)", up.text)}
    started |= {record.pid for record in cluster.state.slots().values()} | {cluster.nats().pid}
    done = cluster.command("down", seconds=60.0)
    assert done.returncode == 0, done.stderr
    left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) in started]
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    assert not cluster.living()


def scheduler(cluster: Cluster, slot: str) -> int:
    """Find the process in which SGLang computes, below its actor."""
    below = procfs.descendants(cluster.record(slot).pid)
    found = [pid for pid in below if "scheduler" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(found) == 1, below
    return found[0]


def _session(pid: int) -> int:
    process = procfs.process(pid)
    if process is None or process.state == "Z":
        return 0
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return 0
