"""What the publisher tells of a host's engines: which KV blocks they hold, and how loaded they are, one form for all.

KV events come in batches, numbered by the engine itself for each (slot, generation, DP rank) from 0 on, without holes.
A receiver drops what it has had already (a publisher that has restarted says all again that the engine still keeps),
and finds by a hole that NATS has lost something on the way to it: it can ask on `kv.<slot>.again`. A new generation
has nothing of what an earlier one held.
"""

from msgspec import Struct

from messages.lifecycle import RankLoad


class Stored(Struct, kw_only=True, omit_defaults=True, tag="stored"):
    """Blocks that were put into the cache, one after the other behind `parent` (None: at a sequence's begin).

    `tokens` holds `block_size` packed token ids for each hash. `medium` is where they lie: GPU, CPU_PINNED, DISK or
    EXTERNAL. Requests with another `lora` or `cache_salt` cannot use them.
    """

    hashes: list[int]
    parent: int | None = None
    tokens: bytes
    block_size: int
    medium: str = "GPU"
    lora: str | None = None
    cache_salt: str | None = None


class Removed(Struct, kw_only=True, omit_defaults=True, tag="removed"):
    """Blocks that are no longer on that medium."""

    hashes: list[int]
    medium: str = "GPU"


class Cleared(Struct, kw_only=True, tag="cleared"):
    """The whole cache of that DP rank is empty."""


Change = Stored | Removed | Cleared


class KvEvents(Struct, kw_only=True, omit_defaults=True):
    """One batch of one DP rank's KV events; `at` is the engine's wall-clock time in seconds since 1970.

    `lost` is a gap: so many batches up to this one could not be had, even by asking the engine again, so a receiver
    forgets all that it knew of this rank before it applies `events`. `replayed` says that it was asked for again.
    A batch that is too large for one message comes in `parts`, numbered by `part` from 0.
    """

    slot: str
    generation: int
    dp_rank: int = 0
    seq: int
    part: int = 0
    parts: int = 1
    at: float
    events: list[Change] = []
    lost: int = 0
    replayed: bool = False


class Again(Struct, kw_only=True, omit_defaults=True):
    """Ask for the batches from `start` on that the engine still keeps.

    They come to the reply inbox as `KvEvents`, after the last one an empty message; an error has its headers (409 for
    another generation than the living one).
    """

    generation: int
    dp_rank: int = 0
    start: int = 0


class Load(Struct, kw_only=True, omit_defaults=True):
    """How loaded a slot is, for each DP rank, in KV blocks; `at` is when the publisher heard it (seconds since 1970).

    `idle` says that the engine has nothing to do: what it said last while busy has been set to 0.
    """

    slot: str
    generation: int
    at: float
    ranks: list[RankLoad]
    idle: bool = False
