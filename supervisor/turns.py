"""Decides whose turn it is on a GPU that several slots share: pure.

SGLang sizes its KV cache by what is free as it loads. Two that load at once on one GPU each count what the other is
about to take; so the next one is started when the first is ready, or has failed; who fails
again and again comes after those that wait.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from supervisor.lives import Life, Phase

KILLED_SECONDS: Final = 30.0
"""After so long a process that does not die keeps nobody waiting any more."""


class Neighbour(Struct, frozen=True):
    """Who keeps a slot from being started, and what that one is about."""

    slot: str
    what: str


def before(life: Life, lives: Iterable[Life], now: float) -> Neighbour | None:
    """Return the slot whose GPU this one must not be started on yet, if there is one."""
    mine = set(life.spec.gpus)
    for other in lives:
        if other.spec.slot == life.spec.slot or mine.isdisjoint(other.spec.gpus):
            continue
        if other.phase in (Phase.STARTING, Phase.LOADING):
            return Neighbour(other.spec.slot, "loads")
        if other.phase is Phase.KILLING and now - other.since < KILLED_SECONDS:
            return Neighbour(other.spec.slot, "is ending")
        if other.clear_by > now:
            return Neighbour(other.spec.slot, "is gone, but its memory is not free yet")
        if other.phase is Phase.WAITING and other.behind and other.since < life.since:
            return Neighbour(other.spec.slot, "has waited for longer")
    return None
