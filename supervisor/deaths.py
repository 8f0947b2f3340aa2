"""Decides what follows a death: the next start at once or after a back-off, or none, by the slot's budget. Pure."""

import math
from typing import Any, Final, Literal

import msgspec

from messages.lifecycle import NOT_RETRIED, Exit
from supervisor import recovery
from supervisor.acts import Clear, Exited, Forget, SlotCommand, StartFailed
from supervisor.lives import RUNNING, Life, Lives, Phase
from supervisor.spec import Policy

JITTER: Final = 0.2
CLEAR_SECONDS: Final = 30.0
"""After so long a slot is started even if nobody has said that its GPUs' memory is free again."""


def exited(life: Life, event: Exited, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Take in that a process is gone, and all of its session with it."""
    if life.phase not in RUNNING:
        return life
    code, jitter, detail = event.code, event.jitter, _of_crash(event)
    commands.append(Forget(life.spec.slot, life.generation))
    if life.spec.gpus and lives.ending == "no":
        commands.append(Clear(life.spec.slot, life.generation))
        life = msgspec.structs.replace(life, clear_by=now + CLEAR_SECONDS)
    reason = life.condemned or event.reason
    if lives.ending != "no" or life.intent == "stop":
        return stopped(life, reason, now, commands)
    if life.intent == "again":
        commands.append(life.note("stopped", f"stopped: {reason}", reason, planned=True))
        return again(life, now, restarts=life.restarts + 1, outage=None)
    outage = recovery.cleaned(recovery.noticed(life.outage, life.generation, None, now), now)
    life = msgspec.structs.replace(life, outage=outage)
    ok = code == Exit.OK and not life.condemned
    if code in NOT_RETRIED and not life.condemned:
        return _failed(life, f"{reason} (starting again cannot mend this)", now, commands, detail)
    if life.spec.policy.type == "temporary" or (life.spec.policy.type == "transient" and ok):
        return stopped(life, reason, now, commands) if ok else _failed(life, reason, now, commands, detail)
    if code in (Exit.BUS, Exit.BUS_LOST) and (not lives.bus or lives.bus_lost >= life.started):
        return _wait(life, reason, jitter, now, commands, detail)
    return _crashed(life, reason, jitter, now, commands, detail)


def not_started(life: Life, failed: StartFailed, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Take in that no process came of a start: as good as one that died at once, unless only the bus was missing."""
    if life.phase is not Phase.STARTING:
        return life
    if life.intent == "stop" or lives.ending != "no":
        return stopped(life, "stopped before it was started", now, commands)
    outage = recovery.not_started(life.outage, now) if life.outage is not None else None
    life = msgspec.structs.replace(life, intent="run", started=now, ready_at=None, outage=outage)
    if failed.excuse == "bus":
        return _wait(life, failed.reason, failed.jitter, now, commands, {})
    return _crashed(life, f"could not be started: {failed.reason}", failed.jitter, now, commands, {})


def again(life: Life, now: float, **more: Any) -> Life:
    """Have a slot started as soon as possible, because somebody asks for it."""
    return life.to(Phase.WAITING, now, start_at=now, intent="run", reason="restart asked for", planned=True, **more)


def stopped(life: Life, reason: str, now: float, commands: list[SlotCommand]) -> Life:
    """Put a slot to rest, as it was meant to."""
    commands.append(life.note("stopped", f"stopped: {reason}", reason, planned=True))
    return _at_rest(life, Phase.STOPPED, reason, now)


def _failed(life: Life, reason: str, now: float, commands: list[SlotCommand], detail: dict[str, Any]) -> Life:
    """Give a slot up."""
    commands.append(life.note("gave_up", f"failed: {reason}", reason, bad=True, detail=detail))
    return _at_rest(life, Phase.FAILED, reason, now)


def _at_rest(life: Life, phase: Literal[Phase.STOPPED, Phase.FAILED], reason: str, now: float) -> Life:
    planned = phase is Phase.STOPPED
    return life.to(phase, now, reason=reason, planned=planned, kill_at=math.inf, outage=None)


def _of_crash(exited: Exited) -> dict[str, Any]:
    """Say what a crash's event tells of it."""
    told = {"code": exited.code, "exit": exited.how, "last_lines": list(exited.last_lines)}
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _crashed(
    life: Life, reason: str, jitter: float, now: float, commands: list[SlotCommand], detail: dict[str, Any]
) -> Life:
    """Count a crash against the budget it belongs to; start again if that allows it."""
    policy = life.spec.policy
    crashes, early = life.crashes, life.early
    if life.ready_at is None:
        early += 1
        if early > policy.crashes_before_ready:
            text = f"{reason} (crashed {early} times before it was ready)"
            return _failed(life, text, now, commands, detail)
    else:
        crashes = add_restart(crashes, now, policy.period)
        if len(crashes) > policy.intensity:
            text = f"{reason} ({len(crashes)} crashes within {policy.period:g} s, {policy.intensity} are allowed)"
            return _failed(life, text, now, commands, detail)
    life = msgspec.structs.replace(life, crashes=crashes, early=early)
    return _wait(life, reason, jitter, now, commands, detail)


def _wait(
    life: Life, reason: str, jitter: float, now: float, commands: list[SlotCommand], detail: dict[str, Any]
) -> Life:
    """Start again after the back-off, which counts from the last start: a long life starts again at once."""
    start_at = max(now, life.started + backoff(life.spec.policy, life.streak, jitter))
    delay = "" if start_at <= now else f" in {start_at - now:.1f} s"
    text = f"died: {reason}; starting again{delay}"
    told = detail | {"delay": round(start_at - now, 3)}
    commands.append(life.note("died", text, reason, bad=True, detail=told))
    return life.to(
        Phase.WAITING,
        now,
        start_at=start_at,
        streak=life.streak + 1,
        restarts=life.restarts + 1,
        reason=reason,
        planned=False,
        intent="run",
    )


def add_restart(restarts: tuple[float, ...], now: float, period: float) -> tuple[float, ...]:
    """Keep the restarts of the last `period` seconds, and add this one."""
    return (*(at for at in restarts if now - at <= period), now)


def backoff(policy: Policy, streak: int, jitter: float) -> float:
    """Seconds between two starts: doubled each time up to a bound, more or less a fifth."""
    return float(min(policy.backoff * 2.0 ** min(streak, 64), policy.backoff_max) * (1 + JITTER * jitter))
