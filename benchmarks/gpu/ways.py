"""Four ways to the same engine, side by side on one GPU: a bare one, SGLang's own server, Troupe over NATS and HTTP.

All three engines have the arguments that Troupe gives its own and a KV pool of equally many tokens; those that are not
asked are idle. Troupe's also tells of itself (KV events, metrics), as it does when it serves.
"""

import asyncio
import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from actors.engines.sglang_arguments import free_port
from benchmarks.gpu.cluster import Cluster, cluster
from benchmarks.gpu.context import Context
from benchmarks.gpu.jobs import CONNECT, Job, Seen, Worker, end_group, row
from benchmarks.rig import ROOT, cpu
from messages import procfs

ALIAS = "whole"
PROMPT = 2e-6
"""Seconds that a random token id of a prompt takes to make, with room to spare."""


@dataclass
class Way:
    """One way: the processes that make its load, and by name those that do its work."""

    name: str
    loaders: list[Worker]
    doers: dict[str, list[int]] = field(default_factory=dict)

    async def run(self, job: Job, processes: int = 1) -> dict[str, Any]:
        """Do a job, from so many processes, and tell what was seen and what CPU time it took, by process."""
        used = self.loaders[:processes]
        shares = job.split(len(used))
        at = time.monotonic() + CONNECT + PROMPT * job.streams * job.waves * job.length / len(used)
        for share in shares:
            share.at = at
        before = {name: sum(map(cpu, pids)) for name, pids in self.doers.items()}
        seen: list[Seen] = []
        for each in await asyncio.gather(*(one.do(share) for one, share in zip(used, shares, strict=False))):
            seen += each
        tokens = sum(each.tokens for each in seen)
        spent = {name: sum(map(cpu, pids)) - before[name] for name, pids in self.doers.items()}
        return row(seen, job.tokens) | {"CPU us/token": {key: value / tokens * 1e6 for key, value in spent.items()}}


def model_of(context: Context, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The one model: aggregated, with as many processors as `configs/h200-aggregated.yaml` has."""
    cast = {
        "processor": {"count": context.pick(2, 1), "http": {"port": 0}},
        "decode": {"capacity": context.pick(512, 16), "share_gpus": True},
    }
    return context.model(ALIAS, cast, args=args, **more)


@contextlib.asynccontextmanager
async def troupe(context: Context, model: dict[str, Any], wait: float, loaders: int) -> AsyncIterator[dict[str, Way]]:
    """Run a cluster; gives its two ways by name."""
    async with cluster(context.scratch / "troupe", context.config([model]), wait) as running, AsyncExitStack() as stack:
        doers = doers_of(running, ALIAS)
        urls = {"nats": ",".join(running.status.nats), "completions": running.http(ALIAS)}
        ways = {}
        for kind, name in (("nats", "troupe nats"), ("completions", "troupe http")):
            made = [await loader(stack, context, kind, urls[kind]) for _ in range(loaders)]
            ways[name] = Way(name, made, doers)
        yield ways


def doers_of(running: Cluster, alias: str) -> dict[str, list[int]]:
    """The processes that serve a model, by what they are."""
    pids = {slot.slot: slot.pid for slot in running.status.slots if slot.pid}
    actor = pids[f"{alias}-decode-0"]
    doers = {"actor": [actor]} | _below(actor)
    doers["processors"] = [pid for slot, pid in pids.items() if slot.startswith(f"{alias}-processor-")]
    doers["publisher"] = [pid for slot, pid in pids.items() if "-publisher-" in slot]
    doers["nats-server"] = [running.status.nats_pid] if running.status.nats_pid else []
    return doers


def _below(pid: int) -> dict[str, list[int]]:
    """SGLang's own processes, the busiest of them the scheduler's."""
    below = sorted(procfs.descendants(pid), key=cpu, reverse=True)
    return {"scheduler": below[:1], "detokenizer and others": below[1:]}


async def loader(stack: AsyncExitStack, context: Context, kind: str, url: str, model: str = ALIAS) -> Worker:
    """Start a process that makes load, and stop it with the stack."""
    log = stack.enter_context((context.scratch / f"loader-{kind}.log").open("ab"))
    worker = await Worker.start(["benchmarks.gpu.loader", kind, url, model], log.fileno())
    stack.push_async_callback(worker.stop)
    await worker.answer(30)
    return worker


@contextlib.asynccontextmanager
async def bare_engine(context: Context, model: dict[str, Any], wait: float) -> AsyncIterator[Way]:
    """Run `sglang.Engine` in a process that is also its client."""
    with (context.scratch / "engine.log").open("wb") as log:
        worker = await Worker.start(["benchmarks.gpu.bare", "engine", json.dumps(model)], log.fileno())
        try:
            await worker.answer(wait)
            yield Way("engine", [worker], {"engine and client": [worker.pid]} | _below(worker.pid))
        finally:
            await worker.stop()


@contextlib.asynccontextmanager
async def bare_server(context: Context, model: dict[str, Any], wait: float, loaders: int) -> AsyncIterator[Way]:
    """Run SGLang's own server."""
    port = free_port("127.0.0.1")
    model = model | {"args": model["args"] | {"port": port}}
    command = [sys.executable, "-m", "benchmarks.gpu.bare", "server", json.dumps(model)]
    with (context.scratch / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, cwd=ROOT, process_group=0)
        try:
            await _answers(process, f"http://127.0.0.1:{port}", time.monotonic() + wait)
            async with AsyncExitStack() as stack:
                url = f"http://127.0.0.1:{port}"
                made = [await loader(stack, context, "generate", url) for _ in range(loaders)]
                yield Way("server", made, {"server": [process.pid]} | _below(process.pid))
        finally:
            await end_group(process, 0)


async def _answers(process: asyncio.subprocess.Process, url: str, deadline: float) -> None:
    """Wait for its first token."""
    body = {"input_ids": [10, 11, 12], "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    asked = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
    )

    def once() -> bool:
        try:
            with urllib.request.urlopen(asked, timeout=90) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    while not await asyncio.to_thread(once):
        if process.returncode is not None or time.monotonic() > deadline:
            how = f"it ended with {process.returncode}" if process.returncode is not None else "it is slow"
            raise TimeoutError(f"SGLang's server does not answer: {how}")
        await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def all_ways(
    context: Context, model: dict[str, Any], wait: float, loaders: int, failures: list[str]
) -> AsyncIterator[dict[str, Way]]:
    """Start all three at once, and give their ways by name; one that does not start goes into `failures`, and the
    others are measured without it."""
    async with AsyncExitStack() as stack:
        entering = {
            "engine": asyncio.ensure_future(_enter(bare_engine(context, model, wait), stack)),
            "server": asyncio.ensure_future(_enter(bare_server(context, model, wait, loaders), stack)),
            "troupe": asyncio.ensure_future(_enter(troupe(context, model, wait, loaders), stack)),
        }
        try:
            await asyncio.wait(entering.values())
        finally:
            for each in entering.values():
                each.cancel()
            await asyncio.gather(*entering.values(), return_exceptions=True)
        ways: dict[str, Way] = {}
        for name, task in entering.items():
            if (error := task.exception()) is not None:
                failures.append(f"{name} did not start: {type(error).__name__}: {error}"[:3_000])
            else:
                ways |= task.result() if name == "troupe" else {name: task.result()}
        if not ways:
            raise RuntimeError("; ".join(failures))
        yield ways


async def _enter(manager: Any, stack: AsyncExitStack) -> Any:
    entered = await manager.__aenter__()
    stack.push_async_exit(manager)
    return entered
