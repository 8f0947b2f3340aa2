"""Decides when a slot is started, ended, killed and started again: pure, `(state, event, now) -> (state, commands)`.

The life of a slot as its supervisor sees it:

    waiting -> starting -> loading -> ready -> draining -> stopped
       ^          |           |         |         |
       +----------+-----------+---------+---------+   it died and its budget allows another start
                                                  +-> failed   the budget is gone, or starting again cannot mend it

Where a role has understudies, all of its slots go from loading to standby, and from there to ready when they are called
(`understudies` decides that); one that is asked to go waits until another has taken over, or `hand_over` has passed.

Killing is a phase of its own, left only by the process's exit: nothing is started while an earlier life may still run.
Times are monotonic seconds. Chance comes in as data: `jitter`, between -1 and 1.
"""

import math
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from messages.lifecycle import NOT_RETRIED, Exit, State
from supervisor import recovery, turns
from supervisor.acts import (
    Adopted,
    Ask,
    Began,
    Clear,
    Cleared,
    Condemned,
    Downloading,
    End,
    Excuse,
    Exited,
    Forget,
    Gone,
    Kill,
    Note,
    Seen,
    SlotCommand,
    SlotEvent,
    Start,
    Started,
    StartFailed,
    Terminate,
    What,
)
from supervisor.events import Bus, Tick
from supervisor.recovery import Outage, Recovery
from supervisor.spec import ENGINE_ROLES, Policy, Spec

JITTER: Final = 0.2
KILL_SLACK: Final = 5.0
"""Seconds beyond a deadline that the actor applies itself, so that its own word on it comes first."""
STAYS: Final = math.inf
"""The `hand_over` of one that is not to go."""
HAND_OVER: Final = 5.0
"""Seconds that one who is to go waits for an understudy to take over; being called takes milliseconds."""
CLEAR_SECONDS: Final = 30.0
"""After so long a slot is started even if nobody has said that its GPUs' memory is free again."""


class Phase(StrEnum):
    """Where a slot is, as its supervisor sees it."""

    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    STANDBY = "standby"
    READY = "ready"
    DRAINING = "draining"
    KILLING = "killing"
    STOPPED = "stopped"
    FAILED = "failed"


RUNNING: Final = frozenset({Phase.LOADING, Phase.STANDBY, Phase.READY, Phase.DRAINING, Phase.KILLING})
"""Phases with a process."""
AT_REST: Final = frozenset({Phase.STOPPED, Phase.FAILED})
IN_PLACE: Final = frozenset({Phase.LOADING, Phase.STANDBY, Phase.READY})
"""Phases with a process that nobody has asked to end yet."""

UP: Final = {State.READY: Phase.READY, State.STANDBY: Phase.STANDBY}
"""Registered states that end loading."""

Intent = Literal["run", "again", "stop"]


class Life(Struct, frozen=True, kw_only=True):
    """One slot's history as far as decisions need it.

    `start_at` counts while waiting, `kill_at` while a process runs. Until `clear_by` the memory that its last life
    had on GPUs may not be free; `behind` is the slot whose turn it is on a GPU that both use. `crashes` are the
    times of the restarts that count towards the intensity, `early` the crashes before ready, `streak` the doublings
    of the back-off. `reason` says why the slot last changed for the worse, `planned` whether that was asked for.
    `born` is which generation's process took its first step when; `outage` is there from a death until the slot is
    ready again, and `recovered` is the last time that it was. `call` says whether an understudy has been `called` to
    work, and when; `hand_over` is until when one that is to go waits for another to take over.
    """

    spec: Spec
    phase: Phase = Phase.WAITING
    since: float = 0.0
    generation: int = 0
    start_at: float = 0.0
    clear_by: float = -math.inf
    behind: str = ""
    kill_at: float = math.inf
    started: float = -math.inf
    ready_at: float | None = None
    intent: Intent = "run"
    crashes: tuple[float, ...] = ()
    early: int = 0
    streak: int = 0
    restarts: int = 0
    reason: str = ""
    planned: bool = False
    condemned: str = ""
    called: float = -math.inf
    call: Literal["", "asked", "refused"] = ""
    hand_over: float = STAYS
    born: tuple[int, float] = (0, 0.0)
    outage: Outage | None = None
    recovered: Recovery | None = None


