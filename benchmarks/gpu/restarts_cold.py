"""Death to ready of fresh processes (`spawn: plain`), for comparison with `restarts`: one kill of each role.

The first start of each is a cold one, too, and is kept with its stages under `first lives`.
"""

from typing import Any

from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.restarts import append, medians, restart, stage_of


async def measure(context: Context, result: Result) -> None:
    """Start plainly, kill decode's actor, then prefill's, as far as the time goes."""
    async with stage_of(context, result, fixed=False, more={"spawn": "plain"}) as stage:
        rows: list[dict[str, Any]] = []
        result.data["restarts"] = rows
        for role in ("decode", "prefill"):
            if context.left > 75:
                await append(rows, restart(stage, "apart", role, "actor"), result)
        result.data["medians"] = medians(rows)
        result.save()
