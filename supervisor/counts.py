"""Counts what happens to slots, for Prometheus: restarts by reason, recoveries by stage, trouble with the bus: pure.

What an actor counts begins anew with each of its lives; here the lives are added up, so that no figure ever falls.
"""

from bisect import bisect_left
from typing import Final

from messages.ids import Role
from messages.lifecycle import Heartbeat
from messages.metrics import REASONS, RECOVERY_BOUNDS
from supervisor.acts import Note
from supervisor.lives import Life

Place = tuple[str, Role]
"""A model and a role."""
OF_BUS: Final = ("bus_reconnects", "bus_dropped")


class Buckets:
    """A histogram of seconds, its buckets ending at `RECOVERY_BOUNDS`."""

    def __init__(self) -> None:
        self.counts = [0] * (len(RECOVERY_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Put one time in."""
        self.counts[bisect_left(RECOVERY_BOUNDS, seconds)] += 1
        self.sum += seconds


class Counts:
    """All counters of one supervisor; those of the bus are by figure and place."""

    def __init__(self) -> None:
        self.restarts: dict[tuple[Place, str], int] = {}
        self.gave_up: dict[Place, int] = {}
        self.stalled: dict[Place, int] = {}
        self.recovery: dict[tuple[Place, str], Buckets] = {}
        self.outage: dict[Place, Buckets] = {}
        self.of_bus: dict[tuple[str, Place], int] = {}
        self._heard: dict[str, Heartbeat] = {}
        self._stuck: set[tuple[str, int]] = set()
        self._why: dict[str, str] = {}

    def note(self, note: Note, life: Life) -> None:
        """Take in what the deciders have noted of a slot, after they have."""
        place = life.spec.model, life.spec.role
        match note.what:
            case "condemned":
                self._stuck.add((note.slot, note.generation))
                self.stalled[place] = self.stalled.get(place, 0) + 1
            case "died":
                stuck = (note.slot, note.generation) in self._stuck
                self._stuck.discard((note.slot, note.generation))
                self._why[note.slot] = "stalled" if stuck else reason_of(str(note.detail.get("exit", "")), note.reason)
            case "stopped":
                self._why[note.slot] = "planned" if note.planned else "unknown"
            case "gave_up":
                self._stuck.discard((note.slot, note.generation))
                self.gave_up[place] = self.gave_up.get(place, 0) + 1
            case "started":
                why = self._why.pop(note.slot, "")
                if why or life.restarts:
                    key = place, why or ("planned" if life.planned else "unknown")
                    self.restarts[key] = self.restarts.get(key, 0) + 1
            case "ready":
                for stage, seconds in note.detail.get("recovery", {}).items():
                    self.recovery.setdefault((place, stage), Buckets()).add(seconds)
                if "outage" in note.detail:
                    self.outage.setdefault(place, Buckets()).add(note.detail["outage"])

    def beat(self, beat: Heartbeat, place: Place) -> None:
        """Take in what an actor's life has counted so far of its trouble with the bus."""
        if not beat.bus_reconnects and not beat.bus_dropped:
            return
        before = self._heard.get(beat.slot)
        self._heard[beat.slot] = beat
        for figure in OF_BUS:
            old = getattr(before, figure) if before is not None and before.generation == beat.generation else 0
            if (more := getattr(beat, figure) - old) > 0:
                key = figure, place
                self.of_bus[key] = self.of_bus.get(key, 0) + more


def reason_of(exit_: str, reason: str) -> str:
    """Say in one of `REASONS` why a process has ended, by the name of its exit code or its signal."""
    if exit_.startswith("SIG"):
        return "signal"
    name = exit_.lower().replace(" ", "_").replace("-", "_")
    if name in REASONS:
        return name
    return "not_started" if reason.startswith("could not be started") else "unknown"
