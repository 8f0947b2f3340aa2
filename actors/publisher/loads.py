"""Load figures: the engine's own account, from its heartbeats, brought up to date once it has fallen idle: pure."""

from typing import Final

import msgspec

from messages.lifecycle import Heartbeat, RankLoad
from messages.telemetry import Load

AGED: Final = 5.0
"""Seconds after which what an engine said while it was busy is not believed of an idle one."""


def load_of(beat: Heartbeat, at: float) -> Load:
    """Make the figures of a slot from its heartbeat.

    An engine that gives no account of its own has the actor's figures as its one rank's. With nothing in flight,
    figures older than `AGED` seconds are those of its last busy moment: they are set to 0.
    """
    ranks = beat.loads or [RankLoad(0, max(0, beat.in_flight - beat.queued), beat.queued, beat.kv_used, beat.kv_total)]
    idle = beat.in_flight == 0
    if idle:
        ranks = [_aged(rank) for rank in ranks]
    return Load(slot=beat.slot, generation=beat.generation, at=at, ranks=ranks, idle=idle)


def _aged(rank: RankLoad) -> RankLoad:
    if rank.age < AGED:
        return rank
    return msgspec.structs.replace(rank, running=0, queued=0, kv_used=0)


def differs(new: Load, old: Load | None) -> bool:
    """Whether figures are worth telling: anything but their ages has changed."""
    if old is None or (new.generation, new.idle, len(new.ranks)) != (old.generation, old.idle, len(old.ranks)):
        return True
    return any(_figures(one) != _figures(other) for one, other in zip(new.ranks, old.ranks, strict=True))


def _figures(rank: RankLoad) -> tuple[int, ...]:
    return (rank.dp_rank, rank.running, rank.queued, rank.kv_used, rank.kv_total)
