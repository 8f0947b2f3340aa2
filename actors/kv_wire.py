"""SGLang's KV events as they travel by ZMQ, read in both of their forms and written in the newer one.

A message is [topic, 8-byte big-endian sequence number, msgpack], the last of them a batch `[time, events, DP rank]`
(sglang/srt/disaggregation/kv_events.py). In SGLang 0.5.23 an event is a map with its name under "type"; in 0.5.17 an
array with its name first. Fields that are not there are None in both.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from messages.codec import pack_tokens
from messages.telemetry import Change, Cleared, Removed, Stored

GPU: Final = "GPU"
END: Final = b"\xff" * 8
"""In place of a sequence number: a replay is over."""

_ID_BITS: Final = 0xFFFF_FFFF


class BlockStored(Struct, tag=True, omit_defaults=True):
    """Blocks that were put into the cache, as 0.5.23 writes it."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None


class BlockRemoved(Struct, tag=True, omit_defaults=True):
    """Blocks that are gone from a medium."""

    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(Struct, tag=True):
    """The cache is empty."""


class _OldStored(Struct, tag="BlockStored", array_like=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None


class _OldRemoved(Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[int]
    medium: str | None = None


class _OldCleared(Struct, tag="AllBlocksCleared", array_like=True):
    pass


class _Batch(Struct, array_like=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    dp_rank: int | None = None


class _OldBatch(Struct, array_like=True):
    ts: float
    events: list[_OldStored | _OldRemoved | _OldCleared]
    dp_rank: int | None = None


_batch = msgspec.msgpack.Decoder(_Batch)
_old_batch = msgspec.msgpack.Decoder(_OldBatch)
_encode = msgspec.msgpack.Encoder().encode


def decode(payload: bytes) -> tuple[float, list[Change]]:
    """Read a batch of either form: its time and its events. Raises msgspec.DecodeError if it is neither."""
    batch: _Batch | _OldBatch
    try:
        batch = _batch.decode(payload)
    except msgspec.ValidationError as error:
        try:
            batch = _old_batch.decode(payload)
        except msgspec.ValidationError:
            raise error from None
    return batch.ts, [_change(event) for event in batch.events]


def encode(ts: float, events: list[Any], dp_rank: int) -> bytes:
    """Write a batch as SGLang 0.5.23 does."""
    return _encode((ts, events, dp_rank))


def _change(event: Any) -> Change:
    match event:
        case BlockStored(lora_name=lora, cache_salt=salt):
            return _stored(event, lora, salt)
        case _OldStored():
            return _stored(event, None, None)
        case BlockRemoved() | _OldRemoved():
            return Removed(hashes=event.block_hashes, medium=event.medium or GPU)
        case _:
            return Cleared()


def _stored(event: BlockStored | _OldStored, lora: str | None, salt: str | None) -> Stored:
    if lora is None and event.lora_id is not None:
        lora = str(event.lora_id)
    return Stored(
        hashes=event.block_hashes,
        parent=event.parent_block_hash,
        tokens=_packed(event.token_ids),
        block_size=event.block_size,
        medium=event.medium or GPU,
        lora=lora,
        cache_salt=salt,
    )


def _packed(tokens: list[int]) -> bytes:
    """Pack token ids; what stands for parts of an image can be any number, of which the low 32 bits are kept."""
    try:
        return pack_tokens(tokens)
    except OverflowError:
        return pack_tokens(token & _ID_BITS for token in tokens)
