"""Who is ready and how loaded: leases, generations and the gate as a processor sees them; and the choice among them."""

import random
from collections import Counter
from typing import Any

from actors.processor.router import choose
from actors.processor.view import Seat, View
from messages import codec
from messages.gate import Gate
from messages.ids import parse_slot
from messages.lifecycle import LEASE, Heartbeat, Registration, State


def registration(slot: str, generation: int = 1, state: State = State.READY, **fields: Any) -> Registration:
    named = parse_slot(slot)
    plain: dict[str, Any] = {"host": "here", "pid": 1, "alias": named.alias, "capacity": 10}
    return Registration(slot=slot, role=named.role, generation=generation, state=state, **plain | fields)


def beat(slot: str, generation: int = 1, **figures: Any) -> Heartbeat:
    return Heartbeat(slot=slot, generation=generation, state=State.READY, **figures)


class Told:
    """A view, and what it told its owner."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.changes = 0
        self.gates = 0
        self.view = View("demo", on_lost=self._lost, on_change=self._change, on_gate=self._gate)

    def _lost(self, seat: Seat) -> None:
        self.lost.append(seat.incarnation)

    def _change(self) -> None:
        self.changes += 1

    def _gate(self) -> None:
        self.gates += 1

    def register(self, *all: Registration, now: float = 0.0) -> None:
        for one in all:
            self.view.registry_change(f"{one.role}.{one.slot}", codec.to_json(one), now)

    def ready(self, now: float) -> list[str]:
        return [seat.incarnation for seat in self.view.by_role("decode", now)]


def test_only_who_is_ready_and_alive_gets_work() -> None:
    told = Told()
    told.register(
        registration("demo-decode-0"),
        registration("demo-decode-1", state=State.DRAINING),
        registration("demo-prefill-0"),
        registration("other-decode-0"),
        registration("demo-processor-0"),
    )
    assert told.ready(1.0) == ["demo-decode-0-g1"]
    assert told.ready(LEASE + 0.1) == []
    told.view.heartbeat(beat("demo-decode-0"), LEASE)
    assert told.ready(LEASE + 0.1) == ["demo-decode-0-g1"]
    assert told.lost == []


def test_all_leases_start_anew_when_the_bus_is_back() -> None:
    told = Told()
    told.register(registration("demo-decode-0"), registration("demo-decode-1"))
    assert told.ready(10.0) == []
    told.view.back(10.0)
    assert len(told.ready(10.0 + LEASE - 0.1)) == 2


def test_a_life_ends_by_deletion_replacement_or_a_newer_generation() -> None:
    told = Told()
    told.register(*(registration(f"demo-decode-{at}") for at in range(4)))
    told.view.registry_change("decode.demo-decode-0", None, 1.0)
    told.register(registration("demo-decode-1", generation=2), now=1.0)
    told.view.registry_change("gen.demo-decode-2", b"2", 1.0)
    assert told.lost == ["demo-decode-0-g1", "demo-decode-1-g1", "demo-decode-2-g1"]
    assert sorted(told.ready(1.0)) == ["demo-decode-1-g2", "demo-decode-3-g1"]
    told.register(registration("demo-decode-2", generation=1), now=1.0)
    assert "demo-decode-2-g1" not in told.ready(1.0)
    told.view.registry({"gen.demo-decode-3": b"1"}, 1.0)
    assert sorted(told.lost[3:]) == ["demo-decode-1-g2", "demo-decode-3-g1"]


def test_a_change_of_state_is_no_end() -> None:
    told = Told()
    told.register(registration("demo-decode-0", state=State.REGISTERING))
    assert told.ready(1.0) == []
    told.register(registration("demo-decode-0"), now=1.0)
    assert told.ready(1.0) == ["demo-decode-0-g1"]
    told.register(registration("demo-decode-0", state=State.DRAINING), now=1.0)
    assert (told.ready(1.0), told.lost) == ([], [])


def test_heartbeats_of_another_life_count_for_nothing() -> None:
    told = Told()
    told.register(registration("demo-decode-0", generation=2))
    told.view.heartbeat(beat("demo-decode-0", generation=1), LEASE)
    assert told.ready(LEASE + 0.1) == []


def test_unreadable_entries_leave_what_is_known() -> None:
    told = Told()
    told.register(registration("demo-decode-0"))
    told.view.registry_change("decode.demo-decode-0", b"{", 1.0)
    told.view.registry_change("gen.demo-decode-0", b"x", 1.0)
    told.view.gate_change(b"{")
    assert told.ready(1.0) == ["demo-decode-0-g1"]


def test_the_last_gate_counts() -> None:
    told = Told()
    gate = codec.to_json(Gate(model="demo", alias="demo", open=True, epoch=1, since=0.0))
    other = codec.to_json(Gate(model="other", alias="other", open=False, epoch=9, since=0.0))
    seen = [told.view.open]
    told.view.gates([gate, other])
    seen.append(told.view.open)
    told.view.gate_change(None)
    told.view.gates([])
    assert ([*seen, told.view.open], told.gates) == ([False, True, True], 1)


def test_load_counts_what_the_last_heartbeat_does_not_show() -> None:
    told = Told()
    told.register(registration("demo-decode-0"))
    [seat] = told.view.by_role("decode", 0.0)
    seat.own = 2
    told.view.heartbeat(beat("demo-decode-0", in_flight=5, queued=1, kv_used=20, kv_total=100), 0.0)
    assert seat.load == (5 + 1) / 10 + 0.2
    seat.own = 4
    assert seat.load == (7 + 1) / 10 + 0.2


# The choice.


def seats(*loads: int) -> list[Seat]:
    told = Told()
    for at, load in enumerate(loads):
        told.register(registration(f"demo-decode-{at}", capacity=100))
        told.view.heartbeat(beat(f"demo-decode-{at}", in_flight=load), 0.0)
    return told.view.by_role("decode", 0.0)


def chosen(among: list[Seat], times: int = 1, **refused: int) -> Counter[str]:
    chance = random.Random(7)
    named = {f"demo-decode-{at[1:]}-g1": version for at, version in refused.items()}
    found = [choose(b"", among, named, chance) for _ in range(times)]
    return Counter(seat.registration.slot if seat is not None else "nobody" for seat in found)


def test_the_less_loaded_of_two() -> None:
    assert chosen(seats(9, 3), 50) == {"demo-decode-1": 50}


def test_equally_loaded_ones_share() -> None:
    assert min(chosen(seats(0, 0), 1_000).values()) > 400


def test_the_most_loaded_of_many_is_never_taken_and_the_others_share() -> None:
    counted = chosen(seats(1, 2, 3, 9), 1_000)
    assert counted["demo-decode-3"] == 0
    assert min(counted[f"demo-decode-{at}"] for at in range(3)) > 100


def test_who_refused_is_asked_again_only_after_a_change() -> None:
    among = seats(1, 5)
    assert chosen(among, 20, d0=among[0].version) == {"demo-decode-1": 20}
    assert chosen(among, 1, d0=among[0].version, d1=among[1].version) == {"nobody": 1}
    assert chosen(among, 20, d0=among[0].version - 1) == {"demo-decode-0": 20}


def test_who_is_full_with_our_own_is_not_asked() -> None:
    among = seats(0, 50)
    among[0].own = 100
    assert chosen(among) == {"demo-decode-1": 1}
    among[1].own = 100
    assert chosen(among) == {"nobody": 1}
    assert chosen([]) == {"nobody": 1}
