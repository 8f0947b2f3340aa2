"""Who is ready, whose lease is over, who is stuck: as histories."""

from typing import Any

import pytest

from messages.lifecycle import Probed, State
from supervisor import roster
from supervisor.events import Bus, Tick
from supervisor.roster import Beat, Lapsed, Late, Look, Looked, Peek, Registered, Roster, Stuck, Unregistered, Whole
from tests.supervisor.histories import D0, F0, P0, beat, registration

UP, DOWN = Bus(up=True), Bus(up=False)


class Watched:
    """A roster being played."""

    def __init__(self, *slots: str, state: State = State.READY) -> None:
        self.roster = Roster(entries={}, grace=30.0)
        self.peeks: list[tuple[float, str]] = []
        self.at(0, UP, Whole({slot: registration(slot, state=state) for slot in slots}))

    def at(self, now: float, *events: roster.Event) -> list[roster.Finding]:
        """Feed events at a time; return what was found, and keep peeks apart: they change nothing by themselves."""
        found: list[roster.Finding] = []
        for event in events:
            self.roster, more = roster.step(self.roster, event, now)
            found += [finding for finding in more if not isinstance(finding, Peek)]
            self.peeks += [(now, finding.slot) for finding in more if isinstance(finding, Peek)]
        return found

    def beats(self, start: float, end: float, **figures: Any) -> list[roster.Finding]:
        """Feed a heartbeat every half second, the same figures each time."""
        found: list[roster.Finding] = []
        for half in range(round(start * 2), round(end * 2) + 1):
            found += self.at(half / 2, Beat(beat(**figures)), Tick())
        return found


def stuck(found: list[roster.Finding]) -> list[str]:
    return [finding.why for finding in found if isinstance(finding, Stuck)]


def test_a_lease_lasts_three_seconds_and_its_end_is_a_reason_to_look_and_no_more() -> None:
    watched = Watched(D0)
    assert watched.at(2.9, Tick()) == []
    assert watched.at(3.0, Tick()) == [Lapsed(D0, 1, over=True), Look(D0, 1)]
    assert not watched.roster.entries[D0].live
    assert watched.at(3.5, Tick()) == []
    assert watched.at(5.0, Tick()) == [Look(D0, 1)]


def test_a_heartbeat_takes_the_lease_up_again() -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    assert watched.at(3.2, Beat(beat())) == [Lapsed(D0, 1, over=False)]
    assert watched.roster.entries[D0].live
    assert watched.at(6.1, Tick()) == []


def test_what_still_loads_has_no_lease() -> None:
    watched = Watched(D0, state=State.REGISTERING)
    assert watched.at(600, Tick()) == []
    assert not watched.roster.entries[D0].live


@pytest.mark.parametrize(
    ("process", "answer", "why"),
    [
        ("T", "unasked", "no heartbeat for 4.0 s and its process is stopped"),
        ("Z", "unasked", "no heartbeat for 4.0 s and its process has ended"),
        ("S", "silent", "no heartbeat for 4.0 s and no answer, on a well bus"),
        ("S", "nobody", None),
        ("S", "answered", None),
        ("S", "unasked", None),
        (None, "unasked", None),
    ],
)
def test_a_lease_kills_only_together_with_something_else(process: Any, answer: Any, why: str | None) -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    assert stuck(watched.at(4.0, Looked(D0, 1, process, answer))) == ([why] if why else [])


def test_a_late_heartbeat_is_a_reason_to_see_whether_the_process_is_stopped_and_that_is_enough() -> None:
    watched = Watched(D0)
    watched.at(0.5, Beat(beat()), Tick())
    watched.at(1.4, Tick())
    assert watched.peeks == []
    watched.at(1.5, Tick())
    assert watched.peeks == [(1.5, D0)]
    assert watched.at(1.5, Looked(D0, 1, "S", "unasked")) == []
    assert stuck(watched.at(2.0, Looked(D0, 1, "T", "unasked"))) == [
        "no heartbeat for 1.5 s and its process is stopped"
    ]


def test_an_engine_that_wants_cpu_time_on_a_machine_that_has_none_is_no_stall() -> None:
    watched = Watched(D0)
    for half in range(50):
        figures: dict[str, Any] = {"in_flight": 2, "steps": 7, "children": [("R", half / 60)]}
        assert watched.at(half / 2, Beat(beat(**figures))) == []


def test_an_actor_that_answers_keeps_its_lease() -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    assert watched.at(4.0, Looked(D0, 1, "S", "answered")) == [Lapsed(D0, 1, over=False)]
    assert watched.roster.entries[D0].live


