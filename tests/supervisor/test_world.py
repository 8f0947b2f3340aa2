"""The deciders together: whatever happens in whatever order, what must always hold holds."""

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from messages.gate import Gate, Missing
from messages.lifecycle import Exit, State
from supervisor import acts, roster, world
from supervisor.events import Bus, Tick
from supervisor.lives import RUNNING, Phase
from supervisor.world import World, WriteGate
from tests.supervisor.histories import D0, D1, F0, P0, beat, registration, spec

SPECS = {slot: spec(slot, intensity=2, crashes_before_ready=2) for slot in (P0, D0, D1, F0)}


class Theatre:
    """A world with processes: it starts what is commanded, and checks every command against what really runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.world: World = world.begin(SPECS, 0.0, grace=30.0)
        self.running: dict[str, int] = {}
        self.dying: set[str] = set()
        self.starting: set[str] = set()
        self.last: dict[str, int] = defaultdict(int)
        self.registered: dict[str, int] = {}
        self.gates: list[Gate] = []
        self.bus = False
        self.ended = False
        self.commands: list[world.Command] = []
        self.feed(roster.Whole({}))

    def feed(self, event: world.Event) -> None:
        """Take in an event, and carry out what follows."""
        self.world, commands = world.step(self.world, event, self.now)
        self.commands += commands
        for command in commands:
            match command:
                case acts.Start(slot):
                    assert slot not in self.running, "started while its earlier life still ran"
                    assert slot not in self.starting, "started twice"
                    assert self.bus, "started without the bus"
                    assert not self.ended, "started while everything ends"
                    self.starting.add(slot)
                case acts.Kill(slot, generation) | acts.Terminate(slot, generation):
                    assert self.running.get(slot) == generation, "a signal for a life that is over"
                case acts.Forget(slot, generation):
                    assert slot not in self.running or slot in self.dying, "forgotten alive"
                    if self.registered.get(slot) == generation:
                        del self.registered[slot]
                case WriteGate(gate):
                    self.gates.append(gate)
        self.check()

    def check(self) -> None:
        """What holds at every moment."""
        for slot, life in self.world.lives.slots.items():
            assert (life.phase in RUNNING) == (slot in self.running)
            assert len(life.crashes) <= life.spec.policy.intensity + 1
        door = self.world.doors["demo"]
        if door.gate is not None and door.gate.open:
            for role in ("prefill", "decode", "processor"):
                ready = [
                    slot
                    for slot, life in self.world.lives.slots.items()
                    if life.spec.role == role and slot in self.running and self.registered.get(slot) == life.generation
                ]
                assert ready, f"open without a ready {role}"

    def act(self, what: str, slot: str, number: int) -> None:
        """Let one thing happen."""
        generation = self.running.get(slot, 0)
        match what:
            case "bus":
                self.bus = not self.bus
                self.feed(Bus(self.bus))
            case "time":
                self.now += number / 4
                self.feed(Tick())
            case "late":
                self.feed(roster.Late())
            case "spawned" if slot in self.starting:
                self.starting.discard(slot)
                self.last[slot] += 1
                self.running[slot] = self.last[slot]
                self.feed(acts.Started(slot, self.last[slot]))
            case "unspawned" if slot in self.starting:
                self.starting.discard(slot)
                self.feed(acts.StartFailed(slot, "no memory", excuse="bus" if number % 2 else ""))
            case "register" if generation and slot not in self.dying:
                self.registered[slot] = generation
                state = State.READY if number % 4 else State.DRAINING
                self.feed(roster.Registered(registration(slot, generation, state)))
            case "unregister" if slot in self.registered:
                del self.registered[slot]
                self.feed(roster.Unregistered(slot))
            case "gone" if generation:
                self.dying.add(slot)
                self.feed(acts.Gone(slot, generation))
            case "exit" if generation:
                self.dying.discard(slot)
                del self.running[slot]
                code = [None, Exit.OK, Exit.LOAD, Exit.CONFIG, Exit.BUS_LOST][number % 5]
                self.feed(acts.Exited(slot, generation, code, "ended", (number % 3) - 1.0))
            case "beat":
                self.feed(roster.Beat(beat(slot, generation or 1, in_flight=number % 2, steps=number // 4)))
            case "look":
                self.feed(roster.Looked(slot, generation, "T" if number % 2 else "S", "silent"))
            case "condemn":
                self.feed(acts.Condemned(slot, generation, "stalled"))
            case "ask":
                self.feed(acts.Ask(slot, "restart" if number % 2 else "drain"))
            case "stale":
                self.feed(acts.Exited(slot, self.last[slot] - 1, None, "old"))
                self.feed(acts.Seen(slot, self.last[slot] - 1, State.READY))
            case "end":
                self.ended = True
                self.feed(acts.End(abort=bool(number % 2)))


OFTEN = ["time", "spawned", "register", "exit", "beat"]
WHAT = ["bus", "late", "unspawned", "unregister", "look", "condemn", "ask", "stale", "gone", *OFTEN, *OFTEN, *OFTEN]
HAPPENINGS = st.lists(st.tuples(st.sampled_from(WHAT), st.sampled_from(sorted(SPECS)), st.integers(0, 40)), max_size=60)


def played(happenings: list[tuple[str, str, int]]) -> Theatre:
    theatre = Theatre()
    theatre.act("bus", D0, 0)
    for what, slot, number in happenings:
        theatre.act(what, slot, number)
    return theatre


@settings(max_examples=300, deadline=None)
@given(HAPPENINGS)
def test_no_order_of_events_breaks_what_must_hold(happenings: list[tuple[str, str, int]]) -> None:
    theatre = played(happenings)
    epochs = [gate.epoch for gate in theatre.gates]
    assert epochs == list(range(1, len(epochs) + 1))


@settings(max_examples=150, deadline=None)
@given(HAPPENINGS, st.booleans())
def test_whatever_happened_everything_can_be_ended(happenings: list[tuple[str, str, int]], abort: bool) -> None:
    theatre = played(happenings)
    theatre.act("end", D0, int(abort))
    for _ in range(20):
        for slot in SPECS:
            theatre.act("spawned", slot, 1)
        told = {c.slot for c in theatre.commands if isinstance(c, acts.Kill | acts.Terminate)}
        for slot in (told | theatre.dying) & set(theatre.running):
            theatre.act("exit", slot, 1)
        theatre.act("time", D0, 400)
    assert theatre.world.lives.over
    assert not theatre.running


@settings(max_examples=150, deadline=None)
@given(HAPPENINGS)
def test_whatever_happened_a_well_cluster_opens_again(happenings: list[tuple[str, str, int]]) -> None:
    theatre = played(happenings)
    if not theatre.bus:
        theatre.act("bus", D0, 0)
    for slot in SPECS:
        theatre.act("exit", slot, 0)
        theatre.act("unregister", slot, 0)
    for _ in range(3):
        for slot in SPECS:
            theatre.act("spawned", slot, 1)
            theatre.act("exit", slot, 1)
        theatre.act("time", D0, 400)
    for slot in SPECS:
        theatre.act("ask", slot, 1)
    for slot in SPECS:
        theatre.act("exit", slot, 1)
        theatre.act("spawned", slot, 1)
        theatre.act("register", slot, 1)
    gate = theatre.world.doors["demo"].gate
    assert gate is not None
    assert gate.open, [(slot, life.phase, life.reason) for slot, life in theatre.world.lives.slots.items()]


def up() -> Theatre:
    theatre = Theatre()
    theatre.act("bus", D0, 0)
    for slot in SPECS:
        theatre.act("spawned", slot, 0)
        theatre.act("register", slot, 1)
    return theatre


def test_a_death_closes_the_gate_in_the_same_step_and_forgets_the_registration() -> None:
    theatre = up()
    theatre.act("exit", P0, 0)
    assert [gate.open for gate in theatre.gates][-2:] == [True, False]
    assert P0 not in theatre.registered
    assert theatre.gates[-1].missing[-1].why == "starting again"


def test_one_of_two_degrades_the_gate_and_its_return_makes_it_whole_with_two_writes_in_all() -> None:
    theatre = up()
    written = len(theatre.gates)
    theatre.act("exit", D1, 0)
    theatre.act("time", D1, 8)
    theatre.act("spawned", D1, 0)
    theatre.act("register", D1, 1)
    changes = [command.what for command in theatre.commands if isinstance(command, WriteGate)][written:]
    assert changes == ["degraded", "whole"]


def test_a_lease_that_is_over_counts_against_the_gate_without_a_kill() -> None:
    theatre = up()
    theatre.now += 3
    for slot in (D0, D1, F0):
        theatre.act("beat", slot, 0)
    theatre.feed(Tick())
    assert theatre.gates[-1].missing[-1] == Missing(what=P0, why="its lease is over")
    assert not theatre.gates[-1].open
    assert theatre.world.lives.slots[P0].phase is Phase.READY
    assert roster.Look(P0, 1) in theatre.commands


def test_a_gate_remembers_its_epoch_and_where_the_cluster_goes_on_that_it_was_open() -> None:
    old = Gate(model="demo", alias="demo", open=True, epoch=41, since=1.0, opened=True)
    for goes_on in (True, False):
        state = world.remember(world.begin(SPECS, 0.0, grace=30.0), "demo", old, goes_on=goes_on)
        history: list[Any] = [acts.Adopted(slot, 3, 10.0) for slot in (P0, D0, F0)]
        history += [Bus(True), roster.Whole({slot: registration(slot, 3) for slot in (P0, D0, F0)})]
        written: list[Gate] = []
        for event in history:
            state, commands = world.step(state, event, 1.0)
            written += [command.gate for command in commands if isinstance(command, WriteGate)]
        assert [gate.epoch for gate in written] == [42]
        assert written[0].open is goes_on
        assert written[0].degraded is goes_on
