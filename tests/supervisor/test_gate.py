"""When a model's gate opens, degrades and closes."""

from messages.gate import Gate, Missing
from messages.ids import Role
from supervisor import gate
from supervisor.gate import Door, Wanted
from tests.supervisor.histories import D0, D1, F0, P0, role_of


def door(prefill: int = 1, decode: int = 1) -> Door:
    needs: dict[Role, int] = {"processor": 1, "prefill": prefill, "decode": decode}
    return Door(model="Demo", alias="demo", needs=needs)


def cast(*absent: str, why: str = "loading") -> list[Wanted]:
    return [
        Wanted(slot=slot, role=role_of(slot), ready=slot not in absent, why=why if slot in absent else "")
        for slot in (P0, D0, D1, F0)
    ]


def decided(state: Door, slots: list[Wanted], *, ending: bool = False) -> tuple[Door, Gate]:
    state, written = gate.step(state, slots, ["http://127.0.0.1:8000"], ending)
    assert written is not None
    return state, written


def test_it_first_opens_when_the_whole_cast_is_ready() -> None:
    state, closed = decided(door(), cast(D1))
    assert (closed.open, closed.epoch, closed.missing) == (False, 1, [Missing(what=D1, why="loading")])
    state, opened = decided(state, cast())
    assert (opened.open, opened.degraded, opened.epoch, opened.missing) == (True, False, 2, [])
    assert opened.http == ["http://127.0.0.1:8000"]


def test_once_open_it_degrades_and_says_what_is_missing() -> None:
    state, _ = decided(door(), cast())
    state, now = decided(state, cast(D1, why="starting again: killed"))
    assert (now.open, now.degraded, now.missing) == (True, True, [Missing(what=D1, why="starting again: killed")])
    _, whole = decided(state, cast())
    assert (whole.open, whole.degraded) == (True, False)


def test_it_closes_when_a_role_has_too_few_and_opens_again_with_enough() -> None:
    state, _ = decided(door(), cast())
    state, closed = decided(state, cast(D0, D1))
    assert not closed.open
    assert closed.missing[0] == Missing(what="decode", why="0 of at least 1 ready")
    _, opened = decided(state, cast(D0))
    assert (opened.open, opened.degraded) == (True, True)


def test_a_role_may_need_more_than_one_or_none() -> None:
    state, _ = decided(door(decode=2), cast())
    assert not decided(state, cast(D0))[1].open
    state, _ = decided(door(prefill=0), cast())
    assert decided(state, cast(P0))[1].open


def test_it_is_written_only_when_it_changes() -> None:
    state, _ = decided(door(), cast(D1))
    assert gate.step(state, cast(D1), ["http://127.0.0.1:8000"]) == (state, None)


def test_it_closes_when_the_cluster_ends() -> None:
    state, _ = decided(door(), cast())
    state, closed = decided(state, cast(), ending=True)
    assert not closed.open
    assert gate.step(state, cast(F0, D0), ["http://127.0.0.1:8000"], True)[1] is None


def test_the_words_for_what_changed() -> None:
    state, first = decided(door(), cast(D1))
    assert gate.what_changed(None, first) == "changed"
    state, opened = decided(state, cast())
    assert gate.what_changed(first, opened) == "opened"
    state, degraded = decided(state, cast(D1))
    assert gate.what_changed(opened, degraded) == "degraded"
    state, whole = decided(state, cast())
    assert gate.what_changed(degraded, whole) == "whole"
    assert gate.what_changed(whole, decided(state, cast(P0))[1]) == "closed"