def test_an_actor_that_is_off_the_bus_gets_its_grace() -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    assert stuck(watched.at(32.9, Looked(D0, 1, "S", "nobody"))) == []
    assert stuck(watched.at(33.0, Looked(D0, 1, "S", "nobody"))) == ["off the bus for 33.0 s; its grace is 30 s"]


def test_leases_stand_still_while_the_bus_is_away_and_start_anew_when_it_is_back() -> None:
    watched = Watched(D0)
    watched.at(1, DOWN)
    assert watched.at(60, Tick()) == []
    watched.at(60, UP)
    assert watched.at(62.9, Tick()) == []
    assert Look(D0, 1) in watched.at(63.0, Tick())


def test_a_look_that_ends_after_the_bus_was_lost_proves_nothing() -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    assert watched.at(4.0, DOWN, Looked(D0, 1, "S", "silent")) == []


def test_an_observer_that_was_late_itself_starts_anew() -> None:
    watched = Watched(D0)
    assert watched.at(100, Late(), Tick()) == []
    assert watched.roster.entries[D0].live


@pytest.mark.parametrize(("state", "says"), [("T", "is stopped"), ("Z", "is a zombie"), ("X", "is gone")])
def test_a_stopped_or_dead_process_of_the_engine_is_proof_at_once(state: str, says: str) -> None:
    watched = Watched(D0)
    assert stuck(watched.at(0.5, Beat(beat(children=[("S", 1.0), (state, 1.0)])))) == [
        f"its engine's process 5001 {says}"
    ]


def test_work_without_steps_or_cpu_time_is_a_stall_after_a_second_and_a_half() -> None:
    watched = Watched(D0)
    assert watched.beats(0, 10, in_flight=0, steps=7, children=[("S", 5.0)]) == []
    assert watched.beats(10.5, 11, in_flight=2, steps=7, children=[("S", 5.0)]) == []
    found = stuck(watched.at(11.5, Beat(beat(in_flight=2, steps=7, children=[("S", 5.0)]))))
    assert found == ["stalled: 2 requests in flight, no step for 1.5 s, 0.00 s of CPU time spent"]


@pytest.mark.parametrize("resting", ["paused", "asleep"])
def test_an_engine_that_was_told_to_rest_does_not_stall_and_has_its_time_anew_afterwards(resting: str) -> None:
    watched = Watched(D0)
    held: dict[str, Any] = {"in_flight": 2, "steps": 7, "children": [("S", 5.0)]}
    assert watched.beats(0, 60, resting=resting, **held) == []
    assert watched.beats(60.5, 61, **held) == []
    assert stuck(watched.at(61.5, Beat(beat(**held)))) == [
        "stalled: 2 requests in flight, no step for 1.5 s, 0.00 s of CPU time spent"
    ]


def test_steps_are_progress() -> None:
    watched = Watched(D0)
    for half in range(40):
        assert watched.at(half / 2, Beat(beat(in_flight=2, steps=half))) == []


def test_an_idle_engine_may_stand_still_for_ever() -> None:
    watched = Watched(D0)
    assert watched.beats(0, 300, in_flight=0, steps=7) == []


def test_what_the_engine_holds_back_is_no_work() -> None:
    watched = Watched(D0)
    assert watched.beats(0, 60, in_flight=3, queued=3, steps=7) == []


@pytest.mark.parametrize(("tokens", "allowed"), [(0, 30.0), (1_000, 40.0)])
def test_a_long_prompt_gets_time_by_its_length(tokens: int, allowed: float) -> None:
    watched = Watched(D0)
    figures: dict[str, Any] = {"in_flight": 1, "prefilling": 1, "prefill_tokens": tokens, "steps": 7}
    assert watched.beats(0, allowed - 0.5, **figures) == []
    assert stuck(watched.at(allowed, Beat(beat(**figures))))


def test_cpu_time_that_goes_on_is_a_kernel_being_compiled() -> None:
    watched = Watched(D0)
    for half in range(60):
        assert watched.at(half / 2, Beat(beat(in_flight=1, steps=7, children=[("R", half / 2)]))) == []
    assert stuck(watched.at(30, Beat(beat(in_flight=1, steps=7, children=[("R", 30.0)]))))


