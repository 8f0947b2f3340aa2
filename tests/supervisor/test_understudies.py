"""Understudies as histories: who works, who stands by, and what must hold whatever happens in whatever order."""

from collections import defaultdict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messages.lifecycle import Exit, State
from supervisor import acts, restart, rolling, roster, understudies, world
from supervisor.events import Bus, Tick
from supervisor.lives import Phase
from supervisor.spec import Spec
from supervisor.world import World, WriteGate
from tests.supervisor.histories import D0, D1, F0, P0, registration, spec

D2 = "demo-decode-2"


def specs(*decode: str, actives: int) -> dict[str, Spec]:
    """A cast with understudies of decode: so many of these are to work at once."""
    made = {slot: msgspec.structs.replace(spec(slot, intensity=1_000), actives=actives) for slot in decode}
    return {P0: spec(P0, intensity=1_000)} | made | {F0: spec(F0, intensity=1_000)}


class Stage:
    """A world and its actors; they do what real ones do, each when the test says so."""

    def __init__(self, *decode: str, actives: int = 1, begun: bool = True) -> None:
        self.specs = specs(*decode, actives=actives)
        self.decode = decode
        self.actives = actives
        self.now = 0.0
        self.world: World = world.begin(self.specs, 0.0, grace=30.0)
        self.commands: list[world.Command] = []
        self.states: dict[str, tuple[int, State]] = {}
        self.starting: set[str] = set()
        self.told: set[str] = set()
        self.calls: list[acts.Promote] = []
        self.last: dict[str, int] = defaultdict(int)
        self.bus = True
        self.feed(roster.Whole({}))
        self.feed(Bus(True))
        if begun:
            for slot in self.specs:
                self.up(slot)
            self.answer()

    def feed(self, event: world.Event) -> None:
        """Take in an event, and note what is commanded."""
        self.world, commands = world.step(self.world, event, self.now)
        self.commands += commands
        for command in commands:
            match command:
                case acts.Start(slot):
                    assert slot not in self.states, "started while its earlier life still ran"
                    assert slot not in self.starting
                    self.starting.add(slot)
                case acts.Promote(slot, generation):
                    assert self.states[slot] == (generation, State.STANDBY), "called who does not stand by"
                    assert self.bus, "called without the bus"
                    called = [life for life in self.world.lives.slots.values() if life.call == "asked"]
                    fresh = [life for life in called if self.now - life.called < understudies.CALL]
                    assert len(fresh) <= max(self.actives, 1)
                    self.calls.append(command)
                case acts.Terminate(slot, generation) | acts.Kill(slot, generation):
                    assert self.states[slot][0] == generation
                    self.told.add(slot)

    def register(self, slot: str, state: State) -> None:
        """Let a slot's actor register a state."""
        generation = self.states[slot][0]
        self.states[slot] = (generation, state)
        self.feed(roster.Registered(registration(slot, generation, state)))

    def up(self, slot: str) -> None:
        """Let a slot's process begin, and be done with loading."""
        if slot in self.starting:
            self.starting.discard(slot)
            self.last[slot] += 1
            self.states[slot] = (self.last[slot], State.LOADING)
            self.feed(acts.Started(slot, self.last[slot]))
        if self.states.get(slot, (0, None))[1] is State.LOADING:
            self.register(slot, State.STANDBY if slot in self.decode else State.READY)

    def answer(self) -> None:
        """Let those who have been called come."""
        while self.calls:
            call = self.calls.pop(0)
            if self.states.get(call.slot) == (call.generation, State.STANDBY):
                self.register(call.slot, State.READY)

    def refuse(self) -> None:
        """Let those who have been called not come."""
        calls, self.calls = self.calls, []
        for call in calls:
            self.feed(acts.Refused(call.slot, call.generation, "no answer"))

    def die(self, slot: str, code: int | None = None) -> None:
        """Let a slot's process end."""
        if slot in self.states:
            generation, _ = self.states.pop(slot)
            self.told.discard(slot)
            self.feed(acts.Gone(slot, generation))
            self.feed(acts.Exited(slot, generation, code, "killed"))

    def later(self, seconds: float) -> None:
        """Let time pass, everybody being heard."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            self.feed(roster.Late())
            self.feed(Tick())

    def settle(self) -> None:
        """Let everything happen that is due, until nothing is."""
        if not self.bus:
            self.bus = True
            self.feed(Bus(True))
        for _ in range(12):
            for slot in sorted(self.told):
                self.die(slot, Exit.OK)
            for slot in self.specs:
                self.up(slot)
            self.answer()
            if self.settled:
                return
            self.later(8)

    @property
    def settled(self) -> bool:
        """Whether everybody is where they should be, and nothing is under way."""
        lives = self.world.lives.slots.values()
        up = all(life.phase in (Phase.READY, Phase.STANDBY) and life.call == "" for life in lives)
        rolls = any(roll.state == "going" for roll in self.world.rolls.values())
        return up and not rolls and not self.told and len(self.who(Phase.READY)) == self.actives

    def who(self, phase: Phase) -> list[str]:
        """Who of decode is in this phase."""
        return [slot for slot in self.decode if self.world.lives.slots[slot].phase is phase]

    @property
    def called(self) -> list[str]:
        """Who has been called so far, and has not answered."""
        return [call.slot for call in self.calls]

    @property
    def gates(self) -> list[str]:
        """What was told of the gate."""
        return [command.what for command in self.commands if isinstance(command, WriteGate)]


def test_at_the_start_as_many_are_called_as_are_to_work_and_the_gate_wants_no_more() -> None:
    stage = Stage(D0, D1, D2, actives=2)
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D0, D1], [D2])
    assert stage.gates[-1] == "opened"
    gate = stage.world.doors["demo"].gate
    assert gate is not None
    assert (gate.open, gate.missing) == (True, [])


def test_a_death_calls_the_understudy_at_once_and_the_dead_one_stands_by_next() -> None:
    stage = Stage(D0, D1)
    stage.now = 100.0
    stage.feed(acts.Gone(D0, 1))
    assert stage.called == [D1]
    stage.answer()
    assert stage.gates[-2:] == ["closed", "opened"]
    stage.die(D0)
    stage.up(D0)
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D1], [D0])
    assert stage.called == []
    assert stage.gates[-2:] == ["closed", "opened"]


def test_one_that_is_being_killed_for_a_hang_is_stood_in_for_before_it_is_gone() -> None:
    stage = Stage(D0, D1)
    stage.feed(acts.Condemned(D0, 1, "stalled"))
    assert stage.called == [D1]


def test_of_two_deaths_at_once_one_is_stood_in_for_and_the_other_by_whoever_is_back_first() -> None:
    stage = Stage(D0, D1, D2, actives=2)
    stage.now = 100.0
    stage.die(D0)
    stage.die(D1)
    assert stage.called == [D2]
    stage.answer()
    stage.up(D1)
    assert stage.called == [D1]
    stage.answer()
    stage.up(D0)
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D1, D2], [D0])


def test_the_death_of_an_understudy_is_nobodys_business_but_its_own() -> None:
    stage = Stage(D0, D1)
    stage.now = 100.0
    told = len(stage.gates)
    stage.die(D1)
    stage.up(D1)
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D0], [D1])
    assert stage.gates[told:] == []
    assert len(stage.world.lives.slots[D1].crashes) == 1


def test_an_understudy_that_does_not_come_is_called_again_after_the_others() -> None:
    stage = Stage(D0, D1, D2)
    stage.feed(acts.Gone(D0, 1))
    assert stage.called == [D1]
    stage.refuse()
    assert stage.called == [D2]
    stage.refuse()
    assert stage.called == []
    stage.later(understudies.CALL_AGAIN)
    assert stage.called == [D1]
    stage.later(understudies.CALL)
    assert D2 in stage.called


def test_a_planned_restart_waits_until_another_has_taken_over() -> None:
    stage = Stage(D0, D1)
    stage.feed(acts.Ask(D0, "restart"))
    assert (stage.called, stage.told) == ([D1], set())
    stage.answer()
    assert stage.told == {D0}
    assert "closed" not in stage.gates
    stage.die(D0, Exit.OK)
    stage.up(D0)
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D1], [D0])
    assert stage.world.lives.slots[D0].planned
    assert not stage.world.lives.slots[D0].crashes


def test_a_restart_waits_neither_for_an_understudy_that_is_not_there_nor_for_ever() -> None:
    stage = Stage(D0, D1)
    stage.die(D1)
    stage.feed(acts.Ask(D0, "restart"))
    assert stage.told == {D0}
    other = Stage(D0, D1)
    other.feed(acts.Ask(D0, "drain"))
    other.later(restart.HAND_OVER - 1)
    assert other.told == set()
    other.later(1)
    assert other.told == {D0}


def test_a_restart_of_an_understudy_takes_nothing_from_anybody() -> None:
    stage = Stage(D0, D1)
    stage.feed(acts.Ask(D1, "restart"))
    assert (stage.told, stage.called) == ({D1}, [])


def test_one_too_many_goes_back_to_standing_by() -> None:
    stage = Stage(D0, D1)
    stage.later(1)
    stage.register(D1, State.READY)
    stage.later(understudies.SURPLUS - 1)
    assert stage.told == set()
    stage.later(1)
    assert stage.told == {D1}
    stage.settle()
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D0], [D1])


def test_a_new_supervisor_takes_over_who_works_and_calls_nobody() -> None:
    stage = Stage(D0, D1, begun=False)
    stage.world = world.begin(stage.specs, 0.0, grace=30.0)
    for slot in stage.specs:
        stage.feed(acts.Adopted(slot, 7, 300.0))
    stage.states = {P0: (7, State.READY), D0: (7, State.STANDBY), D1: (7, State.READY), F0: (7, State.READY)}
    stage.feed(Bus(True))
    stage.feed(roster.Whole({slot: registration(slot, *state) for slot, state in stage.states.items()}))
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D1], [D0])
    assert stage.called == []


def test_a_new_supervisor_calls_where_one_has_died_meanwhile() -> None:
    stage = Stage(D0, D1, begun=False)
    stage.world = world.begin(stage.specs, 0.0, grace=30.0)
    for slot in (P0, D0, F0):
        stage.feed(acts.Adopted(slot, 7, 300.0))
    stage.states = {P0: (7, State.READY), D0: (7, State.STANDBY), F0: (7, State.READY)}
    stage.starting.clear()
    stage.feed(Bus(True))
    stage.feed(roster.Whole({slot: registration(slot, *state) for slot, state in stage.states.items()}))
    assert stage.called == [D0]


def test_one_that_stands_by_where_none_should_any_more_is_called() -> None:
    stage = Stage(D0, actives=0, begun=False)
    for slot in stage.specs:
        stage.up(slot)
    assert stage.called == [D0]
    stage.refuse()
    stage.later(understudies.CALL_AGAIN)
    stage.answer()
    assert stage.gates[-1] == "opened"


def test_the_end_takes_understudies_with_what_only_loads() -> None:
    stage = Stage(D0, D1)
    stage.feed(acts.End())
    assert stage.told == {D1, F0}
    stage.settle()
    assert stage.world.lives.over


def test_a_rolling_restart_makes_all_of_them_new_with_no_gap() -> None:
    stage = Stage(D0, D1)
    stage.feed(rolling.Begin(rolling.plan("one", "demo", "decode", stage.world.lives, stage.now)))
    assert stage.told == {D1}
    stage.settle()
    assert stage.world.rolls["demo"].state == "done"
    assert {slot: stage.last[slot] for slot in (D0, D1)} == {D0: 2, D1: 2}
    assert (stage.who(Phase.READY), stage.who(Phase.STANDBY)) == ([D1], [D0])
    assert "closed" not in stage.gates


WHAT = ["die", "die", "up", "up", "answer", "refuse", "time", "bus", "ask", "condemn", "told", "late answer", "roll"]
HAPPENINGS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 5), st.integers(1, 20)), max_size=40)


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None)
@given(HAPPENINGS, st.sampled_from([((D0, D1), 1), ((D0, D1, D2), 2), ((D0, D1, D2), 1)]))
def test_whatever_happens_in_the_end_as_many_work_as_should_and_the_others_stand_by(
    happenings: list[tuple[str, int, int]], cast: tuple[tuple[str, ...], int]
) -> None:
    decode, actives = cast
    stage = Stage(*decode, actives=actives)
    for what, which, number in happenings:
        slot = decode[which % len(decode)]
        match what:
            case "die":
                stage.die(slot, [None, Exit.OK, Exit.ENGINE_DIED][number % 3])
            case "up":
                stage.up(slot)
            case "answer":
                stage.answer()
            case "late answer" if stage.states.get(slot, (0, None))[1] is State.STANDBY:
                stage.register(slot, State.READY)
            case "refuse":
                stage.refuse()
            case "time":
                stage.later(number / 2)
            case "bus":
                stage.bus = not stage.bus
                stage.feed(Bus(stage.bus))
            case "ask":
                stage.feed(acts.Ask(slot, "restart"))
            case "condemn" if slot in stage.states:
                stage.feed(acts.Condemned(slot, stage.states[slot][0], "stalled"))
            case "told" if slot in stage.told:
                stage.die(slot, Exit.OK)
            case "roll" if stage.world.rolls.get("demo", None) is None:
                stage.feed(rolling.Begin(rolling.plan("one", "demo", "", stage.world.lives, stage.now)))
    stage.settle()
    lives = {slot: (stage.world.lives.slots[slot].phase, stage.states.get(slot)) for slot in decode}
    assert len(stage.who(Phase.READY)) == actives, lives
    assert len(stage.who(Phase.STANDBY)) == len(decode) - actives, lives
    assert {slot for slot in decode if stage.states[slot][1] is State.READY} == set(stage.who(Phase.READY))
    gate = stage.world.doors["demo"].gate
    assert gate is not None
    assert gate.open
    assert not gate.missing
