"""What the publisher knows of one slot of its host: who is registered, how it is, and whose KV events it follows."""

import time
from typing import Final

from actors.publisher.loads import differs, load_of
from actors.publisher.source import Source
from messages.ids import short
from messages.lifecycle import Heartbeat, Registration, State
from messages.telemetry import Load

REFRESH: Final = 10.0
"""Seconds after which load figures are told again though nothing has changed, for those who have come since."""


class Watched:
    """One slot; its last registration stays known when it has left the registry, `there` says whether it has not.

    `sources` are those whose KV events are followed, by DP rank; `followed` is the generation that they belong to.
    """

    def __init__(self, registration: Registration) -> None:
        self.registration = registration
        self.there = True
        self.state: State = registration.state
        self.restarts = 0
        self.beat: Heartbeat | None = None
        self.heard = 0.0
        self.load: Load | None = None
        self.sources: dict[int, Source] = {}
        self.followed = 0

    @property
    def name(self) -> str:
        """The slot's name."""
        return self.registration.slot

    @property
    def role(self) -> str:
        """The slot's role."""
        return self.registration.role

    @property
    def model(self) -> str:
        """The model that it serves, empty for none."""
        return self.registration.model

    @property
    def generation(self) -> int:
        """The newest generation that has registered."""
        return self.registration.generation

    def register(self, registration: Registration) -> bool:
        """Take over a registration; return whether it begins a new life. One of an earlier life changes nothing."""
        if registration.generation < self.generation:
            return False
        new = registration.generation > self.generation
        if new:
            self.restarts += 1
            self.beat = self.load = None
        self.registration, self.there, self.state = registration, True, registration.state
        return new

    def leave(self) -> None:
        """It is registered no more."""
        self.there = False
        if self.state in (State.READY, State.DRAINING):
            self.state = State.STOPPED

    def hear(self, beat: Heartbeat) -> Load | None:
        """Take in a heartbeat; return the load figures if they are worth telling, None for what has no engine."""
        if beat.generation != self.generation:
            return None
        self.beat, self.heard = beat, time.monotonic()
        if not self.registration.total_blocks:
            return None
        load = load_of(beat, time.time())
        if self.load is not None and not differs(load, self.load) and load.at - self.load.at < REFRESH:
            return None
        self.load = load
        return load

    def __str__(self) -> str:
        return short(self.name, self.generation)