@pytest.mark.parametrize(("share", "allowed"), [(0.4, 330), (0.02, 30)], ids=["polling", "asleep"])
def test_prefill_that_polls_may_be_waiting_for_decode_to_have_room(share: float, allowed: int) -> None:
    watched = Watched(P0)

    def found(half: int) -> list[str]:
        figures: dict[str, Any] = {"in_flight": 10, "prefilling": 10, "steps": 7}
        return stuck(watched.at(half / 2, Beat(beat(P0, children=[("S", half / 2 * share)], **figures))))

    assert [half for half in range(2 * allowed) if found(half)] == []
    assert found(2 * allowed)


def test_the_hum_of_an_idle_engine_is_no_cpu_time() -> None:
    watched = Watched(D0)
    watched.at(0, Beat(beat(in_flight=1, steps=7, children=[("S", 0.0)])))
    assert stuck(watched.at(1.5, Beat(beat(in_flight=1, steps=7, children=[("S", 0.06)]))))


def test_beats_that_piled_up_while_the_observer_was_late_are_no_stall() -> None:
    watched = Watched(D0)
    watched.at(0, Beat(beat(in_flight=1, steps=7)))
    assert stuck(watched.at(10, Late(), Beat(beat(in_flight=1, steps=7)), Beat(beat(in_flight=1, steps=7)))) == []


def test_a_processor_has_no_steps_to_show() -> None:
    watched = Watched(F0)
    for half in range(200):
        assert watched.at(half / 2, Beat(beat(F0, in_flight=9))) == []


def test_an_earlier_generation_is_not_heard() -> None:
    watched = Watched()
    watched.at(0, Registered(registration(D0, 2)))
    watched.at(1, Registered(registration(D0, 1)), Beat(beat(D0, 1)))
    assert watched.roster.entries[D0].registration.generation == 2
    assert watched.roster.entries[D0].beat is None


def test_a_new_generation_has_a_lease_in_full() -> None:
    watched = Watched(D0)
    watched.at(3.0, Tick())
    watched.at(10.0, Registered(registration(D0, 2)))
    assert watched.at(12.9, Tick()) == []
    assert watched.roster.entries[D0].live


def test_reading_the_registry_anew_keeps_leases_and_drops_who_has_gone() -> None:
    watched = Watched(D0, F0)
    watched.at(2.0, Whole({D0: registration(D0)}))
    assert list(watched.roster.entries) == [D0]
    assert Look(D0, 1) in watched.at(3.0, Tick())
    watched.at(3.1, Unregistered(D0))
    assert watched.at(9.0, Tick()) == []


def test_an_idle_engine_that_does_not_answer_a_health_probe_is_stuck_whatever_else_its_heartbeats_say() -> None:
    watched = Watched(D0)
    well = Probed(result="ok", age=400.0, seconds=0.02)
    assert watched.beats(0, 10, probe=well) == []
    found = watched.at(11, Beat(beat(probe=Probed(result="silent", failures=1, message="no answer within 30 s"))))
    assert [why for why in stuck(found) if "hangs while idle" in why and "no answer within 30 s" in why]


def test_one_failed_health_probe_is_none_and_two_in_a_row_are_enough() -> None:
    watched = Watched(D0)
    failed = Probed(result="failed", failures=1, message="error 500: out of memory")
    assert watched.beats(0, 10, probe=failed) == []
    assert watched.beats(10.5, 12, probe=Probed(result="ok")) == []
    found = watched.at(13, Beat(beat(probe=Probed(result="failed", failures=2, message="error 500: out of memory"))))
    assert stuck(found) == ["2 health probes failed: error 500: out of memory"]


def test_a_health_probe_of_an_earlier_life_proves_nothing() -> None:
    watched = Watched(D0)
    watched.at(1, Registered(registration(D0, 2)))
    assert watched.at(2, Beat(beat(generation=1, probe=Probed(result="silent", failures=1)))) == []


def test_a_slot_that_has_never_been_probed_is_judged_as_before() -> None:
    watched = Watched(D0)
    assert watched.beats(0, 60) == []


def test_an_encoder_that_takes_no_steps_is_stuck_after_a_time_for_its_inputs() -> None:
    slot = "demo-encoder-0"
    watched = Watched(slot)
    hung = {"slot": slot, "in_flight": 2, "prefilling": 2, "prefill_tokens": 1_000, "steps": 7}
    assert watched.beats(0, 39, **hung) == []
    assert "2 requests in flight" in stuck(watched.beats(39.5, 41, **hung))[0]


def test_an_encoder_that_takes_steps_is_well_however_long_its_work_is() -> None:
    slot = "demo-encoder-0"
    watched = Watched(slot)
    for step in range(100):
        at = float(step)
        assert watched.beats(at, at, slot=slot, in_flight=2, prefilling=2, prefill_tokens=9, steps=step) == []
