"""Decides whether a model's gate is open: pure, `(state, cast, now) -> (state, gate to write or None)`.

A gate first opens when the whole cast is ready. It then stays open, degraded by what is missing, while each role has
as many ready slots as it needs, and closes when one has not. It says nothing of requests admitted before.
"""

import msgspec
from msgspec import Struct

from messages.gate import Gate, Missing
from messages.ids import Role


class Wanted(Struct, frozen=True, kw_only=True):
    """One slot that the cast wants; `why` says what it is short of, in words that change only when the matter does."""

    slot: str
    role: Role
    ready: bool
    why: str = ""


class Door(Struct, frozen=True, kw_only=True):
    """One model's gate as last decided; `opened` once the whole cast has been ready."""

    model: str
    alias: str
    needs: dict[Role, int]
    opened: bool = False
    gate: Gate | None = None


def step(door: Door, cast: list[Wanted], http: list[str], ending: bool = False) -> tuple[Door, Gate | None]:
    """Decide anew; return the gate to write, with the next epoch and no time in it yet, or None if nothing changed."""
    missing = [Missing(what=slot.slot, why=slot.why) for slot in cast if not slot.ready]
    ready = {role: sum(slot.ready for slot in cast if slot.role == role) for role in door.needs}
    short = [
        Missing(what=role, why=f"{ready[role]} of at least {needs} ready")
        for role, needs in door.needs.items()
        if ready[role] < needs
    ]
    opened = door.opened or not missing
    is_open = opened and not short and not ending
    if ending:
        missing = [Missing(what=door.alias, why="the cluster is being ended")]
    gate = Gate(
        model=door.model,
        alias=door.alias,
        open=is_open,
        epoch=door.gate.epoch if door.gate is not None else 0,
        since=door.gate.since if door.gate is not None else 0.0,
        degraded=is_open and bool(missing),
        opened=opened,
        missing=([] if is_open or ending else short if opened else []) + missing,
        http=sorted(http),
    )
    if gate == door.gate:
        return door, None
    gate = msgspec.structs.replace(gate, epoch=gate.epoch + 1, since=0.0)
    return msgspec.structs.replace(door, opened=opened, gate=gate), gate


def what_changed(before: Gate | None, after: Gate) -> str:
    """Name a change of the gate for the event stream: opened, closed, degraded, whole, or changed."""
    was_open = before is not None and before.open
    if after.open != was_open:
        return "opened" if after.open else "closed"
    if after.open and before is not None and after.degraded != before.degraded:
        return "degraded" if after.degraded else "whole"
    return "changed"
