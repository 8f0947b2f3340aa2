"""Who is suspected to hang and who is not, as histories: what came in and when, and whom the view then trusts."""

from collections.abc import Iterator
from typing import Any

import pytest

from actors.processor.suspicion import PARDON, TICK
from actors.processor.view import Seat, View
from messages import codec
from messages.config import Watch
from messages.ids import parse_slot
from messages.lifecycle import Child, Heartbeat, Registration, State

D0, D1, P0 = "demo-decode-0", "demo-decode-1", "demo-prefill-0"
BEAT = 0.5


class Played:
    """A view that is told what happens, on a clock of the test's: a look every quarter of a second, as in a processor.

    Somebody else, our own actor say, is heard all the time, unless the test stops it.
    """

    def __init__(self, *slots: str, watch: Watch | None = None) -> None:
        self.changes: list[tuple[float, str, bool]] = []
        self.view = View(
            "demo",
            on_lost=lambda seat: None,
            on_change=lambda: None,
            on_gate=lambda: None,
            on_doubt=self._doubted,
            watch=watch,
        )
        self.now = 0.0
        self.frames: dict[str, int] = {}
        for slot in slots:
            named = parse_slot(slot)
            said = Registration(
                slot=slot,
                role=named.role,
                generation=1,
                state=State.READY,
                host="here",
                pid=1,
                alias="demo",
                capacity=9,
            )
            self.view.registry_change(f"{named.role}.{slot}", codec.to_json(said), 0.0)

    def _doubted(self, seat: Seat) -> None:
        self.changes.append((self.now, seat.registration.slot, bool(seat.suspect)))

    def beat(self, slot: str = D0, *, children: list[tuple[str, float]] | None = None, **figures: Any) -> None:
        engine = [Child(pid=5_000 + at, state=state, cpu_seconds=cpu) for at, (state, cpu) in enumerate(children or [])]
        said = Heartbeat(slot=slot, generation=1, state=State.READY, children=engine, **figures)
        self.view.heard(self.now)
        self.view.heartbeat(said, self.now)

    def run(self, seconds: float, *, others: bool = True, looks: bool = True) -> Iterator[float]:
        """Let time pass; give each moment at which a heartbeat is due, and look in between."""
        for quarter in range(round(seconds / TICK)):
            self.now += TICK
            if quarter % 2:
                if others:
                    self.view.heard(self.now)
                yield self.now
            if looks:
                self.view.tick(self.now, lambda sender: self.frames.get(sender, 0))

    def pass_by(self, seconds: float, **how: bool) -> None:
        """Let time pass in which nothing of the slots is heard."""
        for _ in self.run(seconds, **how):
            pass

    def suspects(self) -> list[str]:
        return [slot for slot, seat in self.view.seats.items() if seat.suspect]

    def takes_work(self, slot: str) -> bool:
        return any(seat.registration.slot == slot for seat in self.view.by_role(parse_slot(slot).role, self.now))

    def why(self, slot: str = D0) -> str:
        return self.view.seats[slot].suspect


# Silence: a stopped actor, one whose loop is blocked, one that is cut off.


def test_a_slot_that_falls_silent_gets_no_work_within_two_seconds_and_is_trusted_when_it_is_heard_again() -> None:
    played = Played(D0, D1)
    for at in played.run(10):
        played.beat(D0, steps=round(at * 2))
        played.beat(D1, steps=round(at * 2))
    silent = played.now
    for at in played.run(2.5):
        played.beat(D1, steps=round(at * 2))
    [(noticed, slot, suspect)] = played.changes
    assert (slot, suspect, noticed - silent <= 1.75) == (D0, True, True)
    assert (played.takes_work(D0), played.takes_work(D1)) == (False, True)
    assert "no heartbeat for 1." in played.why()
    played.beat(D0, steps=99)
    assert played.takes_work(D0)
    assert (played.view.suspicions, played.view.false_alarms) == (1, 1)


def test_frames_are_a_sign_of_life() -> None:
    played = Played(D0)
    played.beat()
    for at in played.run(2.5):
        played.frames["demo-decode-0-g1"] = round(at * 2)
    assert played.suspects() == []


def test_one_that_was_never_heard_is_left_to_its_lease() -> None:
    played = Played(D0)
    played.pass_by(2.5)
    assert played.suspects() == []


def test_who_could_not_hear_suspects_nobody() -> None:
    """The bus hangs, as a stopped NATS server does, and nobody is told: not even our own heartbeats come back."""
    played = Played(D0, D1)
    for at in played.run(5):
        played.beat(D0, steps=round(at))
        played.beat(D1, steps=round(at))
    played.pass_by(8, others=False)
    assert played.suspects() == []
    played.beat(D1, steps=99)
    played.pass_by(1.25)
    assert played.suspects() == [], "the silence before was ours"
    played.pass_by(0.75)
    assert played.suspects() == [D0, D1]


def test_a_bus_that_is_away_proves_nothing_and_all_begins_anew_when_it_is_back() -> None:
    played = Played(D0)
    for _ in played.run(2):
        played.beat(steps=1)
    played.view.away()
    played.pass_by(5)
    played.view.back(played.now)
    played.pass_by(1.25)
    assert played.suspects() == []
    played.pass_by(0.5)
    assert played.suspects() == [D0]


