"""A rolling restart, as histories: one after the other, behind the gate, to its end or to a clear stop."""

import pytest

from messages.lifecycle import Exit, State
from supervisor import acts, rolling, roster, world
from supervisor.events import Bus, Tick
from supervisor.lives import Phase
from supervisor.rolling import Roll
from supervisor.world import World
from tests.supervisor.histories import D0, D1, F0, P0, registration, spec

SPECS = {slot: spec(slot) for slot in (P0, D0, D1, F0)}


class Rolled:
    """A world of which every slot is ready, told of what happens to it; `terminated` are those asked to drain."""

    def __init__(self) -> None:
        self.now = 0.0
        self.world: World = world.begin(SPECS, 0.0, grace=30.0)
        self.commands: list[world.Command] = []
        self.feed(roster.Whole({}))
        self.feed(Bus(True))
        for slot in SPECS:
            self.start(slot, 1)
        self.later(30)

    def feed(self, event: world.Event) -> None:
        """Take in an event."""
        self.world, commands = world.step(self.world, event, self.now)
        self.commands += commands

    def start(self, slot: str, generation: int) -> None:
        """Let a slot's life begin and become ready."""
        self.feed(acts.Started(slot, generation))
        self.ready(slot, generation)

    def ready(self, slot: str, generation: int) -> None:
        """Let a slot register as ready."""
        self.feed(roster.Registered(registration(slot, generation)))

    def end(self, slot: str, generation: int, code: int | None = Exit.OK) -> None:
        """Let a slot's life end."""
        self.feed(acts.Exited(slot, generation, code, "ended"))
        self.feed(roster.Unregistered(slot))

    def begin(self, role: str = "") -> Roll:
        """Ask for a rolling restart."""
        roll = rolling.plan("one", "demo", role, self.world.lives, self.now)
        self.feed(rolling.Begin(roll))
        return roll

    def later(self, seconds: float) -> None:
        """Let time pass, everybody being heard meanwhile."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.feed(roster.Late())
            self.feed(Tick())

    @property
    def roll(self) -> Roll:
        """How far it is."""
        return self.world.rolls["demo"]

    @property
    def state(self) -> str:
        """Whether it goes on."""
        return self.roll.state

    @property
    def terminated(self) -> list[str]:
        """Who was asked to drain so far."""
        return [command.slot for command in self.commands if isinstance(command, acts.Terminate)]

    def phase(self, slot: str) -> Phase:
        """How a slot stands."""
        return self.world.lives.slots[slot].phase


def test_the_next_one_has_its_turn_only_when_the_one_before_is_ready_again() -> None:
    played = Rolled()
    played.begin()
    for number, slot in enumerate(SPECS, start=1):
        assert played.terminated == list(SPECS)[:number]
        assert played.roll.at == slot
        played.later(3)
        played.end(slot, 1)
        played.feed(acts.Started(slot, 2))
        played.later(3)
        assert played.terminated == list(SPECS)[:number]
        played.ready(slot, 2)
    assert (played.state, played.roll.done, played.roll.total) == ("done", 4, 4)
    lives = played.world.lives.slots.values()
    assert all(life.phase is Phase.READY and not life.crashes and life.planned for life in lives)
    told = [command for command in played.commands if isinstance(command, acts.Note) and "roll" in command.detail]
    assert [note.what for note in told] == ["rolls", "rolled"] * 4 + ["roll_done"]
    assert all(note.planned for note in told)


def test_only_the_role_that_is_meant() -> None:
    played = Rolled()
    assert [slot for slot, _ in played.begin("decode").left] == [D0, D1]


@pytest.mark.parametrize(
    ("alias", "role", "says"),
    [
        ("demo", "encoder", "demo has no encoder; it has decode, prefill, processor"),
        ("other", "", "there is no model 'other'"),
    ],
)
def test_what_is_not_there_is_told(alias: str, role: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rolling.plan("one", alias, role, Rolled().world.lives, 0.0)


def test_a_death_elsewhere_is_waited_out_first_and_its_new_life_needs_no_restart() -> None:
    played = Rolled()
    played.begin("decode")
    played.end(D1, 1, None)
    played.end(D0, 1)
    played.start(D0, 2)
    assert played.roll.at == ""
    assert played.terminated == [D0]
    played.start(D1, 2)
    assert (played.state, played.roll.done) == ("done", 2)
    assert played.terminated == [D0]


def test_a_closed_gate_is_waited_for_and_not_for_ever() -> None:
    played = Rolled()
    played.begin("decode")
    played.end(D0, 1)
    played.feed(acts.Ask(P0, "drain"))
    played.end(P0, 1)
    played.start(D0, 2)
    assert played.terminated == [D0, P0]
    played.later(SPECS[D1].load_deadline + rolling.SLACK - 1)
    assert played.state == "going"
    played.later(3)
    assert played.state == "stopped"
    assert "the gate is closed (missing" in played.roll.why


@pytest.mark.parametrize(("code", "says"), [(Exit.CONFIG, "did not come back: ended"), (None, "did not come back")])
def test_it_stops_at_one_that_does_not_come_back_and_leaves_the_others_alone(code: int | None, says: str) -> None:
    played = Rolled()
    played.begin()
    played.end(P0, 1)
    for generation in range(2, 7):
        if played.phase(P0) is Phase.STARTING:
            played.feed(acts.Started(P0, generation))
            played.end(P0, generation, code)
            played.later(10)
    assert played.phase(P0) is Phase.FAILED
    assert played.state == "stopped"
    assert says in played.roll.why
    played.later(600)
    assert played.terminated == [P0]


def test_what_has_failed_is_started_first_and_what_was_drained_stays_drained() -> None:
    played = Rolled()
    played.feed(acts.Ask(D1, "drain"))
    played.end(D1, 1)
    played.end(F0, 1)
    played.feed(acts.Started(F0, 2))
    played.end(F0, 2, Exit.CONFIG)
    assert played.phase(F0) is Phase.FAILED
    assert [slot for slot, _ in played.begin().left] == [F0, P0, D0]
    assert played.phase(F0) is Phase.STARTING


def test_a_slot_drained_in_the_middle_of_it_is_no_reason_to_go_on_blindly() -> None:
    played = Rolled()
    played.begin("decode")
    played.feed(acts.Ask(D0, "drain"))
    played.end(D0, 1)
    assert played.state == "stopped"
    assert "was drained by somebody else" in played.roll.why


def test_asked_to_stop_it_finishes_the_slot_at_hand_and_begins_no_other() -> None:
    played = Rolled()
    played.begin()
    played.feed(rolling.Halt("demo"))
    played.end(P0, 1)
    played.start(P0, 2)
    played.later(60)
    assert (played.state, played.roll.why) == ("stopped", "asked to")
    assert played.phase(P0) is Phase.READY
    assert played.terminated == [P0]


def test_nothing_is_drained_while_nats_is_away_or_the_cluster_is_being_ended() -> None:
    played = Rolled()
    played.feed(Bus(False))
    played.begin("decode")
    played.later(5)
    assert played.terminated == []
    played.feed(Bus(True))
    for slot in SPECS:
        played.ready(slot, 1)
    assert played.terminated == [D0]
    played.feed(acts.End())
    assert played.state == "stopped"


def test_a_slot_that_drains_by_itself_is_waited_for() -> None:
    played = Rolled()
    played.feed(roster.Registered(registration(D0, 1, State.DRAINING)))
    played.begin("decode")
    assert played.terminated == []
    played.end(D0, 1)
    assert Phase.STARTING is played.phase(D0)
    played.start(D0, 2)
    assert played.roll.done == 1
    assert played.terminated == [D1]
