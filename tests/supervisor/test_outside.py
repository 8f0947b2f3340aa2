"""External slots as histories: what another manager starts is watched and asked, never started and never killed."""

from typing import Any

import msgspec

from messages.lifecycle import LEASE, State
from supervisor import acts, outside, restart, roster, world
from supervisor.acts import Dismiss, Forget, Note
from supervisor.events import Bus, Tick
from supervisor.lives import KILL_SLACK, Life, Phase
from supervisor.roster import Look
from supervisor.spec import Spec
from supervisor.world import World, WriteGate
from tests.supervisor.histories import D0, D1, F0, P0, beat, registration, spec

CAST = (F0, P0, D0, D1)


def external(slot: str, **more: Any) -> Spec:
    return msgspec.structs.replace(spec(slot, **more), spawn="external")


class Seen:
    """A supervisor's world as it goes on, with all that it has commanded."""

    def __init__(self, *specs: Spec) -> None:
        self.world: World = world.begin({spec.slot: spec for spec in specs}, 0.0, grace=30.0)
        self.commands: list[world.Command] = []

    def at(self, now: float, *events: world.Event) -> list[world.Command]:
        """Feed events at a time; return what they made it command, notes and gates left out."""
        said: list[world.Command] = []
        for event in events:
            self.world, commands = world.step(self.world, event, now)
            said += commands
        self.commands += said
        return [command for command in said if not isinstance(command, Note | WriteGate)]

    def life(self, slot: str = D0) -> Life:
        return self.world.lives.slots[slot]

    @property
    def open(self) -> bool:
        gate = self.world.doors["demo"].gate
        return gate is not None and gate.open

    def missing(self) -> dict[str, str]:
        gate = self.world.doors["demo"].gate
        assert gate is not None
        return {item.what: item.why for item in gate.missing}


def ready(slot: str, generation: int = 1) -> tuple[world.Event, world.Event]:
    """An actor has registered as ready, and is heard."""
    return roster.Registered(registration(slot, generation)), roster.Beat(beat(slot, generation))


def all_ready() -> Seen:
    seen = Seen(*(external(slot) for slot in CAST))
    seen.at(0.0, Bus(up=True), roster.Whole({}))
    for slot in CAST:
        assert seen.at(1.0, *ready(slot)) == []
    assert seen.open
    return seen


def test_nothing_is_started_and_the_gate_waits_for_the_whole_cast() -> None:
    seen = Seen(*(external(slot) for slot in CAST))
    assert seen.at(0.0, Bus(up=True), roster.Whole({})) == []
    assert seen.at(1_000.0, Tick()) == [], "however long nobody comes, that is its manager's affair"
    for slot in CAST:
        assert not seen.open
        assert seen.missing()[slot] == "not there; its manager starts it"
        seen.at(1_001.0, *ready(slot))
    assert seen.open
    assert seen.life().generation == 1
    assert seen.life().restarts == 0


def test_a_lease_alone_closes_the_gate_but_nothing_is_done_before_somebody_has_looked() -> None:
    seen = all_ready()
    assert seen.at(1.0 + LEASE, *(roster.Beat(beat(slot)) for slot in (F0, P0)), Tick()) == [Look(D0, 1), Look(D1, 1)]
    assert not seen.open
    assert seen.life().phase is Phase.READY
    seen.at(4.5, roster.Looked(D0, 1, None, "answered"), roster.Looked(D1, 1, None, "answered"))
    assert seen.open, "it was only late"


def test_whoever_does_not_answer_either_is_gone_and_its_registration_with_it() -> None:
    for answer, words in (("nobody", "nobody listens"), ("silent", "no answer")):
        seen = all_ready()
        others = [roster.Beat(beat(slot)) for slot in (F0, P0, D1)]
        seen.at(4.0, *others, Tick())
        assert seen.open, "degraded: one decode is enough"
        assert seen.at(4.1, roster.Looked(D0, 1, None, answer)) == [Forget(D0, 1)]  # type: ignore[arg-type]
        assert seen.life().phase is Phase.WAITING
        assert words in seen.life().reason
        assert seen.missing() == {D0: "not there; its manager starts it"}
        assert seen.at(9.0, *(roster.Beat(beat(slot)) for slot in (F0, P0, D1)), Tick()) == []
        seen.at(10.0, *ready(D0, 2))
        assert seen.life().phase is Phase.READY
        assert seen.life().restarts == 1
        assert seen.missing() == {}


