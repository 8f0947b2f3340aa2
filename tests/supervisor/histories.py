"""Histories as data: slots, heartbeats and events in few words, and a player that feeds them to a decider."""

from collections.abc import Iterable
from typing import Any

from messages.ids import Role, parse_slot
from messages.lifecycle import Child, Heartbeat, Registration, State
from supervisor import acts, restart
from supervisor.lives import Life, Lives
from supervisor.spec import FRONT_TO_BACK, Policy, Spec

D0, D1, P0, F0 = "demo-decode-0", "demo-decode-1", "demo-prefill-0", "demo-processor-0"


def spec(slot: str = D0, *, min_ready: int = 1, drain_deadline: float = 30.0, **policy: Any) -> Spec:
    """A slot with quick times: 10 s to load, a back-off of 1 s."""
    named = parse_slot(slot)
    defaults: dict[str, Any] = {"intensity": 3, "period": 30.0, "backoff": 1.0, "backoff_max": 8.0, "forget": 60.0}
    return Spec(
        slot=slot,
        role=named.role,
        alias=named.alias,
        model=named.alias,
        tier=FRONT_TO_BACK[named.role],
        min_ready=min_ready,
        load_deadline=10.0,
        drain_deadline=drain_deadline,
        policy=Policy(**(defaults | policy)),
    )


def registration(slot: str = D0, generation: int = 1, state: State = State.READY, **more: Any) -> Registration:
    """What the slot's owner would write to the registry."""
    named = parse_slot(slot)
    return Registration(
        slot=slot,
        role=named.role,
        generation=generation,
        state=state,
        host="here",
        pid=4_242,
        alias=named.alias,
        **more,
    )


def beat(slot: str = D0, generation: int = 1, *, children: Iterable[tuple[str, float]] = (), **more: Any) -> Heartbeat:
    """A heartbeat; `children` are (state, CPU seconds)."""
    engine = [Child(pid=5_000 + at, state=state, cpu_seconds=cpu) for at, (state, cpu) in enumerate(children)]
    return Heartbeat(slot=slot, generation=generation, state=State.READY, children=engine, **more)


class Played:
    """A history being played to the restart decider: what it has commanded so far, and how a slot stands."""

    def __init__(self, *specs: Spec) -> None:
        self.lives: Lives = restart.begin({spec.slot: spec for spec in specs}, 0.0)
        self.commands: list[acts.SlotCommand] = []
        self.now = 0.0

    def at(self, now: float, *events: acts.SlotEvent) -> list[acts.SlotCommand]:
        """Feed events at a time; return what they made it command, notes left out."""
        self.now = now
        said: list[acts.SlotCommand] = []
        for event in events:
            self.lives, commands = restart.step(self.lives, event, now)
            said += commands
        self.commands += said
        return [command for command in said if not isinstance(command, acts.Note)]

    def notes(self, what: str) -> list[acts.Note]:
        """All that was noted under this word."""
        return [command for command in self.commands if isinstance(command, acts.Note) and command.what == what]

    def life(self, slot: str = D0) -> Life:
        """How a slot stands."""
        return self.lives.slots[slot]


def role_of(slot: str) -> Role:
    """The role in a slot's name."""
    return parse_slot(slot).role
