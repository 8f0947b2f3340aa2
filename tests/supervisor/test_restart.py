"""When a slot is started, ended, killed and started again, as histories."""

import math

import pytest

from messages.lifecycle import Exit, State
from supervisor.acts import (
    Adopted,
    Ask,
    Condemned,
    Downloading,
    End,
    Exited,
    Forget,
    Gone,
    Kill,
    Seen,
    Start,
    Started,
    StartFailed,
    Terminate,
)
from supervisor.deaths import add_restart, backoff
from supervisor.events import Bus, Tick
from supervisor.lives import Phase
from supervisor.restart import next_wake
from supervisor.spec import Policy
from tests.supervisor.histories import D0, D1, F0, P0, Played, spec

UP, DOWN = Bus(up=True), Bus(up=False)


def ready(*specs_: object, at: float = 1.0, **policy: object) -> Played:
    """A cluster of which every slot runs its first generation and is ready."""
    played = Played(*(specs_ or (spec(**policy),)))  # type: ignore[arg-type]
    played.at(0, UP)
    for slot in played.lives.slots:
        played.at(0, Started(slot, 1))
        played.at(at, Seen(slot, 1, State.READY))
    return played


def crash(played: Played, at: float, generation: int, code: int | None = None, *, slot: str = D0) -> list[object]:
    return list(played.at(at, Exited(slot, generation, code, "killed by signal 9")))


def test_nothing_starts_without_the_bus() -> None:
    played = Played(spec())
    assert played.at(0, Tick()) == []
    assert played.at(60, DOWN) == []
    assert played.at(61, UP) == [Start(D0)]


def test_slots_start_in_the_order_of_their_specs() -> None:
    played = Played(spec(P0), spec(D0), spec(F0))
    assert played.at(0, UP) == [Start(P0), Start(D0), Start(F0)]


def test_a_long_life_starts_again_at_once_and_a_short_one_after_the_backoff() -> None:
    played = ready()
    assert crash(played, 20, 1) == [Forget(D0, 1), Start(D0)]
    played.at(20, Started(D0, 2))
    played.at(20.5, Seen(D0, 2, State.READY))
    assert crash(played, 21, 2) == [Forget(D0, 2)]
    assert next_wake(played.lives) == 22  # the second doubling: 2 s after the last start
    assert played.at(21.9, Tick()) == []
    assert played.at(22, Tick()) == [Start(D0)]


def test_the_budget_counts_restarts_within_the_period_and_then_gives_up() -> None:
    played = ready()
    for generation, at in enumerate((100, 105, 110), start=1):
        assert Start(D0) in crash(played, at, generation) + played.at(at + 4, Tick())
        played.at(at + 4, Started(D0, generation + 1), Seen(D0, generation + 1, State.READY))
    assert crash(played, 115, 4) == [Forget(D0, 4)]
    assert played.life().phase is Phase.FAILED
    assert "4 crashes within 30 s, 3 are allowed" in played.life().reason
    assert played.at(10_000, Tick()) == []
    assert len(played.notes("gave_up")) == 1


def test_crashes_further_apart_than_the_period_never_use_up_the_budget() -> None:
    played = ready(forget=1e9)
    at = 0.0
    for generation in range(1, 20):
        at += 31
        assert Start(D0) in crash(played, at, generation) + played.at(at + 9.9, Tick())
        played.at(at + 9.9, Started(D0, generation + 1), Seen(D0, generation + 1, State.READY))
    assert played.life().phase is Phase.READY


def test_crashes_before_ready_have_a_budget_of_their_own() -> None:
    played = Played(spec(crashes_before_ready=2, intensity=0))
    played.at(0, UP)
    at = 0.0
    for generation in (1, 2):
        played.at(at, Started(D0, generation))
        assert Start(D0) in crash(played, at + 9, generation) + played.at(at + 20, Tick())
        at += 20
    played.at(at, Started(D0, 3))
    assert crash(played, at + 9, 3) == [Forget(D0, 3)]
    assert "crashed 3 times before it was ready" in played.life().reason


def test_a_time_in_ready_forgets_what_was() -> None:
    played = ready()
    crash(played, 2, 1)
    played.at(3, Tick())
    played.at(3, Started(D0, 2))
    played.at(4, Seen(D0, 2, State.READY))
    assert (played.life().streak, len(played.life().crashes)) == (1, 1)
    played.at(63.9, Tick())
    assert played.life().streak == 1
    played.at(64, Tick())
    assert (played.life().streak, played.life().crashes, played.life().restarts) == (0, (), 1)