def test_one_that_was_only_cut_off_comes_back_as_it_was() -> None:
    seen = all_ready()
    seen.at(4.0, *(roster.Beat(beat(slot)) for slot in (F0, P0, D1)), Tick())
    seen.at(4.1, roster.Looked(D0, 1, None, "silent"))
    assert seen.at(20.0, roster.Unregistered(D0), roster.Registered(registration(D0, 1))) == []
    assert seen.life().phase is Phase.WAITING, "registered, but not heard yet"
    seen.at(20.1, roster.Beat(beat(D0, 1)))
    assert seen.life().phase is Phase.READY
    assert seen.life().restarts == 0, "it is the same life"


def test_while_the_bus_is_away_nobody_is_gone() -> None:
    seen = all_ready()
    assert seen.at(2.0, Bus(up=False)) == []
    assert seen.at(60.0, Tick(), roster.Looked(D0, 1, None, "silent")) == []
    assert seen.life().phase is Phase.READY


def test_a_drain_is_asked_for_and_its_end_is_planned() -> None:
    seen = all_ready()
    assert seen.at(2.0, acts.Ask(D0, "restart")) == [Dismiss(D0, 1)]
    assert seen.life().phase is Phase.DRAINING
    assert seen.at(2.1, roster.Registered(registration(D0, 1, State.DRAINING))) == []
    assert seen.at(3.0, roster.Unregistered(D0)) == []
    assert (seen.life().phase, seen.life().reason, seen.life().planned) == (Phase.WAITING, "drained", True)
    seen.at(5.0, *ready(D0, 2))
    assert seen.life().phase is Phase.READY


def test_a_drain_that_does_not_end_is_followed_by_an_exit_and_no_more() -> None:
    seen = all_ready()
    seen.at(2.0, acts.Ask(D0, "drain"))
    over = 2.0 + seen.life().spec.drain_deadline + KILL_SLACK
    assert restart.next_wake(seen.world.lives) == over
    beats = [roster.Beat(beat(slot)) for slot in CAST]
    assert seen.at(over, *beats, Tick()) == [Dismiss(D0, 1, "did not end within its drain deadline")]
    assert seen.at(over + 1, *beats, Tick()) == []


def test_a_stuck_engine_is_told_to_exit_once() -> None:
    seen = all_ready()
    stopped = beat(D0, children=[("T", 1.0)])
    assert seen.at(2.0, roster.Beat(stopped)) == [Dismiss(D0, 1, "its engine's process 5000 is stopped")]
    assert seen.at(2.5, roster.Beat(stopped), roster.Registered(registration(D0, 1))) == []
    assert seen.missing() == {D0: "starting again"}
    seen.at(3.0, roster.Unregistered(D0))
    assert seen.life().reason == "its engine's process 5000 is stopped"


def test_while_it_loads_only_its_own_word_is_known_and_has_a_deadline() -> None:
    seen = Seen(*(external(slot) for slot in CAST))
    seen.at(0.0, Bus(up=True), roster.Whole({}), acts.Seen(D0, 7, State.LOADING))
    assert (seen.life().phase, seen.life().generation) == (Phase.LOADING, 7)
    seen.at(10.0 + KILL_SLACK, Tick())
    assert seen.life().phase is Phase.WAITING
    assert "load deadline" in seen.life().reason
    seen.at(30.0, *ready(D0, 7))
    assert seen.life().phase is Phase.READY, "late is better than never"


def test_an_earlier_life_says_nothing_any_more() -> None:
    seen = all_ready()
    seen.at(2.0, *ready(D0, 3))
    assert seen.at(2.1, acts.Seen(D0, 2, State.LOADING), acts.Lost(D0, 1, "x"), acts.Left(D0, 1)) == []
    assert (seen.life().phase, seen.life().generation) == (Phase.READY, 3)


