"""Prefill and decode apart against one engine: the same tokens, and what moving KV blocks costs.

One cluster for all of it, on one GPU or two: `whole` is one engine, `apart` a pair, `two` two of each.
"""

from typing import Any

import aiohttp

from benchmarks.gpu import equality, transfer
from benchmarks.gpu.casts import DOOR, engines, registered
from benchmarks.gpu.cluster import Cluster, cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.scraping import publisher, scrape
from benchmarks.gpu.streams import generate, prompts
from messages import codec
from messages.client import Client, RequestError
from messages.supervise import Status

CONTEXT = 34_000
ARGS = {"chunked_prefill_size": 40_960, "max_prefill_tokens": 40_960}
"""A prompt in one piece, so that a transfer begins when its computing is over, and no earlier."""


async def measure(context: Context, result: Result) -> None:
    """Start everything, compare, then time."""
    two = context.cuda and context.size == "0.6b"
    async with cluster(
        context.scratch / "apart", context.config(_models(context, two)), wait=context.left - 60
    ) as troupe:
        result.data["start s"] = troupe.seconds
        result.data["slots"] = {
            name: {"load s": one.load_seconds, "stages": one.stages, "KV blocks": one.total_blocks, "gpus": one.gpus}
            for name, one in (await registered(troupe)).items()
        }
        result.save()
        others = ["apart", "two"] if two else ["apart"]
        async with Client(troupe.status.nats) as client:
            for name in ("whole", *others):
                for prompt in prompts(9, 4, 100, 1_000 if context.cuda else 200, context.vocabulary):
                    await generate(client, name, prompt, 4)
            try:
                await transfer.measure(context, result, troupe, client, "apart-prefill-0")
            except (OSError, RequestError, LookupError, TimeoutError) as error:
                result.data["transfer failed"] = f"{type(error).__name__}: {error}"
            await equality.compare(context, result, client, others, context.pick(220, 6))
            if two:
                await _took_part(result, troupe)


def _models(context: Context, two: bool) -> list[dict[str, Any]]:
    long: dict[str, Any] = {"context_length": CONTEXT} if context.cuda else {}
    args = ARGS | {"cuda_graph_max_bs_decode": 8} if context.cuda else {}
    share = {"0.6b": 0.1, "8b": 0.16}[context.size]
    made = [
        context.model("whole", {"processor": DOOR, "decode": engines(context, share, 0)}, args=args, **long),
        context.model(
            "apart",
            {"processor": DOOR, "prefill": engines(context, share, 0), "decode": engines(context, share, 1)},
            args=args,
            **long,
        ),
    ]
    if two:
        made.append(
            context.model(
                "two",
                {
                    "processor": DOOR,
                    "prefill": engines(context, share * 0.6, 0, 1),
                    "decode": engines(context, share * 0.6, 1, 0),
                },
                args=args,
            )
        )
    return made


async def _took_part(result: Result, troupe: Cluster) -> None:
    """Tell how much each slot of `two` has done, as evidence that all of them were asked."""
    status = codec.from_json((await troupe.troupe("status", "--json")).encode(), Status)
    done = {slot.slot: slot.tokens for slot in status.slots if slot.slot.startswith("two-decode")}
    async with aiohttp.ClientSession() as session:
        figures = await scrape(session, publisher(troupe))
    moved = {
        slot: count
        for (name, slot), count in figures.items()
        if name == "sglang:kv_transfer_latency_ms_count" and slot.startswith("two-")
    }
    result.data["took part"] = {"tokens generated": done, "prompts handed over": moved}
    result.save()
