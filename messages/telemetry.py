"""What is told of the work under way: the engines' KV blocks and load, the processors' traffic, one request's way.

KV events come in batches, numbered by the engine itself for each (slot, generation, DP rank) from 0 on, without holes.
A receiver drops what it has had already (a publisher that has restarted says all again that the engine still keeps),
and finds by a hole that NATS has lost something on the way to it: it can ask on `kv.<slot>.again`. A new generation
has nothing of what an earlier one held.
"""

from typing import Final, Literal

from msgspec import Struct, field

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


# Processors.

Measure = Literal["ttft", "itl", "queue_wait", "e2e"]

BOUNDS: Final[dict[Measure, tuple[float, ...]]] = {
    "ttft": (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0),
    "itl": (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    "queue_wait": (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
    "e2e": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
}
"""What is measured of requests, in seconds, and where its histogram's buckets end: the one table of them."""


class Histogram(Struct, array_like=True):
    """How often a figure fell into each bucket, and the sum of all of it.

    A bucket holds what is above the bound before it and up to its own; the last has none. `counts` is empty while there
    is nothing.
    """

    counts: list[int] = []
    sum: float = 0.0


class Tally(Struct, kw_only=True, omit_defaults=True):
    """What a processor has counted of one kind of requests.

    Each request that is `admitted` is at last `finished`, `failed` (by code), `cancelled` by its client, or `left` to
    another processor. `migrated` counts attempts that went on elsewhere after an actor's fault. Of the measures, `ttft`
    and `e2e` begin when the request arrived, `queue_wait` ends when the first actor is told of it, and `itl` has one
    figure a token after the first: the time since the tokens before, divided by how many came together.
    """

    admitted: int = 0
    finished: int = 0
    failed: dict[int, int] = {}
    cancelled: int = 0
    left: int = 0
    migrated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    queue_wait: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)


class Traffic(Struct, kw_only=True, omit_defaults=True):
    """What one life of a processor has counted since it `started`; both times in seconds since 1970.

    All of it only grows, except `queued` and `in_flight`, which are as of `at`. `kinds` is by the kind of requests,
    `refused` by the code with which a request was not even admitted. `suspicions` counts actors that were suspected to
    hang, `false_alarms` those of them that were well. Of `frames`, `missed` had to be asked for again, and `repeated`
    came twice.
    """

    slot: str
    generation: int
    model: str
    at: float
    started: float
    queued: int = 0
    in_flight: int = 0
    kinds: dict[str, Tally] = {}
    refused: dict[int, int] = {}
    false_alarms: int = 0
    frames: int = 0
    missed: int = 0
    repeated: int = 0
    suspicions: int = 0


Passed = Literal[
    "submitted",
    "queued",
    "routed",
    "refused",
    "accepted",
    "first_token",
    "migrated",
    "finished",
    "failed",
    "cancelled",
    "left",
]


class Station(Struct, kw_only=True, omit_defaults=True):
    """One thing that happened to a request, `at` a wall-clock time in seconds since 1970.

    `where` are the incarnations it is about, written as `demo-decode-0#7`; `attempt` is the one that it begins or ends.
    """

    at: float
    what: Passed
    where: list[str] = []
    why: str = ""
    attempt: int = 0


class Way(Struct, kw_only=True, omit_defaults=True):
    """The way of one request through one life of a processor; never what was asked, nor what was answered.

    `code` is that of its last word, 200 for a good one and 0 while there is none. `tokens` are those of the answer so
    far, of all choices together. `untold` stations between the first ones and the last have been left out.
    """

    request: str
    slot: str
    generation: int
    kind: str
    attempt: int = 0
    code: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    stations: list[Station] = []
    untold: int = 0
