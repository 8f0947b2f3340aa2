"""KV events read in both of SGLang's forms, written in ours, divided where they are too large for a message."""

import random

import msgspec
import pytest

from actors import kv_wire
from actors.publisher.kv import ROOM, in_parts
from actors.publisher.loads import AGED, differs, load_of
from messages import codec, metrics
from messages.lifecycle import Heartbeat, RankLoad, State
from messages.telemetry import Change, Cleared, KvEvents, Removed, Stored
from tests.harness import ROOT

NEW = [
    1.5,
    [
        {
            "type": "BlockStored",
            "block_hashes": [-7, 8],
            "parent_block_hash": None,
            "token_ids": [1, 2, 3, 4],
            "block_size": 2,
            "lora_id": None,
            "medium": "CPU_PINNED",
            "cache_salt": "pinch",
            "session_id": "s",
            "lora_name": "poet",
            "from_the_future": 1,
        },
        {"type": "BlockRemoved", "block_hashes": [8], "medium": "GPU"},
        {"type": "AllBlocksCleared"},
    ],
    1,
]
OLD = [
    1.5,
    [
        ["BlockStored", [-7, 8], None, [1, 2, 3, 4], 2, 5, "CPU_PINNED"],
        ["BlockRemoved", [8], "GPU"],
        ["AllBlocksCleared"],
    ],
]
TOKENS = codec.pack_tokens([1, 2, 3, 4])


def test_the_maps_of_0_5_23_are_read() -> None:
    at, events = kv_wire.decode(msgspec.msgpack.encode(NEW))
    stored = Stored(hashes=[-7, 8], tokens=TOKENS, block_size=2, medium="CPU_PINNED", lora="poet", cache_salt="pinch")
    assert (at, events) == (1.5, [stored, Removed(hashes=[8]), Cleared()])


def test_the_arrays_of_0_5_17_are_read() -> None:
    at, events = kv_wire.decode(msgspec.msgpack.encode(OLD))
    stored = Stored(hashes=[-7, 8], tokens=TOKENS, block_size=2, medium="CPU_PINNED", lora="5")
    assert (at, events) == (1.5, [stored, Removed(hashes=[8]), Cleared()])
    short = [1.5, [["BlockStored", [1], 9, [4], 1, None], ["BlockRemoved", [1]]], 0]
    assert kv_wire.decode(msgspec.msgpack.encode(short))[1] == [
        Stored(hashes=[1], parent=9, tokens=codec.pack_tokens([4]), block_size=1),
        Removed(hashes=[1]),
    ]


def test_ids_that_are_no_tokens_keep_their_low_bits() -> None:
    batch = [0.0, [["BlockStored", [1], None, [-1, (1 << 40) + 3], 2, None]]]
    event = kv_wire.decode(msgspec.msgpack.encode(batch))[1][0]
    assert isinstance(event, Stored)
    assert codec.unpack_tokens(event.tokens) == [0xFFFF_FFFF, 3]


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", msgspec.msgpack.encode([1.0, [{"type": "BlockMelted"}]]), msgspec.msgpack.encode("x")]
)
def test_what_is_neither_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        kv_wire.decode(payload)


def blocks(count: int, size: int = 16, parent: int | None = None) -> Stored:
    chance = random.Random(count)
    tokens = codec.pack_tokens([chance.randrange(1 << 31) for _ in range(count * size)])
    return Stored(hashes=[chance.randrange(-(1 << 63), 1 << 63) for _ in range(count)], parent=parent, tokens=tokens,
                  block_size=size)  # fmt: skip


def test_a_large_batch_comes_in_parts_that_say_the_same() -> None:
    limit = 8_192
    events: list[Change] = [blocks(300), Removed(hashes=list(range(5_000))), Cleared(), blocks(3, parent=4)]
    batch = KvEvents(slot="a-decode-0", generation=2, seq=7, at=1.0, events=events, lost=3)
    parts = in_parts(batch, limit)
    assert [part.part for part in parts] == list(range(parts[0].parts))
    assert [part.lost for part in parts] == [3] + [0] * (len(parts) - 1)
    chain: list[tuple[int | None, int, bytes]] = []
    for part in parts:
        assert len(codec.to_msgpack(part)) <= limit
        for event in part.events:
            if isinstance(event, Stored):
                parent = event.parent
                for at, name in enumerate(event.hashes):
                    chain.append((parent, name, event.tokens[at * 64 : at * 64 + 64]))
                    parent = name
    whole = events[0]
    assert isinstance(whole, Stored)
    expected = list(zip([None, *whole.hashes], whole.hashes, strict=False))
    assert [(parent, name) for parent, name, _ in chain[:300]] == expected
    assert b"".join(tokens for _, _, tokens in chain[:300]) == whole.tokens
    assert chain[300][0] == 4
    removed = [name for part in parts for event in part.events if isinstance(event, Removed) for name in event.hashes]
    assert removed == list(range(5_000))


def test_a_batch_that_fits_stays_whole() -> None:
    batch = KvEvents(slot="a-decode-0", generation=2, seq=7, at=1.0, events=[blocks(4)])
    assert in_parts(batch, len(codec.to_msgpack(batch)) + 2 * ROOM) == [batch]


def beat(in_flight: int, loads: list[RankLoad]) -> Heartbeat:
    return Heartbeat(
        slot="a-decode-0", generation=1, state=State.READY, in_flight=in_flight, kv_used=9, kv_total=64, queued=1,
        loads=loads,
    )  # fmt: skip


def test_an_idle_engines_last_busy_figures_are_aged_out() -> None:
    busy, fresh = RankLoad(0, 3, 2, 40, 64, AGED + 1), RankLoad(1, 3, 2, 40, 64, AGED - 1)
    load = load_of(beat(0, [busy, fresh]), 5.0)
    assert load.idle
    assert load.ranks == [RankLoad(0, 0, 0, 0, 64, AGED + 1), fresh]
    assert load_of(beat(4, [busy]), 5.0).ranks == [busy], "a busy engine may well be silent for long"


def test_without_an_account_of_its_own_the_actors_figures_stand_in() -> None:
    assert load_of(beat(4, []), 5.0).ranks == [RankLoad(0, 3, 1, 9, 64)]


def test_ages_alone_are_no_news() -> None:
    old = load_of(beat(4, [RankLoad(0, 3, 2, 40, 64, 0.1)]), 5.0)
    assert not differs(load_of(beat(4, [RankLoad(0, 3, 2, 40, 64, 0.9)]), 6.0), old)
    assert differs(load_of(beat(4, [RankLoad(0, 3, 2, 41, 64, 0.1)]), 6.0), old)
    assert differs(old, None)


def test_the_page_of_metrics_is_that_of_the_table() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == metrics.as_markdown(), "run: python -m messages.metrics > docs/metrics.md"
