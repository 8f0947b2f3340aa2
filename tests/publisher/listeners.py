"""Who listens to KV events in tests: a receiver on NATS that keeps the rules, a reference on the engine's socket."""

import asyncio
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.codec import pack_tokens
from messages.lifecycle import KvSource, Registration
from messages.subjects import Subjects
from messages.telemetry import Again, Change, Cleared, KvEvents, Load, Removed, Stored

Life = tuple[str, int, int]
"""(slot, generation, DP rank)."""


class Receiver:
    """Takes KV events and load figures off NATS as a router would: what it has had is dropped, holes are noticed."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self._bus = bus
        self._subjects = subjects
        self.batches: dict[Life, list[KvEvents]] = {}
        self.loads: dict[str, list[Load]] = {}
        self.repeated = 0
        self.holes = 0

    async def open(self) -> None:
        """Listen."""
        await self._bus.subscribe(self._subjects.kvs, self._on_events)
        await self._bus.subscribe(self._subjects.loads, self._on_load)
        await self._bus.flush()

    async def _on_events(self, msg: Msg) -> None:
        self.take(codec.from_msgpack(msg.data, KvEvents))

    def take(self, batch: KvEvents) -> None:
        """Take one batch."""
        known = self.batches.setdefault((batch.slot, batch.generation, batch.dp_rank), [])
        expected = known[-1].seq + 1 if known else 0
        if batch.seq < expected:
            self.repeated += 1
            return
        self.holes += batch.seq > expected + batch.lost
        known.append(batch)

    async def _on_load(self, msg: Msg) -> None:
        load = codec.from_msgpack(msg.data, Load)
        self.loads.setdefault(load.slot, []).append(load)

    def events(self, slot: str, generation: int, rank: int = 0) -> list[list[Change]]:
        """The events of one life, batch by batch."""
        return [batch.events for batch in self.batches.get((slot, generation, rank), [])]

    async def ask_again(self, slot: str, asked: Again) -> tuple[list[KvEvents], str]:
        """Ask for what was missed; return it, and the error if there was one."""
        inbox = self._bus.inbox()
        came: list[KvEvents] = []
        over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def take(msg: Msg) -> None:
            if msg.data:
                came.append(codec.from_msgpack(msg.data, KvEvents))
            else:
                over.set_result((msg.headers or {}).get("Nats-Service-Error-Code", ""))

        subscription = await self._bus.subscribe(inbox, take)
        await self._bus.publish(self._subjects.kv_again(slot), codec.to_msgpack(asked), reply=inbox)
        code = await asyncio.wait_for(over, 5)
        await self._bus.finish(subscription)
        return came, code


class Reference:
    """All that one engine has published, by its own word: from its sockets, read without any code of ours."""

    def __init__(self, at: KvSource) -> None:
        self._at = at

    async def events(self) -> list[list[Change]]:
        """Ask its replay socket for everything from the first batch on."""
        context = zmq.asyncio.Context()
        asked = context.socket(zmq.DEALER)
        asked.set(zmq.RCVHWM, 0)
        asked.connect(self._at.replay)
        found: list[list[Change]] = []
        try:
            await asked.send_multipart([b"", (0).to_bytes(8, "big")])
            while True:
                frames = await asyncio.wait_for(asked.recv_multipart(), 5)
                if frames[-2] == b"\xff" * 8:
                    return found
                assert int.from_bytes(frames[-2], "big") == len(found)
                found.append([_change(event) for event in msgspec.msgpack.decode(frames[-1])[1]])
        finally:
            context.destroy(linger=0)


def _change(event: dict[str, Any]) -> Change:
    """Say an event of SGLang 0.5.23 in our words."""
    match event["type"]:
        case "BlockStored":
            return Stored(
                hashes=event["block_hashes"],
                parent=event["parent_block_hash"],
                tokens=pack_tokens(event["token_ids"]),
                block_size=event["block_size"],
                medium=event["medium"],
                lora=event.get("lora_name"),
                cache_salt=event.get("cache_salt"),
            )
        case "BlockRemoved":
            return Removed(hashes=event["block_hashes"], medium=event["medium"])
        case "AllBlocksCleared":
            return Cleared()
        case other:
            raise AssertionError(f"an event of the kind {other}")


def reference(registration: Registration, rank: int = 0) -> Reference:
    """A reference for one rank of a registered engine."""
    return Reference(registration.kv_sources[rank])
