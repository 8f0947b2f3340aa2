"""Decides a rolling restart: one slot after the other, behind the gate; pure, `(roll, standing, now) -> (roll, steps)`.

A slot's turn comes when all the others are where they should be and the gate is open; the next one's, when it is back.
What has failed goes first, and understudies before those that they stand in for: neither takes anything from clients.
A slot that has begun a new life meanwhile is new already. What somebody has drained stays as it is.

The supervisor carries it on by itself, so that nothing hangs on the command that asked for it. The next supervisor does
not: what has been restarted is restarted, and whoever wants the rest asks again.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from supervisor.acts import Note
from supervisor.lives import AT_REST, Life, Lives, Phase

SLACK: Final = 60.0
"""Seconds beyond a load deadline that a closed gate is waited for between two slots."""


class Standing(Struct, frozen=True, kw_only=True):
    """How a model stands: every life, which slots are `back` in service, whether its gate is open and what it lacks."""

    lives: Lives
    back: frozenset[str]
    open: bool
    missing: str = ""


class Roll(Struct, frozen=True, kw_only=True):
    """One rolling restart: `left` are the slots to come, each with the generation that is to go.

    `at` is the slot whose turn it is, in the generation `was`; `since` is when its turn came, or the last one's ended.
    `role` is empty where all roles are meant.
    """

    id: str
    alias: str
    model: str
    role: str
    left: tuple[tuple[str, int], ...]
    total: int
    done: int = 0
    at: str = ""
    was: int = 0
    since: float = 0.0
    state: Literal["going", "done", "stopped"] = "going"
    why: str = ""

    @property
    def what(self) -> str:
        """What is restarted, in words."""
        return f"{self.model}'s {self.role} slots" if self.role else self.model


class Begin(Struct, frozen=True):
    """Somebody asks for this rolling restart."""

    roll: Roll


class Halt(Struct, frozen=True):
    """Somebody asks that a model's rolling restart goes no further."""

    alias: str


class Again(Struct, frozen=True):
    """Restart this slot now."""

    slot: str


Step = Again | Note


def plan(id: str, alias: str, role: str, lives: Lives, now: float) -> Roll:
    """Make the plan: which slots of a model, in which order. Raises ValueError where there is none to restart."""
    whole = [life for life in lives.slots.values() if life.spec.alias == alias]
    named = [life for life in whole if role in ("", life.spec.role)]
    if not named:
        roles = ", ".join(sorted({life.spec.role for life in whole}))
        raise ValueError(f"{alias} has no {role}; it has {roles}" if whole else f"there is no model {alias!r}")
    ours = [life for life in named if not life.spec.external and life.phase is not Phase.STOPPED]
    if not ours:
        raise ValueError("none of these slots is ours to restart: they are drained, or external")
    left = [(life.spec.slot, life.generation) for life in sorted(ours, key=_order)]
    return Roll(id=id, alias=alias, model=named[0].spec.model, role=role, left=tuple(left), total=len(left), since=now)


def _order(life: Life) -> int:
    return 0 if life.phase is Phase.FAILED else 2 if life.phase is Phase.READY else 1


def step(roll: Roll, standing: Standing, now: float) -> tuple[Roll, list[Step]]:
    """Go on as far as that is possible now."""
    steps: list[Step] = []
    if roll.state != "going":
        return roll, steps
    if standing.lives.ending != "no":
        roll, note = _stopped(roll, "the cluster is being ended", standing.lives)
        return roll, [note]
    if roll.at:
        life = standing.lives.slots[roll.at]
        if life.phase in AT_REST:
            how = "was drained by somebody else" if life.phase is Phase.STOPPED else f"did not come back: {life.reason}"
            roll, note = _stopped(roll, f"{roll.at} {how}", standing.lives)
            return roll, [note]
        if life.generation <= roll.was or roll.at not in standing.back:
            return roll, steps
        roll = msgspec.structs.replace(roll, at="", done=roll.done + 1, since=now)
        steps.append(_note(roll, life, "rolled", "is back"))
    return _next(roll, standing, now, steps)


def halt(roll: Roll, lives: Lives) -> tuple[Roll, Note]:
    """Stop because somebody asks for it."""
    return _stopped(roll, "asked to", lives)


def _stopped(roll: Roll, why: str, lives: Lives) -> tuple[Roll, Note]:
    """Begin no other slot; the one whose turn it is comes back all the same."""
    last = roll.at or (roll.left[0][0] if roll.left else "")
    text = f"rolling restart of {roll.what} stopped after {roll.done} of {roll.total}: {why}"
    roll = msgspec.structs.replace(roll, state="stopped", why=why)
    generation = lives.slots[last].generation if last in lives.slots else 0
    return roll, Note(last, generation, "roll_stopped", text, why, planned=True, bad=True, detail=_detail(roll))


def _next(roll: Roll, standing: Standing, now: float, steps: list[Step]) -> tuple[Roll, list[Step]]:
    """Begin the next slot, if it is time for it."""
    while roll.left:
        slot, was = roll.left[0]
        life = standing.lives.slots[slot]
        if life.phase is Phase.STOPPED or (life.generation > was and slot in standing.back):
            roll = msgspec.structs.replace(roll, left=roll.left[1:], done=roll.done + 1, since=now)
            why = "is new already" if life.phase is not Phase.STOPPED else "was drained meanwhile, and stays as it is"
            steps.append(_note(roll, life, "rolled", why))
            continue
        if why := _in_the_way(life, roll, standing):
            if now - roll.since <= life.spec.load_deadline + SLACK:
                return roll, steps
            roll, note = _stopped(roll, f"{why}, for {now - roll.since:.0f} s", standing.lives)
            return roll, [*steps, note]
        roll = msgspec.structs.replace(roll, left=roll.left[1:], at=slot, was=life.generation, since=now)
        steps += [_note(roll, life, "rolls", "has its turn"), Again(slot)]
        return roll, steps
    text = f"rolling restart of {roll.what} done: {roll.done} of {roll.total}"
    roll = msgspec.structs.replace(roll, state="done")
    last = steps[-1]
    assert isinstance(last, Note), "the last slot is told before the end is"
    steps.append(Note(last.slot, last.generation, "roll_done", text, planned=True, detail=_detail(roll)))
    return roll, steps


def _in_the_way(life: Life, roll: Roll, standing: Standing) -> str:
    """Say what a slot's turn waits for; nothing by an empty text."""
    if life.phase is Phase.FAILED:
        return ""
    if not standing.lives.bus:
        return "NATS is away"
    others = (other for other in standing.lives.slots.values() if other.spec.alias == roll.alias)
    moving = _moving(others, standing.back)
    if moving:
        return f"{moving[0]} is not ready"
    return "" if standing.open else f"the gate is closed (missing {standing.missing or 'nothing'})"


def _moving(lives: Iterable[Life], back: frozenset[str]) -> list[str]:
    return [
        life.spec.slot
        for life in lives
        if not life.spec.external and life.phase not in AT_REST and life.spec.slot not in back
    ]


def _note(roll: Roll, life: Life, what: str, text: str) -> Note:
    slot, generation = life.spec.slot, life.generation
    said = f"{text} ({roll.done + (what == 'rolls')} of {roll.total} of a rolling restart of {roll.what})"
    return Note(slot, generation, what, said, text, planned=True, detail=_detail(roll))


def _detail(roll: Roll) -> dict[str, object]:
    return {"roll": roll.id, "done": roll.done, "total": roll.total, "state": roll.state}
