"""Engines that share GPUs, written as parts of a model's cast, and who came of it."""

from typing import Any

from benchmarks.gpu.cluster import Cluster
from benchmarks.gpu.context import Context
from messages.lifecycle import Registration

DOOR: dict[str, Any] = {"http": {"port": 0}}
RESTART: dict[str, Any] = {"intensity": 1_000, "backoff": 0.01, "crashes_before_ready": 5}
"""A budget for many kills, without the pauses that crashes in a row would earn."""


def engines(context: Context, share: float, *on: int, **more: Any) -> dict[str, Any]:
    """So many slots as `on` has entries, each on that one of the context's GPUs (counted from 0, and round again)."""
    places = on or (0,)
    part: dict[str, Any] = {"count": len(places), "capacity": 64} | more
    if context.cuda:
        gpus = [[context.gpus[place % len(context.gpus)]] for place in places]
        part |= {"gpus": gpus, "share_gpus": True, "memory_share": share}
    return part


async def registered(troupe: Cluster) -> dict[str, Registration]:
    """The registrations of all engines of a cluster that is ready; waits until each is known here."""
    slots = [slot.slot for slot in troupe.status.slots if slot.role in ("prefill", "decode")]
    return {slot: await troupe.registrations.ready(slot, 1, 20) for slot in slots}