def test_a_store_that_was_lost_begins_to_count_anew() -> None:
    seen = all_ready()
    seen.at(2.0, *ready(D0, 5))
    seen.at(3.0, roster.Whole({}))
    assert seen.life().phase is Phase.WAITING
    seen.at(4.0, *ready(D0, 1))
    assert (seen.life().phase, seen.life().generation) == (Phase.READY, 1)


def begun_again(*, heard: tuple[str, ...]) -> Seen:
    """A second supervisor, the gate having been open before, that finds the whole cast registered."""
    before = all_ready().world.doors["demo"].gate
    assert before is not None
    seen = Seen(*(external(slot) for slot in CAST))
    seen.world = world.remember(seen.world, "demo", before, goes_on=True)
    seen.at(0.0, Bus(up=True), roster.Whole({slot: registration(slot) for slot in CAST}))
    assert seen.open
    seen.at(0.4, *(roster.Beat(beat(slot)) for slot in heard))
    return seen


def test_a_supervisor_that_comes_later_writes_no_gate_that_says_the_same() -> None:
    seen = begun_again(heard=CAST)
    assert not [command for command in seen.commands if isinstance(command, WriteGate)]
    assert all(life.phase is Phase.READY for life in seen.world.lives.slots.values())


def test_a_registration_whose_owner_is_long_dead_opens_nothing() -> None:
    seen = begun_again(heard=(F0, P0))
    assert seen.at(LEASE, Tick()) == [Look(D0, 1), Look(D1, 1)]
    assert not seen.open
    assert "decode" in seen.missing()
    dead = begun_again(heard=())
    dead.at(LEASE, Tick())
    for slot in CAST:
        assert dead.at(LEASE + 1, roster.Looked(slot, 1, None, "nobody")) == [Forget(slot, 1)]
    for slot in (F0, P0, D0):
        dead.at(LEASE + 2, *ready(slot, 2))
        assert not dead.open, "a cluster that begins anew wants its whole cast"
    dead.at(LEASE + 3, *ready(D1, 2))
    assert dead.open


def test_the_end_of_the_supervisor_is_not_theirs() -> None:
    seen = all_ready()
    assert seen.at(2.0, acts.End()) == []
    assert seen.open
    assert seen.world.lives.over


def test_the_end_of_a_mixed_cluster_waits_for_what_is_its_own_alone() -> None:
    seen = Seen(external(D0), external(P0), spec(F0))
    seen.at(0.0, Bus(up=True), roster.Whole({}), acts.Started(F0, 1), *ready(D0), *ready(P0), *ready(F0))
    assert seen.missing() == {}
    assert seen.at(2.0, acts.End()) == [acts.Terminate(F0, 1)]
    assert not seen.open
    assert seen.life(F0).phase is Phase.DRAINING
    seen.at(3.0, acts.Exited(F0, 1, 0, "drained"))
    assert seen.world.lives.over
    assert seen.life().phase is Phase.READY


def test_no_event_makes_it_start_or_kill() -> None:
    """Each event that a supervised slot knows, in every phase of an external one."""
    events: list[Any] = [
        acts.Started(D0, 1),
        acts.StartFailed(D0, "x"),
        acts.Adopted(D0, 1, 5.0),
        acts.Gone(D0, 1),
        acts.Exited(D0, 1, None, "x"),
        acts.Condemned(D0, 1, "x"),
        acts.Ask(D0, "drain"),
        acts.Ask(D0, "restart"),
        acts.End(abort=True),
        Tick(),
    ]
    for state in (State.LOADING, State.READY, State.DRAINING):
        for event in events:
            lives = restart.begin({D0: external(D0)}, 0.0)
            lives, _ = outside.step(lives, acts.Seen(D0, 1, state), 0.0)
            lives, commands = restart.step(lives, event, 1.0)
            if isinstance(event, outside.Event):
                lives, more = outside.step(lives, event, 1.0)
                commands += more
            wrong = acts.Start | acts.Kill | acts.Terminate
            assert not [command for command in commands if isinstance(command, wrong)], (state, event)
