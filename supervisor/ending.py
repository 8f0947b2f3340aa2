"""Decides how processes are ended: by a drain, by force, and all of a cluster front to back. Pure."""

import math

import msgspec

from supervisor import recovery
from supervisor.acts import Kill, SlotCommand, Terminate
from supervisor.lives import AT_REST, KILL_SLACK, MORTAL, Life, Lives, Phase
from supervisor.spec import ENGINE_ROLES


def terminate(life: Life, now: float, commands: list[SlotCommand], *, abort: bool = False) -> Life:
    """Ask a process to drain; one that is not ready has nothing to drain and gets little time."""
    commands.append(Terminate(life.spec.slot, life.generation, abort))
    what, text = ("aborted", "aborts what is left") if abort else ("draining", "drains")
    commands.append(life.note(what, text, planned=True))
    patience = 0.0 if abort or life.ready_at is None else life.spec.drain_deadline
    return life.to(Phase.DRAINING, now, kill_at=now + patience + KILL_SLACK)


def at_once(life: Life, why: str, now: float, commands: list[SlotCommand]) -> Life:
    """End a process without a drain: an engine's streams go on elsewhere, a processor tells its clients."""
    if life.spec.role not in ENGINE_ROLES:
        return terminate(life, now, commands, abort=True)
    commands.append(life.note("aborted", f"is ended at once: {why}", why, planned=True))
    return _kill(life, why, now, commands)


def condemn(life: Life, why: str, since: float | None, now: float, commands: list[SlotCommand]) -> Life:
    """Kill a process that will do no more work; its last sign of life was at `since`, if known."""
    if life.phase not in MORTAL:
        return life
    outage = recovery.noticed(life.outage, life.generation, since, now)
    commands.append(life.note("condemned", f"is killed: {why}", why, bad=True))
    return msgspec.structs.replace(_kill(life, why, now, commands), outage=outage)


def _kill(life: Life, why: str, now: float, commands: list[SlotCommand]) -> Life:
    commands.append(Kill(life.spec.slot, life.generation))
    return life.to(Phase.KILLING, now, condemned=why, kill_at=math.inf)


def end_all(lives: Lives, abort: bool, now: float, commands: list[SlotCommand]) -> Lives:
    """Begin the end: what does not run stops, what does not work yet has nothing to finish, the rest goes by tiers."""
    lives = msgspec.structs.replace(lives, ending="abort" if abort or lives.ending == "abort" else "drain")
    for life in lives.ours:
        if life.phase is Phase.WAITING:
            life = life.to(Phase.STOPPED, now)
        elif abort and life.phase in MORTAL:
            life = terminate(life, now, commands, abort=True)
        elif life.phase in (Phase.LOADING, Phase.STANDBY):
            life = terminate(life, now, commands)
        lives = lives.having(life)
    return lives


def next_tier(lives: Lives, now: float, commands: list[SlotCommand]) -> Lives:
    """Drain the foremost tier that still lives; the next one follows when all of it is gone."""
    living = [life for life in lives.ours if life.phase not in AT_REST]
    front = min((life.spec.tier for life in living), default=0)
    for life in living:
        if life.spec.tier == front and life.phase is Phase.READY:
            lives = lives.having(terminate(life, now, commands))
    return lives