class Lives(Struct, frozen=True, kw_only=True):
    """All slots of this supervisor; `bus_lost` is when the bus was last lost, `ending` how all of it ends."""

    slots: dict[str, Life]
    bus: bool = False
    bus_lost: float = -math.inf
    ending: Literal["no", "drain", "abort"] = "no"

    @property
    def over(self) -> bool:
        """Whether everything is to end and has ended."""
        ours = (life for life in self.slots.values() if not life.spec.external)
        return self.ending != "no" and all(life.phase in AT_REST for life in ours)


def begin(specs: dict[str, Spec], now: float) -> Lives:
    """Make the first state: every slot waits for the bus, then starts; an external one waits to be seen."""
    return Lives(
        slots={
            name: Life(spec=spec, since=now, start_at=math.inf if spec.external else now)
            for name, spec in specs.items()
        }
    )


def step(lives: Lives, event: SlotEvent, now: float) -> tuple[Lives, list[SlotCommand]]:
    """Take in one event. An event of an earlier generation, or of an unknown slot, changes nothing.

    External slots are decided by `outside`; here nothing is done with them, and nothing waits for them to end.
    """
    commands: list[SlotCommand] = []
    match event:
        case Bus(up):
            lives = msgspec.structs.replace(lives, bus=up, bus_lost=lives.bus_lost if up else now)
        case End(abort):
            lives = _end(lives, abort, now, commands)
        case Tick():
            pass
        case _:
            life = lives.slots.get(event.slot)
            if life is not None and not life.spec.external:
                lives = _with(lives, _one(life, event, lives, now, commands))
    for life in [life for life in lives.slots.values() if not life.spec.external]:
        lives = _with(lives, _due(life, lives, now, commands))
    if lives.ending == "drain":
        lives = _next_tier(lives, now, commands)
    return lives, commands


def next_wake(lives: Lives) -> float:
    """Tell when a Tick is needed at the latest, if nothing else happens; infinity for never."""
    times = [min(life.kill_at, life.hand_over) for life in lives.slots.values() if life.phase in RUNNING]
    if lives.bus:
        waiting = [life for life in lives.slots.values() if life.phase is Phase.WAITING and not life.behind]
        times += [max(life.start_at, life.clear_by) for life in waiting]
    return min(times, default=math.inf)


def _with(lives: Lives, life: Life) -> Lives:
    if lives.slots[life.spec.slot] is life:
        return lives
    return msgspec.structs.replace(lives, slots=lives.slots | {life.spec.slot: life})


