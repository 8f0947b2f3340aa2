"""Host memory behind a GPU pool that is too small: what comes back from it counts in `cached_tokens`, and saves time.

Two engines with the same pool of KV cache on one GPU, one of them with SGLang's HiCache (the arguments of
configs/h200-hicache.yaml). The same prompts, more than the pool has room for, are asked in the same order again and
again, so that each has been evicted from the GPU when it comes back.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu.casts import DOOR, engines, registered
from benchmarks.gpu.cluster import cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.streams import prompts
from benchmarks.rig import ROOT, median, percentile
from messages.client import Client
from messages.submit import Delta, Done

POOL = 16_384
LENGTH = 4_000
COUNT = 12
ROUNDS = 4
HOST_GB = 8
SETTLE = 1.0
"""Seconds between rounds, in which what is being written to host memory gets there."""


def arguments(path: Path = ROOT / "configs" / "h200-hicache.yaml") -> dict[str, Any]:
    """What the configuration that is shipped gives SGLang for it."""
    [model] = msgspec.yaml.decode(path.read_bytes())["models"]
    given: dict[str, Any] = model["args"]
    return {name: value for name, value in given.items() if "hicache" in name or "hierarchical" in name}


async def measure(context: Context, result: Result) -> None:
    """Ask every prompt in rounds, of both engines in turn."""
    pool = {"page_size": 64, "max_total_tokens": POOL, "cuda_graph_max_bs_decode": 8} if context.cuda else {}
    host = arguments() | {"hicache_size": HOST_GB} if context.cuda else {}
    result.data |= {"pool tokens": POOL, "prompts": COUNT, "prompt tokens": LENGTH, "arguments": host}
    share = {"0.6b": 0.1, "8b": 0.25}[context.size]
    cast = {"processor": DOOR, "decode": engines(context, share)}
    models = [context.model("with", cast, args=pool | host), context.model("without", cast, args=pool)]
    asked = prompts(77, context.pick(COUNT, 3), *(context.pick(LENGTH, 300),) * 2, context.vocabulary)
    rows: list[dict[str, Any]] = []
    result.data["rounds"] = rows
    async with cluster(context.scratch / "hicache", context.config(models), wait=context.left - 60) as troupe:
        result.data["start s"] = troupe.seconds
        known = await registered(troupe)
        result.data["KV blocks"] = {name: [one.total_blocks, one.block_size] for name, one in known.items()}
        async with Client(troupe.status.nats) as client:
            for model in ("with", "without"):
                for warm in prompts(5, 2, 500, 500, context.vocabulary):
                    await _ask(client, model, warm)
            for number in range(context.pick(ROUNDS, 2)):
                for model in ("with", "without"):
                    said = [await _ask(client, model, prompt) for prompt in asked]
                    rows.append(_row(number, model, said))
                    result.save()
                await asyncio.sleep(SETTLE)
    result.data["medians from round 2 on"] = {
        model: {
            name: median([row[name] for row in rows if row["model"] == model and row["round"] > 0])
            for name in ("cached tokens", "TTFT p50 ms", "TTFT p90 ms")
        }
        for model in ("with", "without")
    }
    first = {row["model"]: row["answers"] for row in rows if row["round"] == 0}
    result.data["answers as in the first round"] = {
        f"{row['model']} {row['round']}": sum(a == b for a, b in zip(row["answers"], first[row["model"]], strict=True))
        for row in rows
    }
    for row in rows:
        del row["answers"]
    result.save()


async def _ask(client: Client, model: str, prompt: list[int]) -> tuple[float, int, list[int]]:
    """Seconds to the first token, tokens from a cache, and the answer."""
    began, first, tokens, cached = time.perf_counter(), 0.0, list[int](), 0
    async for event in client.generate(model, prompt, max_tokens=8, temperature=0, ignore_eos=True):
        if isinstance(event, Delta):
            first = first or time.perf_counter() - began
            tokens += event.token_ids
        if isinstance(event, Done):
            cached = event.usage.cached_tokens
    return first, cached, tokens


def _row(number: int, model: str, said: list[tuple[float, int, list[int]]]) -> dict[str, Any]:
    ttft = [first for first, _, _ in said]
    return {
        "round": number,
        "model": model,
        "prompts": len(said),
        "cached tokens": sum(cached for _, cached, _ in said),
        "cached by prompt": [cached for _, cached, _ in said],
        "TTFT p50 ms": median(ttft) * 1e3,
        "TTFT p90 ms": percentile(ttft, 0.9) * 1e3,
        "answers": [tokens for _, _, tokens in said],
    }
