"""What every actor, of whatever role, tells of itself: in the registry, in heartbeats, and when its state changes."""

import os
import socket
import time

from actors.setup import Setup
from actors.stages import Stages
from messages import procfs
from messages.bus import Bus
from messages.lifecycle import Event, Heartbeat, Registration, State


def registration(setup: Setup, state: State, stages: Stages) -> Registration:
    """Say where it is and what it serves."""
    return Registration(
        slot=str(setup.slot),
        role=setup.slot.role,
        generation=setup.generation,
        state=state,
        host=socket.gethostname(),
        pid=os.getpid(),
        model=setup.model.name,
        alias=setup.model.slug,
        capacity=setup.part.capacity,
        load_seconds=round(stages.total, 3),
        stages=stages.lengths,
        started=time.time(),
    )


def heartbeat(setup: Setup, state: State, bus: Bus) -> Heartbeat:
    """Say that it lives, and what it has spent."""
    return Heartbeat(
        slot=str(setup.slot),
        generation=setup.generation,
        state=state,
        capacity=setup.part.capacity,
        cpu_seconds=round(time.process_time(), 3),
        rss_bytes=procfs.rss_bytes(),
        bus_reconnects=bus.reconnects,
        bus_dropped=bus.dropped,
    )


def change(setup: Setup, state: State, stages: Stages, *, reason: str, planned: bool) -> Event:
    """Say which state it is in now; `planned` if it has been asked to end."""
    return Event(
        topic="actor",
        of=str(setup.slot),
        what=state,
        at=time.time(),
        generation=setup.generation,
        reason=reason,
        planned=planned,
        detail={"stages": stages.lengths} if state in (State.READY, State.STANDBY) else {},
    )
