"""Splits the time from a slot's death to its next ready into stages: pure, times come with the events.

    detect     from its last sign of life (of an exit: the exit itself) until the supervisor knew
    clean      killing what was left of it, until all of it was gone and its GPUs had their memory back
    backoff    until the next start was due, and its turn on a GPU that others use too, and the bus there
    spawn      until the new process has begun to load
    import     importing the engine's libraries
    load       downloading, reading weights, making the KV pool, and all else that is loaded
    warm_up    the first tokens
    register   registering and subscribing to work
    gate       from its own "ready" until the supervisor has counted it

Their sum is the time from death to ready. Where an attempt to start dies too, the stages are those of the last death,
and `outage` counts from the first.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

STAGES: Final = ("detect", "clean", "backoff", "spawn", "import", "load", "warm_up", "register", "gate")
OF_ACTOR: Final = {"import": "import", "warm_up": "warm_up", "register": "register"}
"""Which stage an actor's own stage belongs to, where that is not `load`."""


class Outage(Struct, frozen=True, kw_only=True):
    """A slot that has died and is not ready again yet: which generation, when, and how far it is; monotonic seconds.

    `first` is the first death since it was ready, `attempts` the starts since then.
    """

    generation: int
    first: float
    died: float
    detected: float
    cleaned: float
    asked: float
    attempts: int = 0


class Recovery(Struct, frozen=True, kw_only=True):
    """A slot's way back: the seconds of each stage, `at` which monotonic time it was ready, whose death it was."""

    died: int
    at: float
    attempts: int
    outage: float
    stages: dict[str, float]

    @property
    def detail(self) -> dict[str, Any]:
        """What the event `ready` says of it."""
        return {
            "recovery": self.stages,
            "died": self.died,
            "attempts": self.attempts,
            "outage": round(self.outage, 3),
        }


def noticed(outage: Outage | None, generation: int, died: float | None, now: float) -> Outage:
    """Take in that a generation is dead, or will be: at `died`, as far as that is known. The first word counts."""
    if outage is not None and outage.generation == generation:
        return outage
    at = now if died is None else min(died, now)
    first, attempts = (at, 0) if outage is None else (outage.first, outage.attempts)
    return Outage(generation=generation, first=first, died=at, detected=now, cleaned=now, asked=now, attempts=attempts)


def not_started(outage: Outage, now: float) -> Outage:
    """Take in that no process came of a start: as good as one that died at once."""
    return msgspec.structs.replace(outage, died=now, detected=now, cleaned=now, asked=now)


def cleaned(outage: Outage, now: float) -> Outage:
    """Take in that (more of) what was left of it is gone."""
    return msgspec.structs.replace(outage, cleaned=now, asked=now)


def asked(outage: Outage, now: float) -> Outage:
    """Take in that the next start was commanded."""
    return msgspec.structs.replace(outage, asked=now, attempts=outage.attempts + 1)


def over(outage: Outage, stages: Mapping[str, float], ready_at: float | None, now: float) -> Recovery:
    """Sum up, now that it is ready; `stages` are the actor's own, `ready_at` when it said that it was ready.

    Without that time (nobody heard it begin) what is between is all counted as spawning.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    spent["detect"] = outage.detected - outage.died
    spent["clean"] = outage.cleaned - outage.detected
    spent["backoff"] = outage.asked - outage.cleaned
    for name, seconds in stages.items():
        spent[OF_ACTOR.get(name, "load")] += seconds
    rest = now - outage.asked - sum(stages.values())
    if ready_at is not None:
        spent["gate"] = min(max(0.0, now - ready_at), max(0.0, rest))
    spent["spawn"] = max(0.0, rest - spent["gate"])
    return Recovery(
        died=outage.generation,
        at=now,
        attempts=outage.attempts,
        outage=now - outage.first,
        stages={name: round(seconds, 3) for name, seconds in spent.items()},
    )
