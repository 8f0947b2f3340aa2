"""Where the decode actor's CPU time goes, token by token: py-spy on its process while 128 streams run."""

import asyncio
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.ways import Way, model_of, troupe
from benchmarks.rig import cpu, median

RATE = 500
"""Samples a second, of the thread that has the GIL: who waits, in a poll or for a lock, has not."""

OUTSIDE = "without the GIL: polls, system calls of libuv and ZMQ"

GROUPS = (
    ("sglang/srt/managers/tokenizer_manager", "SGLang: tokenizer manager"),
    ("sglang/", "SGLang: the rest"),
    ("(tokenizer_manager.py", "SGLang: tokenizer manager"),
    ("(req_time_stats.py", "SGLang: the rest"),
    ("zmq/", "ZMQ"),
    ("actors/engines/", "Troupe: engine's adapter"),
    ("actors/outbox", "Troupe: outbox"),
    ("actors/", "Troupe: actor, worker"),
    ("messages/", "Troupe: messages, bus"),
    ("nats/", "nats-py"),
    ("msgspec", "msgspec"),
    ("pickle", "pickle"),
    ("asyncio/", "event loop (uvloop, asyncio)"),
    ("selectors", "event loop (uvloop, asyncio)"),
    ("prometheus_client", "prometheus_client"),
    ("threading.py", "threads"),
)
"""What a frame belongs to, by a part of its file's path; the innermost frame that belongs to one counts.

py-spy writes a file as the path in its package, and SGLang's folders without an `__init__.py` are none.
"""


async def measure(context: Context, result: Result) -> None:
    """Profile the actor of a cluster of its own."""
    async with troupe(context, model_of(context, {}), min(260.0, context.left - 30), context.pick(4, 1)) as ways:
        result.data["profile"] = await take(context, ways["troupe nats"])
        result.save()


async def take(context: Context, way: Way) -> dict[str, Any]:
    """Profile the actor behind a way while it works; says why not where py-spy is missing or fails."""
    places = [str(Path(sys.executable).parent), *(str(Path(entry) / "bin") for entry in sys.path), os.environ["PATH"]]
    binary = shutil.which("py-spy", path=os.pathsep.join(places))
    if binary is None:
        return {"failed": "py-spy is not there"}
    streams, seconds = context.pick((128, 10), (2, 4))
    raw = context.scratch / "spy.raw"
    (pid,) = way.doers["actor"]
    command = [binary, "record", "--gil", "-p", str(pid), "-r", str(RATE), "-d", str(seconds), "-f", "raw"]
    enough = asyncio.Event()
    loading = asyncio.ensure_future(_keep_loading(context, way, streams, enough))
    try:
        await asyncio.sleep(context.pick(3.0, 1.0))
        began = cpu(pid)
        spy = await asyncio.create_subprocess_exec(
            *command, "-o", str(raw), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            said, _ = await asyncio.wait_for(spy.communicate(), seconds + 60)
        except TimeoutError:
            spy.kill()
            return {"failed": "py-spy does not end"}
        spent = cpu(pid) - began
    finally:
        enough.set()
        rates = (await asyncio.gather(loading, return_exceptions=True))[0]
    if spy.returncode or not await asyncio.to_thread(raw.exists):
        return {"failed": said.decode(errors="replace")[-2_000:]}
    if isinstance(rates, BaseException):
        return {"failed": f"the load: {rates!r}"}
    found = summary(await asyncio.to_thread(raw.read_text))
    costs = {name: median([run["CPU us/token"][name] for run in rates]) for name in rates[0]["CPU us/token"]}
    shares = {name: count / RATE / spent for name, count in found["samples by group"].items()}
    shares[OUTSIDE] = max(0.0, 1 - sum(shares.values()))
    return found | {
        "seconds": seconds,
        "CPU s": round(spent, 2),
        "tokens/s": median([run["tokens/s"] for run in rates]),
        "CPU us/token": costs,
        "actor's us/token by group": {name: round(share * costs["actor"], 3) for name, share in shares.items()},
    }


async def _keep_loading(context: Context, way: Way, streams: int, enough: asyncio.Event) -> list[dict[str, Any]]:
    """Ask again and again until it is enough; gives what was seen of each time."""
    rates: list[dict[str, Any]] = []
    length, tokens, waves = context.pick((128, 512, 2), (16, 16, 1))
    while not enough.is_set():
        job = Job(
            streams=streams,
            waves=waves,
            length=length,
            tokens=tokens,
            seed=50_000 + len(rates),
            vocabulary=context.vocabulary,
        )
        rates.append(await way.run(job, len(way.loaders)))
    return rates


def summary(raw: str) -> dict[str, Any]:
    """Sum up py-spy's raw stacks: by group, and the functions in which most samples were taken.

    A line is frames from the outermost to the innermost with semicolons between, a space, and how many samples.
    """
    groups: Counter[str] = Counter()
    leaves: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        groups[_group(frames)] += int(count)
        leaves[re.sub(r":\d+\)$", ")", frames[-1])] += int(count)
    samples = sum(groups.values())
    return {
        "samples": samples,
        "samples by group": dict(groups.most_common()),
        "share by function": {name: round(count / max(1, samples), 4) for name, count in leaves.most_common(30)},
    }


def _group(frames: list[str]) -> str:
    for frame in reversed(frames):
        for part, name in GROUPS:
            if part in frame:
                return name
    return "other"