@pytest.mark.parametrize("code", [Exit.CONFIG, Exit.WARM_UP])
def test_what_starting_again_cannot_mend_is_not_retried(code: Exit) -> None:
    played = Played(spec())
    played.at(0, UP, Started(D0, 1))
    assert played.at(1, Exited(D0, 1, code, "unknown argument 'tp_sizes'; did you mean 'tp_size'?")) == [Forget(D0, 1)]
    assert played.life().phase is Phase.FAILED
    assert "did you mean 'tp_size'?" in played.life().reason
    assert played.at(1e6, Tick()) == []


@pytest.mark.parametrize(
    ("type_", "code", "again"),
    [
        ("permanent", Exit.OK, True),
        ("permanent", None, True),
        ("transient", Exit.OK, False),
        ("transient", Exit.ENGINE_DIED, True),
        ("temporary", Exit.OK, False),
        ("temporary", None, False),
    ],
)
def test_restart_types_mean_what_they_mean_in_otp(type_: str, code: int | None, again: bool) -> None:
    played = ready(type=type_)
    assert (Start(D0) in crash(played, 30, 1, code)) is again


def test_a_slot_that_does_not_become_ready_is_killed_and_waits_for_its_exit() -> None:
    played = Played(spec())
    played.at(0, UP, Started(D0, 1))
    assert next_wake(played.lives) == 15  # the load deadline, and time for the actor's own word on it
    assert played.at(15, Tick()) == [Kill(D0, 1)]
    assert played.at(100, Tick()) == []
    assert crash(played, 101, 1) == [Forget(D0, 1), Start(D0)]
    assert played.life().reason == "not ready within its load deadline of 10 s"


def test_the_load_deadline_begins_anew_while_a_download_goes_on() -> None:
    played = Played(spec())
    played.at(0, UP, Started(D0, 1))
    assert played.at(12, Downloading(D0, 1)) == []
    played.at(13, Downloading(D0, 2))
    assert played.at(26.9, Tick()) == []
    assert played.at(27, Tick()) == [Kill(D0, 1)]


def test_evidence_kills_once_and_the_next_life_starts_when_the_process_is_gone() -> None:
    played = ready()
    assert played.at(30, Condemned(D0, 1, "stalled")) == [Kill(D0, 1)]
    assert played.at(30.1, Condemned(D0, 1, "stalled")) == []
    assert crash(played, 30.2, 1) == [Forget(D0, 1), Start(D0)]
    assert (played.life().reason, played.life().planned) == ("stalled", False)


def test_a_process_that_is_gone_is_forgotten_at_once_and_followed_when_its_session_is() -> None:
    played = ready()
    assert played.at(30, Gone(D0, 1)) == [Forget(D0, 1)]
    assert played.at(90, Tick()) == []
    assert Start(D0) in crash(played, 90, 1)


def test_what_an_earlier_life_left_behind_changes_nothing() -> None:
    played = ready()
    crash(played, 30, 1)
    played.at(30, Started(D0, 2))
    before = played.lives
    assert played.at(31, Seen(D0, 1, State.READY), Condemned(D0, 1, "late"), Exited(D0, 1, None, "twice")) == []
    assert played.lives == before


def test_a_planned_restart_drains_costs_no_budget_and_forgives() -> None:
    played = ready(intensity=0)
    assert played.at(30, Ask(D0, "restart")) == [Terminate(D0, 1)]
    assert played.life().phase is Phase.DRAINING
    assert played.at(35, Exited(D0, 1, Exit.OK, "drained")) == [Forget(D0, 1), Start(D0)]
    assert played.life().planned
    assert played.life().crashes == ()


def test_a_drained_slot_stays_stopped_until_somebody_asks() -> None:
    played = ready()
    played.at(30, Ask(D0, "drain"))
    assert played.at(31, Exited(D0, 1, Exit.OK, "drained")) == [Forget(D0, 1)]
    assert played.at(1_000, Tick()) == []
    assert (played.life().phase, played.life().planned) == (Phase.STOPPED, True)
    assert played.at(1_001, Ask(D0, "restart")) == [Start(D0)]


def test_a_restart_asked_for_brings_a_failed_slot_back_with_a_fresh_budget() -> None:
    played = ready(intensity=0)
    crash(played, 30, 1)
    assert played.life().phase is Phase.FAILED
    assert played.at(40, Ask(D0, "restart")) == [Start(D0)]
    played.at(40, Started(D0, 2), Seen(D0, 2, State.READY))
    assert played.life().phase is Phase.READY


def test_a_drain_that_takes_too_long_ends_in_a_kill() -> None:
    played = ready()
    played.at(30, Ask(D0, "drain"))
    assert played.at(64.9, Tick()) == []
    assert played.at(65, Tick()) == [Kill(D0, 1)]
    crash(played, 65.1, 1)
    assert played.life().phase is Phase.STOPPED


