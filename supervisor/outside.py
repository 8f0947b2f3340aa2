"""Decides on external slots, which another manager starts: pure, `(lives, event, now) -> (lives, commands)`.

    waiting -> loading -> ready -> draining -> waiting
                            |                     ^
                            +-> killing ----------+   told to exit: its engine is stuck

Nothing here starts or kills: the actor registers by itself, is asked over the bus to exit, and is gone when it says so,
when a newer generation registers, or when its lease is over and nobody answers. Its manager starts the next one, so
neither budget nor back-off count. `restarts` are the lives seen after the first.
"""

import math
from typing import Final

import msgspec

from messages.lifecycle import State
from supervisor.acts import Ask, Condemned, Dismiss, Left, Lost, Seen, SlotCommand
from supervisor.events import Tick
from supervisor.lives import KILL_SLACK, Life, Lives, Phase

WAITS: Final = "its manager starts it"
HERE: Final = frozenset({Phase.READY, Phase.DRAINING, Phase.KILLING})
"""Phases in which its registration is there."""

TOLD: Final = frozenset({State.LOADING, State.READY, State.DRAINING})
"""States that tell of a new life."""

Event = Seen | Left | Lost | Condemned | Ask | Tick


def step(lives: Lives, event: Event, now: float) -> tuple[Lives, list[SlotCommand]]:
    """Take in one event; one of an earlier generation, or of a slot that is not external, changes nothing."""
    commands: list[SlotCommand] = []
    if isinstance(event, Tick):
        for life in [life for life in lives.slots.values() if life.spec.external and now >= life.kill_at]:
            lives = lives.having(_overdue(life, now, commands))
        return lives, commands
    one = lives.slots.get(event.slot)
    if one is not None and one.spec.external:
        lives = lives.having(_one(one, event, now, commands))
    return lives, commands


def _one(life: Life, event: Event, now: float, commands: list[SlotCommand]) -> Life:
    match event:
        case Seen(_, generation, state) if generation >= life.generation or life.phase is Phase.WAITING:
            return _seen(life, generation, state, now, commands)
        case Left(_, generation) if generation == life.generation and life.phase in HERE:
            planned = life.phase is Phase.DRAINING
            reason = life.condemned or ("drained" if planned else "it has left")
            return _gone(life, reason, planned, now, commands)
        case Lost(_, generation, why) if generation == life.generation and life.phase in HERE:
            return _gone(life, life.condemned or why, False, now, commands)
        case Condemned(_, generation, why) if generation == life.generation and life.phase in HERE:
            return _condemned(life, why, now, commands)
        case Ask() if life.phase is Phase.READY:
            commands.append(Dismiss(life.spec.slot, life.generation))
            commands.append(life.note("draining", "is asked to drain", planned=True))
            return life.to(Phase.DRAINING, now, kill_at=now + life.spec.drain_deadline + KILL_SLACK)
    return life


def _seen(life: Life, generation: int, state: State, now: float, commands: list[SlotCommand]) -> Life:
    """Take in what its actor says of itself: in its registration, or while it loads in an event."""
    new = generation != life.generation
    if state not in TOLD:
        ended = not new and life.phase is Phase.LOADING and state in (State.FAILED, State.STOPPED)
        return _gone(life, "it ended while loading; its own log says why", False, now, commands) if ended else life
    if new:
        if life.phase in HERE:
            planned = life.phase is Phase.DRAINING
            why = life.condemned or ("drained" if planned else "a newer life of it has begun")
            life = _gone(life, why, planned, now, commands)
        known = life.generation > 0
        life = msgspec.structs.replace(
            life, generation=generation, restarts=life.restarts + known, ready_at=None, condemned="", started=now
        )
    match state:
        case State.LOADING if new or life.phase is Phase.WAITING:
            commands.append(life.note("started", "is loading, started by its manager"))
            return life.to(Phase.LOADING, now, kill_at=now + life.spec.load_deadline + KILL_SLACK)
        case State.READY if new or life.phase in (Phase.WAITING, Phase.LOADING):
            commands.append(life.note("ready", "ready"))
            return life.to(Phase.READY, now, kill_at=math.inf, ready_at=now)
        case State.DRAINING if new or life.phase in (Phase.WAITING, Phase.LOADING, Phase.READY):
            commands.append(life.note("draining", "drains, asked by somebody else", planned=True))
            return life.to(Phase.DRAINING, now, kill_at=now + life.spec.drain_deadline + KILL_SLACK)
    return life


def _condemned(life: Life, why: str, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase is Phase.KILLING:
        return life
    commands.append(life.note("condemned", f"is told to exit: {why}", why, bad=True))
    commands.append(Dismiss(life.spec.slot, life.generation, why))
    return life.to(Phase.KILLING, now, kill_at=math.inf, condemned=why)


def _overdue(life: Life, now: float, commands: list[SlotCommand]) -> Life:
    """Do what time alone brings: loading and draining have their deadlines."""
    if life.phase is Phase.LOADING:
        why = f"not ready within its load deadline of {life.spec.load_deadline:g} s"
        return _gone(life, why, False, now, commands)
    if life.phase is Phase.DRAINING:
        return _condemned(life, "did not end within its drain deadline", now, commands)
    return msgspec.structs.replace(life, kill_at=math.inf)


def _gone(life: Life, reason: str, planned: bool, now: float, commands: list[SlotCommand]) -> Life:
    text = f"{'stopped' if planned else 'is gone'}: {reason}; {WAITS}"
    what = "stopped" if planned else "died"
    commands.append(life.note(what, text, reason, planned=planned, bad=not planned))
    return life.to(Phase.WAITING, now, kill_at=math.inf, reason=reason, planned=planned, condemned="")