def _one(life: Life, event: SlotEvent, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Take in an event of one slot."""
    match event:
        case Adopted(_, generation, age, restarts, reason):
            return _adopted(life, generation, age, restarts, reason, now)
        case Started(_, generation):
            return _started(life, generation, lives, now, commands)
        case StartFailed(_, reason, jitter, excuse):
            return _start_failed(life, reason, jitter, excuse, lives, now, commands)
        case Ask(_, what):
            return _asked(life, what, lives, now, commands)
        case Began(_, generation, age) if generation >= life.generation:
            # Heard of perhaps before the start itself: the two come different ways.
            return msgspec.structs.replace(life, born=(generation, now - age))
        case Seen(_, generation, _) if generation == life.generation:
            return _seen(life, event, now, commands)
        case Downloading(_, generation) if generation == life.generation and life.phase is Phase.LOADING:
            if life.intent == "run":
                return msgspec.structs.replace(life, kill_at=now + life.spec.load_deadline + KILL_SLACK)
        case Gone(_, generation, died) if generation == life.generation and life.phase in RUNNING:
            commands.append(Forget(life.spec.slot, generation))
            outage = recovery.noticed(life.outage, generation, died, now)
            return msgspec.structs.replace(_to(life, Phase.KILLING, now), kill_at=math.inf, outage=outage)
        case Exited(_, generation, _) if generation == life.generation:
            return _exited(life, event, lives, now, commands)
        case Cleared(_, generation, held) if generation == life.generation:
            if life.outage is not None and life.phase is Phase.WAITING:
                life = msgspec.structs.replace(life, outage=recovery.cleaned(life.outage, now))
            if held:
                text = f"memory of its last life is not free: {held}"
                commands.append(Note(life.spec.slot, generation, "held", text, held, bad=True))
            return msgspec.structs.replace(life, clear_by=-math.inf)
        case Condemned(_, generation, why, since) if generation == life.generation:
            return _condemned(life, why, since, now, commands)
    return life


def _due(life: Life, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Do what time alone brings: a start, a kill, forgetting."""
    if life.phase is Phase.WAITING and lives.bus and lives.ending == "no":
        if now >= max(life.start_at, life.clear_by):
            return _turn(life, lives, now, commands)
    if life.phase in IN_PLACE | {Phase.DRAINING} and now >= life.kill_at:
        return _condemned(life, _overdue(life), None, now, commands)
    if life.phase is Phase.READY and now >= life.hand_over:
        return terminate(life, now, commands)
    up = life.phase in (Phase.READY, Phase.STANDBY)
    if up and life.ready_at is not None and now - life.ready_at >= life.spec.policy.forget:
        if life.crashes or life.early or life.streak:
            return msgspec.structs.replace(life, crashes=(), early=0, streak=0)
    return life


def _turn(life: Life, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Start a slot that is due, unless it is another one's turn on a GPU that both use."""
    other = turns.before(life, lives.slots.values(), now)
    if other is None:
        commands.append(Start(life.spec.slot))
        outage = recovery.asked(life.outage, now) if life.outage is not None else None
        return msgspec.structs.replace(_to(life, Phase.STARTING, now), behind="", outage=outage)
    if life.behind == other.slot:
        return life
    text = f"waits for its turn on the GPU it shares: {other.slot} {other.what}"
    commands.append(Note(life.spec.slot, life.generation, "waits", text, text, planned=True))
    return msgspec.structs.replace(life, behind=other.slot)


def _overdue(life: Life) -> str:
    if life.phase is Phase.LOADING and life.intent == "run":
        return f"not ready within its load deadline of {life.spec.load_deadline:g} s"
    return "did not end within its drain deadline"


def _adopted(life: Life, generation: int, age: float, restarts: int, reason: str, now: float) -> Life:
    if life.phase is not Phase.WAITING:
        return life
    started = now - age
    return msgspec.structs.replace(
        _to(life, Phase.LOADING, now),
        generation=generation,
        started=started,
        restarts=restarts,
        reason=reason,
        # A deadline that passed while nobody looked gives the registration time to be read first.
        kill_at=max(started + life.spec.load_deadline, now) + KILL_SLACK,
    )


def _started(life: Life, generation: int, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase is not Phase.STARTING:
        return life
    life = msgspec.structs.replace(
        _to(life, Phase.LOADING, now),
        generation=generation,
        started=now,
        ready_at=None,
        condemned="",
        kill_at=now + life.spec.load_deadline + KILL_SLACK,
    )
    commands.append(Note(life.spec.slot, generation, "started", "started"))
    return terminate(life, now, commands) if life.intent != "run" or lives.ending != "no" else life


def _start_failed(
    life: Life, reason: str, jitter: float, excuse: Excuse, lives: Lives, now: float, commands: list[SlotCommand]
) -> Life:
    if life.phase is not Phase.STARTING:
        return life
    if life.intent == "stop" or lives.ending != "no":
        return _at_rest(life, Phase.STOPPED, "stopped before it was started", True, now, commands)
    outage = recovery.not_started(life.outage, now) if life.outage is not None else None
    life = msgspec.structs.replace(life, intent="run", started=now, ready_at=None, outage=outage)
    if excuse == "bus":
        return _wait(life, reason, jitter, {}, now, commands)
    return _crashed(life, f"could not be started: {reason}", jitter, {}, now, commands)


def _asked(life: Life, what: What, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    if lives.ending != "no":
        return life
    intent: Intent = "stop" if what in ("drain", "out") else "again"
    if intent == "again" and life.phase is Phase.STARTING:
        intent = "run"
    fresh = {"crashes": (), "early": 0, "streak": 0} if intent != "stop" else {}
    life = msgspec.structs.replace(life, intent=intent, **fresh)
    if what in ("now", "out") and life.phase in IN_PLACE | {Phase.DRAINING}:
        return _at_once(life, "taken out" if what == "out" else "restart asked for, at once", now, commands)
    if life.phase is Phase.READY and life.spec.actives:
        return msgspec.structs.replace(life, hand_over=min(life.hand_over, now + HAND_OVER))
    if life.phase in IN_PLACE:
        return terminate(life, now, commands)
    if life.phase in (Phase.WAITING, Phase.STOPPED, Phase.FAILED):
        if intent == "stop":
            said = "taken out" if what == "out" else "drained"
            return _at_rest(life, Phase.STOPPED, said, True, now, commands)
        return msgspec.structs.replace(
            _to(life, Phase.WAITING, now), start_at=now, intent="run", reason="restart asked for", planned=True
        )
    return life


def _seen(life: Life, seen: Seen, now: float, commands: list[SlotCommand]) -> Life:
    name, generation, state = life.spec.slot, life.generation, seen.state
    if state is State.READY and life.phase is Phase.STANDBY:
        commands.append(Note(name, generation, "promoted", "is at work: it stands in for one that is gone"))
        return _to(life, Phase.READY, now)
    if state in UP and life.phase is Phase.LOADING and life.intent == "run":
        recovered = None
        if life.outage is not None:
            said = life.born[1] + seen.total if life.born[0] == generation else None
            recovered = recovery.over(life.outage, seen.stages, said, now)
        detail = recovered.detail if recovered is not None else {}
        commands.append(Note(name, generation, state, state, detail=detail))
        return msgspec.structs.replace(
            _to(life, UP[state], now),
            ready_at=now,
            kill_at=math.inf,
            outage=None,
            recovered=recovered or life.recovered,
        )
    if state is State.DRAINING and life.phase in IN_PLACE:
        # Somebody asked the actor itself; it was ready, or it could not drain.
        commands.append(Note(name, generation, "draining", "drains, asked by somebody else", planned=True))
        ready_at = now if life.ready_at is None else life.ready_at
        kill_at = now + life.spec.drain_deadline + KILL_SLACK
        return msgspec.structs.replace(_to(life, Phase.DRAINING, now), ready_at=ready_at, kill_at=kill_at)
    return life


def _condemned(life: Life, why: str, since: float | None, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase not in IN_PLACE | {Phase.DRAINING}:
        return life
    outage = recovery.noticed(life.outage, life.generation, since, now)
    commands.append(Note(life.spec.slot, life.generation, "condemned", f"is killed: {why}", why, bad=True))
    commands.append(Kill(life.spec.slot, life.generation))
    return msgspec.structs.replace(_to(life, Phase.KILLING, now), condemned=why, kill_at=math.inf, outage=outage)


def _exited(life: Life, exited: Exited, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase not in RUNNING:
        return life
    code, jitter, detail = exited.code, exited.jitter, _of_crash(exited)
    commands.append(Forget(life.spec.slot, life.generation))
    if life.spec.gpus and lives.ending == "no":
        commands.append(Clear(life.spec.slot, life.generation))
        life = msgspec.structs.replace(life, clear_by=now + CLEAR_SECONDS)
    reason = life.condemned or exited.reason
    if lives.ending != "no" or life.intent == "stop":
        return _at_rest(life, Phase.STOPPED, reason, True, now, commands)
    if life.intent == "again":
        commands.append(Note(life.spec.slot, life.generation, "stopped", f"stopped: {reason}", reason, planned=True))
        life = msgspec.structs.replace(life, intent="run", reason="restart asked for", planned=True, outage=None)
        return msgspec.structs.replace(_to(life, Phase.WAITING, now), start_at=now, restarts=life.restarts + 1)
    outage = recovery.cleaned(recovery.noticed(life.outage, life.generation, None, now), now)
    life = msgspec.structs.replace(life, outage=outage)
    ok = code == Exit.OK and not life.condemned
    if code in NOT_RETRIED and not life.condemned:
        text = f"{reason} (starting again cannot mend this)"
        return _at_rest(life, Phase.FAILED, text, False, now, commands, detail)
    if life.spec.policy.type == "temporary" or (life.spec.policy.type == "transient" and ok):
        return _at_rest(life, Phase.STOPPED if ok else Phase.FAILED, reason, ok, now, commands, {} if ok else detail)
    if code in (Exit.BUS, Exit.BUS_LOST) and (not lives.bus or lives.bus_lost >= life.started):
        return _wait(life, reason, jitter, detail, now, commands)
    return _crashed(life, reason, jitter, detail, now, commands)


def _of_crash(exited: Exited) -> dict[str, Any]:
    """Say what a crash's event tells of it."""
    told = {"code": exited.code, "exit": exited.how, "last_lines": list(exited.last_lines)}
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _crashed(
    life: Life, reason: str, jitter: float, detail: dict[str, Any], now: float, commands: list[SlotCommand]
) -> Life:
    """Count a crash against the budget it belongs to; start again if that allows it."""
    policy = life.spec.policy
    crashes, early = life.crashes, life.early
    if life.ready_at is None:
        early += 1
        if early > policy.crashes_before_ready:
            text = f"{reason} (crashed {early} times before it was ready)"
            return _at_rest(life, Phase.FAILED, text, False, now, commands, detail)
    else:
        crashes = add_restart(crashes, now, policy.period)
        if len(crashes) > policy.intensity:
            text = f"{reason} ({len(crashes)} crashes within {policy.period:g} s, {policy.intensity} are allowed)"
            return _at_rest(life, Phase.FAILED, text, False, now, commands, detail)
    life = msgspec.structs.replace(life, crashes=crashes, early=early)
    return _wait(life, reason, jitter, detail, now, commands)


def _wait(
    life: Life, reason: str, jitter: float, detail: dict[str, Any], now: float, commands: list[SlotCommand]
) -> Life:
    """Start again after the back-off, which counts from the last start: a long life starts again at once."""
    start_at = max(now, life.started + backoff(life.spec.policy, life.streak, jitter))
    delay = "" if start_at <= now else f" in {start_at - now:.1f} s"
    text = f"died: {reason}; starting again{delay}"
    told = detail | {"delay": round(start_at - now, 3)}
    commands.append(Note(life.spec.slot, life.generation, "died", text, reason, bad=True, detail=told))
    return msgspec.structs.replace(
        _to(life, Phase.WAITING, now),
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


def _at_rest(
    life: Life,
    phase: Phase,
    reason: str,
    planned: bool,
    now: float,
    commands: list[SlotCommand],
    detail: dict[str, Any] | None = None,
) -> Life:
    what = "gave_up" if phase is Phase.FAILED else "stopped"
    text = f"{'failed' if phase is Phase.FAILED else 'stopped'}: {reason}"
    failed = phase is Phase.FAILED
    commands.append(Note(life.spec.slot, life.generation, what, text, reason, planned, failed, detail or {}))
    life = msgspec.structs.replace(_to(life, phase, now), reason=reason, planned=planned, kill_at=math.inf)
    return msgspec.structs.replace(life, outage=None)


def terminate(life: Life, now: float, commands: list[SlotCommand], *, abort: bool = False) -> Life:
    """Ask a process to drain; one that is not ready has nothing to drain and gets little time."""
    commands.append(Terminate(life.spec.slot, life.generation, abort))
    what, text = ("aborted", "aborts what is left") if abort else ("draining", "drains")
    commands.append(Note(life.spec.slot, life.generation, what, text, planned=True))
    patience = 0.0 if abort or life.ready_at is None else life.spec.drain_deadline
    return msgspec.structs.replace(_to(life, Phase.DRAINING, now), kill_at=now + patience + KILL_SLACK)


def _at_once(life: Life, why: str, now: float, commands: list[SlotCommand]) -> Life:
    """End a process without a drain: an engine's streams go on elsewhere, a processor tells its clients."""
    if life.spec.role not in ENGINE_ROLES:
        return terminate(life, now, commands, abort=True)
    commands.append(Note(life.spec.slot, life.generation, "aborted", f"is ended at once: {why}", why, planned=True))
    commands.append(Kill(life.spec.slot, life.generation))
    return msgspec.structs.replace(_to(life, Phase.KILLING, now), condemned=why, kill_at=math.inf)


def _end(lives: Lives, abort: bool, now: float, commands: list[SlotCommand]) -> Lives:
    """Begin the end: what does not run stops, what does not work yet has nothing to finish, the rest goes by tiers."""
    lives = msgspec.structs.replace(lives, ending="abort" if abort or lives.ending == "abort" else "drain")
    for life in [life for life in lives.slots.values() if not life.spec.external]:
        if life.phase is Phase.WAITING:
            life = _to(life, Phase.STOPPED, now)
        elif abort and life.phase in IN_PLACE | {Phase.DRAINING}:
            life = terminate(life, now, commands, abort=True)
        elif life.phase in (Phase.LOADING, Phase.STANDBY):
            life = terminate(life, now, commands)
        lives = _with(lives, life)
    return lives


def _next_tier(lives: Lives, now: float, commands: list[SlotCommand]) -> Lives:
    """Drain the foremost tier that still lives; the next one follows when all of it is gone."""
    living = [life for life in lives.slots.values() if life.phase not in AT_REST and not life.spec.external]
    front = min((life.spec.tier for life in living), default=0)
    for life in living:
        if life.spec.tier == front and life.phase is Phase.READY:
            lives = _with(lives, terminate(life, now, commands))
    return lives


def _to(life: Life, phase: Phase, now: float) -> Life:
    return msgspec.structs.replace(life, phase=phase, since=now, behind="", call="", called=-math.inf, hand_over=STAYS)
