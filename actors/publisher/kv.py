"""KV events on their way to NATS: in our one form, no message larger than the server takes, none lost with the bus."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from actors import kv_wire
from messages import codec
from messages.bus import Bus, BusError
from messages.telemetry import Change, Cleared, KvEvents, Removed, Stored

log = logging.getLogger("troupe.publisher")

ROOM: Final = 1_024
"""Bytes of a message that are not its events: subject, headers, the batch's own fields."""
RETRY_SECONDS: Final = 0.1


class KvWay:
    """The way of all KV events of a host; while the bus is away, nothing moves on it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._up = asyncio.Event()
        self._up.set()
        self.unreadable = 0
        bus.on_lost(self._up.clear)
        bus.on_back(self._up.set)

    def unpack(self, batch: KvEvents, payload: bytes) -> KvEvents:
        """Put an engine's payload into our form; one that cannot be read counts as lost."""
        try:
            at, events = kv_wire.decode(payload)
        except msgspec.DecodeError as error:
            self.unreadable += 1
            log.warning("%s#%d: KV events %d cannot be read: %s", batch.slot, batch.generation, batch.seq, error)
            return msgspec.structs.replace(batch, lost=batch.lost + 1)
        return msgspec.structs.replace(batch, at=at, events=events)

    async def send(self, subject: str, batch: KvEvents) -> None:
        """Publish a batch, in parts if need be; waits while the bus is away or full."""
        limit = self._bus.max_payload - ROOM
        data = codec.to_msgpack(batch)
        parts = [data] if len(data) <= limit else [codec.to_msgpack(part) for part in in_parts(batch, limit)]
        for part in parts:
            while True:
                await self._up.wait()
                try:
                    await self._bus.publish(subject, part)
                    break
                except BusError as error:
                    log.debug("KV events wait: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)


def in_parts(batch: KvEvents, limit: int) -> list[KvEvents]:
    """Divide a batch so that no part takes more than `limit` bytes; only what is lost is told of in the first alone.

    A single block that takes more than the limit stays whole.
    """
    pieces = list(_pieces(batch.events, limit))
    return [
        msgspec.structs.replace(batch, events=events, part=part, parts=len(pieces), lost=batch.lost if part == 0 else 0)
        for part, events in enumerate(pieces)
    ]


def _pieces(events: list[Change], limit: int) -> Iterator[list[Change]]:
    if len(codec.to_msgpack(events)) + ROOM <= limit:
        yield events
    elif len(events) > 1:
        middle = len(events) // 2
        yield from _pieces(events[:middle], limit)
        yield from _pieces(events[middle:], limit)
    elif not isinstance(event := events[0], Cleared) and len(event.hashes) > 1:
        yield from _pieces(_halves(event), limit)
    else:
        yield events


def _halves(event: Stored | Removed) -> list[Change]:
    """Divide the blocks of one event; of stored ones the second half follows on the last block of the first."""
    middle = len(event.hashes) // 2
    if isinstance(event, Removed):
        return [msgspec.structs.replace(event, hashes=half) for half in (event.hashes[:middle], event.hashes[middle:])]
    tokens = 4 * event.block_size * middle
    first = msgspec.structs.replace(event, hashes=event.hashes[:middle], tokens=event.tokens[:tokens])
    second = msgspec.structs.replace(
        event, hashes=event.hashes[middle:], tokens=event.tokens[tokens:], parent=event.hashes[middle - 1]
    )
    return [first, second]
