"""How long KV blocks take from prefill to decode, by prompt length.

Two figures for each length. SGLang's own: prefill's histograms `sglang:kv_transfer_*` have a sum, and one request at a
time is that sum's growth; it lasts from the first chunk handed to NIXL until prefill's scheduler sees the transfer's
success. And what a client sees: time to the first token through prefill and decode, less that of one engine for prompts
of the same length, which also has the meeting of the two, the reservation and the hand-over of a second job in it.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp

from benchmarks.gpu.cluster import Cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.models import CONFIGURATIONS, kv_bytes_per_token
from benchmarks.gpu.scraping import publisher, scrape, scrape_until_more
from benchmarks.gpu.streams import generate, prompts
from benchmarks.rig import ROOT, median
from messages.client import Client

LENGTHS = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
TIMES = 5
HISTOGRAM = "sglang:kv_transfer_"
PARTS = ("latency_ms", "total_mb", "speed_gb_s", "bootstrap_ms", "alloc_ms")


async def measure(context: Context, result: Result, troupe: Cluster, client: Client, slot: str) -> None:
    """Fill `transfer`: a row for each length, `slot` being the prefill slot of the model `apart`."""
    rows: list[dict[str, Any]] = []
    result.data["transfer"] = rows
    url = publisher(troupe)
    async with aiohttp.ClientSession() as session:
        for length in context.pick(LENGTHS, (256, 512)):
            if context.left < 30:
                return
            rows.append(await _one(context, client, session, url, slot, length))
            result.save()
    sizes = [int(row["bytes"]) for row in rows]
    await _copies(context, result, sizes)
    result.save()


async def _one(
    context: Context, client: Client, session: aiohttp.ClientSession, url: str, slot: str, length: int
) -> dict[str, Any]:
    seen: dict[str, list[float]] = {}
    count = context.pick(TIMES, 2)
    fresh = iter(prompts(1_000 + length, 2 * count, length, length, context.vocabulary))
    for _ in range(count):
        whole = await generate(client, "whole", next(fresh), 2)
        before = await scrape(session, url)
        apart = await generate(client, "apart", next(fresh), 2)
        after = await scrape_until_more(session, url, before, f"{HISTOGRAM}latency_ms_count", slot, 5)
        seen.setdefault("TTFT whole ms", []).append(whole.ttft * 1e3)
        seen.setdefault("TTFT apart ms", []).append(apart.ttft * 1e3)
        if after is None:
            continue
        for part in PARTS:
            key = (f"{HISTOGRAM}{part}_sum", slot)
            if key in after:
                seen.setdefault(f"SGLang {part}", []).append(after[key] - before.get(key, 0.0))
    row: dict[str, Any] = {"tokens": length, "times": count}
    row |= {name: median(values) for name, values in seen.items()}
    moved = length * kv_bytes_per_token(context.size) if context.cuda else 0
    told = row.get("SGLang total_mb")
    row["bytes"] = moved or int((told or 0) * (1 << 20))
    apart_ms = row["TTFT apart ms"] - row["TTFT whole ms"]
    row |= {"apart less whole ms": apart_ms, "GB/s by TTFT": row["bytes"] / apart_ms / 1e6 if apart_ms > 0 else None}
    if latency := row.get("SGLang latency_ms"):
        row["GB/s by SGLang"] = row["bytes"] / latency / 1e6
    return row | {"raw": seen}


async def _copies(context: Context, result: Result, sizes: list[int]) -> None:
    """Copy as many bytes on the device, and to the other one where there are two, in a process of its own."""
    pieces = 2 * int(CONFIGURATIONS[context.size]["num_hidden_layers"])
    result.data["copies"] = {}
    for name, to in (("same GPU", 0), *((("other GPU", 1),) if len(context.gpus) > 1 else ())):
        command = [sys.executable, "-m", "benchmarks.gpu.copies", "--device", context.device, "--pieces", str(pieces)]
        command += ["--to", str(to), "--bytes", *map(str, sizes)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        failed = process.returncode != 0
        result.data["copies"][name] = err.decode()[-2_000:] if failed else json.loads(out)
