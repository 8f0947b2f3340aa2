"""Speaks for many slots at once: registers them and sends their heartbeats, as so many real actors would.

To see how a supervisor and its page do with hundreds of slots on a machine that has no room for hundreds of processes.
"""

import asyncio
import math
import time
from typing import Any

from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.ids import parse_slot
from messages.lifecycle import HEARTBEAT_PERIOD, Heartbeat, Registration, State
from messages.subjects import Subjects
from tests.supervisor.cluster import TINY

CAPACITY = 64
BLOCKS = 4_096


def configuration(url: str, **counts: int) -> dict[str, Any]:
    """A cluster of external slots, so many of each role."""
    cast = {role: {"count": count, "capacity": CAPACITY} for role, count in counts.items()}
    model = {"name": "crowd", "engine": "simulated", "tokenizer": TINY, "spawn": "external", "cast": cast}
    free = {"publisher": {"enabled": False}, "dashboard": {"port": 0}}
    return {"nats": {"url": url}, "drills": "refused", **free, "models": [model]}


def slots(**counts: int) -> list[str]:
    """The slots of such a cluster."""
    return [f"crowd-{role}-{number}" for role, count in counts.items() for number in range(count)]


class Speaker:
    """Everybody's voice; `busy` moves the figures as under load."""

    def __init__(self, names: list[str], *, busy: bool = False) -> None:
        self._names = names
        self._busy = busy
        self._subjects = Subjects()
        self.silent: set[str] = set()

    async def run(self, url: str) -> None:
        """Register all, and go on with heartbeats until cancelled, spread over each half second."""
        bus = await Bus.connect(Nats(url=url), name="speaker", wait=10)
        try:
            registry = await bus.bucket(self._subjects.registry_bucket)
            await asyncio.gather(*(self._register(registry, name) for name in self._names))
            began, turn = time.monotonic(), 0
            while True:
                for number, name in enumerate(self._names):
                    if name not in self.silent:
                        await self._beat(bus, name, number, turn)
                    due = began + (turn + (number + 1) / len(self._names)) * HEARTBEAT_PERIOD
                    if (wait := due - time.monotonic()) > 0.005:
                        await asyncio.sleep(wait)
                turn += 1
        finally:
            await bus.close()

    async def _register(self, registry: Any, name: str) -> None:
        role = parse_slot(name).role
        registration = Registration(
            slot=name,
            role=role,
            generation=1,
            state=State.READY,
            host=f"gpu-host-{parse_slot(name).number // 8}",
            pid=1_000,
            model="crowd",
            alias="crowd",
            capacity=CAPACITY,
            total_blocks=0 if role == "processor" else BLOCKS,
            gpus=[] if role == "processor" else [parse_slot(name).number % 8],
            started=time.time(),
        )
        await registry.put(self._subjects.registration_key(role, name), codec.to_json(registration))

    async def _beat(self, bus: Bus, name: str, number: int, turn: int) -> None:
        role = parse_slot(name).role
        share = 0.5 + 0.45 * math.sin(number * 1.7 + turn * 0.25) if self._busy else 0.0
        beat = Heartbeat(
            slot=name,
            generation=1,
            state=State.READY,
            in_flight=round(CAPACITY * share),
            capacity=CAPACITY,
            steps=turn * 50,
            kv_used=0 if role == "processor" else round(BLOCKS * share * 0.8),
            kv_total=0 if role == "processor" else BLOCKS,
            rss_bytes=2 << 30,
        )
        await bus.publish(self._subjects.heartbeat(role, name), codec.to_json(beat))
