"""Death to ready by stage: prefill and decode on one GPU, killed in several ways, forked from the warm parent.

A stream runs on the pair while one of the two dies. The stages are the supervisor's own (supervisor/recovery.py), from
its event `ready`; the time is ours, from the signal to the registration. GPU memory is NVML's. After each new prefill a
prompt that nobody has seen must be answered, decode being the one that it was. `restarts_cold` is the same without the
parent (`spawn: plain`).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from benchmarks.gpu.casts import DOOR, RESTART, engines, registered
from benchmarks.gpu.cluster import Cluster, cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.memory import Memory, watched
from benchmarks.gpu.streams import generate, prompts
from benchmarks.rig import median
from messages import codec, procfs
from messages.bus import Bus
from messages.client import Client, RequestError
from messages.config import Nats
from messages.lifecycle import Event, Registration
from messages.subjects import Subjects, last_token

WAYS = ("actor", "scheduler", "stop scheduler", "stop actor")
"""SIGKILL to the actor's group, to its scheduler alone; SIGSTOP to the scheduler alone, to the actor's group."""
TOKENS = 600
FIXED_PORT = 28_998
READY_SECONDS = 150.0


class Recoveries:
    """What supervisors said of slots that were ready again, by slot and generation."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int], dict[str, Any]] = {}
        self._news = asyncio.Event()

    async def hear(self, msg: Msg) -> None:
        """Take in an event of the topic restart."""
        event = codec.from_json(msg.data, Event)
        if event.what == "ready" and "recovery" in event.detail:
            self._said[last_token(msg.subject), event.generation] = event.detail
            self._news.set()

    async def of(self, slot: str, generation: int, seconds: float) -> dict[str, Any]:
        """Wait for what was said of one life; nothing if it does not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (slot, generation) not in self._said:
                    self._news.clear()
                    await self._news.wait()
        return self._said.get((slot, generation), {})


@dataclass
class Stage:
    """All that a restart is measured with."""

    context: Context
    troupe: Cluster
    client: Client
    recoveries: Recoveries
    memory: Memory
    kills: int = 0


async def measure(context: Context, result: Result) -> None:
    """Kill decode and prefill in every way, three times each (of 8 B, and by a stopped actor, fewer)."""
    big = context.size == "8b"
    times = {way: context.pick(1 if way == "stop actor" else 2 if big else 3, 1) for way in WAYS}
    async with stage_of(context, result, fixed=not big and context.cuda, more={}) as stage:
        rows: list[dict[str, Any]] = []
        result.data["restarts"] = rows
        for turn in range(max(times.values())):
            for way in WAYS:
                for role in ("decode", "prefill"):
                    if turn < times[way] and context.left > 60:
                        await append(rows, restart(stage, "apart", role, way), result)
        for _ in range(3 if "fixed-prefill-0" in stage.troupe.registrations.known else 0):
            if context.left > 30:
                await append(rows, restart(stage, "fixed", "prefill", "actor"), result)
        result.data["medians"] = medians(rows)
        result.save()


@contextlib.asynccontextmanager
async def stage_of(context: Context, result: Result, fixed: bool, more: dict[str, Any]) -> AsyncIterator[Stage]:
    """Run the cluster; note how its first starts went."""
    share = {"0.6b": 0.1, "8b": 0.2}[context.size]
    graphs = {"args": {"cuda_graph_max_bs_decode": 64}}
    pair = {"processor": DOOR, "prefill": engines(context, share), "decode": engines(context, share)}
    models = [context.model("apart", pair, **graphs, **more)]
    if fixed:
        port = {"disaggregation_bootstrap_port": FIXED_PORT}
        pair = pair | {"prefill": engines(context, share, args=port)}
        models.append(context.model("fixed", pair, **graphs, **more))
    config = context.config(models, restart=RESTART)
    async with (
        watched(context.gpus[0]) as memory,
        cluster(context.scratch / "restarts", config, wait=context.left - 60) as troupe,
        _hearing(troupe) as recoveries,
        Client(troupe.status.nats, wait=True) as client,
    ):
        result.data["start s"] = troupe.seconds
        known = await registered(troupe)
        result.data["first lives"] = {name: _life(one, memory) for name, one in known.items()}
        result.data["GPU total free MiB before"] = memory.most(0, time.time())
        result.save()
        for model in ("apart", "fixed") if fixed else ("apart",):
            await generate(client, model, prompts(1, 1, 128, 128, context.vocabulary)[0], 16)
        yield Stage(context, troupe, client, recoveries, memory)


@contextlib.asynccontextmanager
async def _hearing(troupe: Cluster) -> AsyncIterator[Recoveries]:
    bus, recoveries = await Bus.connect(Nats(url=troupe.status.nats), name="recoveries", wait=5), Recoveries()
    try:
        await bus.subscribe(Subjects().events_of("restart"), recoveries.hear)
        yield recoveries
    finally:
        await bus.close()


def _life(one: Registration, memory: Memory) -> dict[str, Any]:
    return {
        "generation": one.generation,
        "load s": one.load_seconds,
        "stages": one.stages,
        "KV blocks": one.total_blocks,
        "free MiB before its load": memory.at(one.started),
        "free MiB when ready": memory.at(one.started + one.load_seconds + 1),
    }


async def append(rows: list[dict[str, Any]], one: Any, result: Result) -> None:
    """Await one restart; what went wrong is a row, too, and the next one is tried."""
    try:
        rows.append(await one)
    except (TimeoutError, OSError, LookupError, RuntimeError, RequestError) as error:
        rows.append({"failed": f"{type(error).__name__}: {error}"})
    print({key: value for key, value in rows[-1].items() if key != "recovery"}, flush=True)
    result.save()


async def restart(stage: Stage, model: str, role: str, way: str) -> dict[str, Any]:
    """Kill one, a stream running; wait until it is ready again; ask something new."""
    known, slot = stage.troupe.registrations.known, f"{model}-{role}-0"
    stage.kills += 1
    before, decode = known[slot], known[f"{model}-decode-0"].generation
    prompt, other = prompts(10_000 + stage.kills, 2, 128, 128, stage.context.vocabulary)
    tokens = TOKENS if stage.context.cuda else 120
    stream = asyncio.create_task(generate(stage.client, model, prompt, tokens))
    try:
        await asyncio.sleep(0.3)
        signalled = time.time()
        strike(before, way)
        after = await stage.troupe.registrations.ready(slot, before.generation + 1, READY_SECONDS)
        ready = time.time()
        said = await stage.recoveries.of(slot, after.generation, 10)
        seen = await asyncio.wait_for(stream, 90)
    finally:
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
    asked = await asyncio.wait_for(generate(stage.client, model, other, 8), 60)
    return {
        "model": model,
        "role": role,
        "way": way,
        "generation": after.generation,
        "death to ready s": round(ready - signalled, 3),
        "recovery": said.get("recovery", {}),
        "attempts": said.get("attempts"),
        "stages": after.stages,
        "stream whole": len(seen.tokens) == tokens,
        "longest gap s": round(max(seen.gaps), 3),
        "next request TTFT ms": round(asked.ttft * 1e3, 1),
        "next request whole": len(asked.tokens) == 8,
        "decode restarted": known[f"{model}-decode-0"].generation != decode,
        "bootstrap": [
            before.bootstrap[1] if before.bootstrap else None,
            after.bootstrap[1] if after.bootstrap else None,
        ],
        "free MiB": {
            "before the kill": stage.memory.at(signalled),
            "most after it": stage.memory.most(signalled, ready),
            "before the load": stage.memory.at(after.started),
            "when ready": stage.memory.at(ready),
        },
        "KV blocks": [before.total_blocks, after.total_blocks],
    }


def strike(victim: Registration, way: str) -> None:
    """Send the signal. Raises LookupError if the actor has no scheduler."""
    number = signal.SIGSTOP if way.startswith("stop") else signal.SIGKILL
    if way.endswith("actor"):
        os.killpg(victim.pid, number)
    else:
        os.kill(scheduler(victim.pid), number)


def scheduler(pid: int) -> int:
    """The scheduler among an actor's descendants: by its title, or else the first of them."""
    below = procfs.descendants(pid)
    if not below:
        raise LookupError(f"process {pid} has no scheduler")
    titled = [one for one in below if "sched" in _title(one)]
    return (titled or below)[0]


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace") + Path(f"/proc/{pid}/comm").read_text()
    return ""


def medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, role and way: how often, and the medians of the time, of its stages and of the gap."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "failed" not in row:
            groups.setdefault((row["model"], row["role"], row["way"]), []).append(row)
    made = []
    for (model, role, way), found in groups.items():
        stages = dict.fromkeys(stage for row in found for stage in row["recovery"])
        made.append(
            {"model": model, "role": role, "way": way, "times": len(found)}
            | {name: median([row[name] for row in found]) for name in ("death to ready s", "longest gap s")}
            | {stage: median([row["recovery"].get(stage, 0.0) for row in found]) for stage in stages}
            | {"free MiB before each load": [row["free MiB"]["before the load"] for row in found]}
        )
    return made