def test_a_processor_that_was_late_itself_discards_its_look() -> None:
    played = Played(D0)
    for at in played.run(3):
        played.beat(steps=round(at * 2), in_flight=2)
    played.now += 20
    played.view.tick(played.now, lambda sender: 0)
    assert played.suspects() == []
    # What has piled up meanwhile is read at once, and is no stall: it looks as if twenty seconds had passed in between.
    played.now += 20
    played.beat(steps=6, in_flight=2)
    played.beat(steps=6, in_flight=2)
    played.view.tick(played.now, lambda sender: 0)
    assert played.suspects() == []


def test_being_late_is_no_pardon() -> None:
    played = Played(D0)
    played.beat(steps=1)
    played.pass_by(3)
    assert played.suspects() == [D0]
    played.now += 5
    played.view.tick(played.now, lambda sender: 0)
    played.pass_by(0.5)
    assert (played.suspects(), played.view.false_alarms) == ([D0], 0)


# An engine that hangs under an actor that beats.


@pytest.mark.parametrize("state", ["T", "Z", "X"])
def test_a_stopped_or_dead_process_of_the_engine_is_enough_at_once(state: str) -> None:
    played = Played(D0)
    played.beat(steps=1, in_flight=1, children=[("S", 1.0), ("S", 1.0)])
    played.beat(steps=1, in_flight=1, children=[("S", 1.0), (state, 1.0)])
    assert "process 5001" in played.why()
    played.pass_by(0.5)
    played.beat(steps=1, in_flight=1, children=[("S", 1.0), ("R", 1.0)])
    assert (played.takes_work(D0), played.view.false_alarms) == (True, 1)


def test_work_without_steps_or_cpu_time_is_a_stall_after_a_second_and_a_half() -> None:
    played = Played(D0)
    for at in played.run(4):
        played.beat(steps=round(at * 2), in_flight=2, children=[("S", at)])
    since = played.now
    for _ in played.run(3):
        played.beat(steps=8, in_flight=2, children=[("S", 4.0)])
    [(noticed, _, _)] = played.changes
    assert noticed - since == 1.5
    assert played.why() == "stalled: 2 requests in flight, no step for 1.5 s, 0.00 s of CPU time spent"


def test_a_stalled_slot_that_lost_its_work_gets_no_more_until_it_has_shown_a_step_or_rested() -> None:
    played = Played(D0)
    for _ in played.run(4):
        played.beat(steps=8, in_flight=2)
    assert played.suspects() == [D0]
    for _ in played.run(5):
        played.beat(steps=8, in_flight=0)
    assert played.suspects() == [D0], "nothing to do is no sign of life"
    played.beat(steps=9, in_flight=0)
    assert played.suspects() == []
    for _ in played.run(4):
        played.beat(steps=9, in_flight=2)
    assert played.suspects() == [D0]
    for _ in played.run(PARDON):
        played.beat(steps=9, in_flight=0)
    assert (played.suspects(), played.view.false_alarms) == ([], 2)


def test_an_idle_engine_may_stand_still_for_ever() -> None:
    played = Played(D0)
    for _ in played.run(300):
        played.beat(steps=7, in_flight=0)
    assert played.changes == []


# What must be left alone.


def test_a_prefill_of_twenty_seconds_is_left_alone() -> None:
    played = Played(P0)
    for _ in played.run(20):
        played.beat(P0, steps=7, in_flight=1, prefilling=1, prefill_tokens=4_000, children=[("S", 0.0)])
    assert played.changes == []


def test_a_long_prompt_has_time_by_its_length() -> None:
    played = Played(D0)
    for _ in played.run(69):
        played.beat(steps=7, in_flight=1, prefilling=1, prefill_tokens=4_000)
    assert played.changes == []
    for _ in played.run(2):
        played.beat(steps=7, in_flight=1, prefilling=1, prefill_tokens=4_000)
    assert played.suspects() == [D0]


def test_a_kernel_being_compiled_on_its_first_use_is_left_alone_for_thirty_seconds() -> None:
    played = Played(D0)
    for at in played.run(29):
        played.beat(steps=7, in_flight=3, children=[("R", at)])
    assert played.changes == []
    for at in played.run(2):
        played.beat(steps=7, in_flight=3, children=[("R", at)])
    assert played.suspects() == [D0]


def test_a_machine_short_of_cpu_is_no_stall_of_its_engines() -> None:
    """Thirty processes on two cores: the compiling one gets a thirtieth, wants more, and its heartbeats come late."""
    played = Played(D0)
    for at in played.run(20):
        if round(at * 2) % 2:
            played.beat(steps=7, in_flight=3, children=[("R", at / 30)])
    assert played.changes == []


def test_the_thresholds_are_the_configurations() -> None:
    played = Played(D0, watch=Watch(silence=4.0, stall=5.0))
    for _ in played.run(4):
        played.beat(steps=7, in_flight=1)
    assert played.changes == []
    for _ in played.run(1.5):
        played.beat(steps=7, in_flight=1)
    assert played.suspects() == [D0]
