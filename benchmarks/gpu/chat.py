"""Texts that can be checked: the project's own chat model, whole and apart, asked to count and to copy."""

import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.casts import DOOR, engines
from benchmarks.gpu.cluster import Cluster, cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.rig import ROOT
from models.evaluate import judge
from models.evaluate.through import Door, collect

MODELS = ("chat-whole", "chat")
SKILLS = ("counting", "copying")
SHARE = 0.03


async def measure(context: Context, result: Result) -> None:
    """Start the model whole and apart, ask both the same, one thing at a time, and judge the answers."""
    own: dict[str, Any] = {
        "path": str(ROOT / "models" / "troupe-small-chat"),
        "device": context.device,
        "load_deadline": 400,
        "reasoning_parser": "qwen3",
        "tool_call_parser": "qwen25",
        "args": {"cuda_graph_max_bs_decode": 8} if context.cuda else {},
    }
    casts: tuple[dict[str, Any], ...] = (
        {"processor": DOOR, "decode": engines(context, SHARE, 0)},
        {"processor": DOOR, "prefill": engines(context, SHARE, 0), "decode": engines(context, SHARE, 1)},
    )
    models = [own | {"name": name, "cast": cast} for name, cast in zip(MODELS, casts, strict=True)]
    async with cluster(context.scratch / "chat", context.config(models), wait=context.left - 40) as troupe:
        result.data["start s"] = troupe.seconds
        await ask(context, result, troupe, MODELS, context.pick(50, 2))


async def ask(context: Context, result: Result, troupe: Cluster, models: Sequence[str], each: int) -> None:
    """Ask what can be judged; one at a time in each model."""
    asked = judge.cases(each, "gpu", SKILLS)

    async def answers(model: str) -> list[str]:
        async with Door(troupe.http(model), model) as door:
            return await collect(asked, door.generate, 1)

    said = dict(zip(models, await asyncio.gather(*map(answers, models)), strict=True))
    found: dict[str, Any] = {"asked": len(asked)}
    for model, texts in said.items():
        found[model] = {row.skill: {"asked": row.asked, "right": row.right} for row in judge.score(asked, texts)}
    pairs = list(zip(*said.values(), strict=True))
    found["same text"] = sum(len(set(pair)) == 1 for pair in pairs)
    found["an example"] = [asked[0].messages[-1]["content"], *pairs[0]]
    result.data["chat"] = found
    result.save()