def test_a_drain_asked_of_a_slot_that_is_just_being_started_is_not_lost() -> None:
    played = Played(spec())
    played.at(0, UP)
    assert played.at(0.1, Ask(D0, "drain")) == []
    assert played.at(0.2, Started(D0, 1)) == [Terminate(D0, 1)]
    played.at(0.3, Exited(D0, 1, Exit.OK, "stopped while loading"))
    assert played.life().phase is Phase.STOPPED


def test_losing_the_bus_is_no_fault_of_the_slot() -> None:
    played = ready(intensity=0)
    played.at(30, DOWN)
    assert crash(played, 60, 1, Exit.BUS_LOST) == [Forget(D0, 1)]
    assert played.life().phase is Phase.WAITING
    assert played.at(90, Tick()) == []
    assert played.at(91, UP) == [Start(D0)]


def test_losing_the_bus_alone_is_a_fault_of_the_slot() -> None:
    played = ready(intensity=0)
    crash(played, 60, 1, Exit.BUS_LOST)
    assert played.life().phase is Phase.FAILED


def test_a_start_that_fails_for_want_of_the_bus_costs_nothing_and_any_other_counts() -> None:
    played = Played(spec(crashes_before_ready=0))
    played.at(0, UP)
    assert played.at(1, StartFailed(D0, "no bus", excuse="bus")) == []
    assert played.at(2, Tick()) == [Start(D0)]
    played.at(3, StartFailed(D0, "out of memory"))
    assert played.life().phase is Phase.FAILED
    assert "could not be started: out of memory" in played.life().reason


def test_what_is_adopted_is_not_started_and_its_death_is_seen() -> None:
    played = Played(spec(D0), spec(D1))
    played.at(0, Adopted(D0, 7, age=300.0, restarts=2, reason="killed"))
    assert played.at(0, UP) == [Start(D1)]
    played.at(0.1, Seen(D0, 7, State.READY))
    assert (played.life().phase, played.life().restarts) == (Phase.READY, 2)
    assert crash(played, 5, 7) == [Forget(D0, 7), Start(D0)]


def test_an_adopted_slot_that_was_ready_long_ago_is_not_killed_by_its_old_load_deadline() -> None:
    played = Played(spec())
    played.at(0, Adopted(D0, 7, age=9_000.0), UP)
    assert played.at(1, Tick()) == []
    assert played.at(1, Seen(D0, 7, State.READY), Tick()) == []


def test_all_ends_front_to_back_tier_by_tier() -> None:
    played = ready(spec(P0), spec(D0), spec(D1), spec(F0))
    assert played.at(30, End()) == [Terminate(F0, 1)]
    assert played.at(31, Exited(F0, 1, Exit.OK, "drained")) == [Forget(F0, 1), Terminate(P0, 1)]
    assert played.at(32, Exited(P0, 1, Exit.OK, "drained")) == [Forget(P0, 1), Terminate(D0, 1), Terminate(D1, 1)]
    assert not played.lives.over
    played.at(33, Exited(D0, 1, Exit.OK, "drained"), Exited(D1, 1, None, "killed by signal 9"))
    assert played.lives.over


def test_what_only_loads_ends_with_the_first_tier_and_what_waits_never_starts() -> None:
    played = ready(spec(D0), spec(F0))
    crash(played, 2, 1, slot=D0)
    played.at(3, Tick(), Started(D0, 2))
    assert played.at(3, End()) == [Terminate(D0, 2), Terminate(F0, 1)]
    waiting = Played(spec())
    waiting.at(0, End())
    assert waiting.at(1, UP) == []
    assert waiting.lives.over


def test_a_second_end_aborts_every_slot_at_once() -> None:
    played = ready(spec(D0), spec(F0))
    played.at(30, End())
    assert played.at(31, End(abort=True)) == [Terminate(D0, 1, abort=True), Terminate(F0, 1, abort=True)]
    assert played.at(36, Tick()) == [Kill(D0, 1), Kill(F0, 1)]


def test_an_actor_drained_by_somebody_else_gets_its_deadline_and_a_next_life() -> None:
    played = ready()
    played.at(30, Seen(D0, 1, State.DRAINING))
    assert next_wake(played.lives) == 65
    assert crash(played, 31, 1, Exit.OK) == [Forget(D0, 1), Start(D0)]


def test_the_counter_keeps_only_what_lies_within_the_period() -> None:
    assert add_restart((0.0, 5.0, 9.9), 15.0, 10.0) == (5.0, 9.9, 15.0)


def test_the_backoff_doubles_up_to_its_bound_give_or_take_a_fifth() -> None:
    policy = Policy(backoff=0.2, backoff_max=30.0)
    assert [backoff(policy, streak, 0) for streak in (0, 1, 2, 3)] == [0.2, 0.4, 0.8, 1.6]
    assert backoff(policy, 10_000, 0) == 30.0
    assert math.isclose(backoff(policy, 0, 1), 0.24)
    assert math.isclose(backoff(policy, 0, -1), 0.16)
