"""Decides when a slot is started, ended, killed and started again: pure, `(state, event, now) -> (state, commands)`.

The life of a slot as its supervisor sees it:

    waiting -> starting -> loading -> ready -> draining -> stopped
       ^          |           |         |         |
       +----------+-----------+---------+---------+   it died and its budget allows another start
                                                  +-> failed   the budget is gone, or starting again cannot mend it

Killing is a phase of its own, left only by the process's exit: nothing is started while an earlier life may still run.
Times are monotonic seconds. Chance comes in as data: `jitter`, between -1 and 1.
"""

import math
from enum import StrEnum
from typing import Final, Literal

import msgspec
from msgspec import Struct

from messages.lifecycle import NOT_RETRIED, Exit, State
from supervisor import turns
from supervisor.acts import (
    Adopted,
    Ask,
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
)
from supervisor.events import Bus, Tick
from supervisor.spec import Policy, Spec

JITTER: Final = 0.2
KILL_SLACK: Final = 5.0
"""Seconds beyond a deadline that the actor applies itself, so that its own word on it comes first."""
CLEAR_SECONDS: Final = 30.0
"""After so long a slot is started even if nobody has said that its GPUs' memory is free again."""


class Phase(StrEnum):
    """Where a slot is, as its supervisor sees it."""

    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    KILLING = "killing"
    STOPPED = "stopped"
    FAILED = "failed"


RUNNING: Final = frozenset({Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.KILLING})
"""Phases with a process."""
AT_REST: Final = frozenset({Phase.STOPPED, Phase.FAILED})

Intent = Literal["run", "again", "stop"]


class Life(Struct, frozen=True, kw_only=True):
    """One slot's history as far as decisions need it.

    `start_at` counts while waiting, `kill_at` while a process runs. Until `clear_by` the memory that its last life
    had on GPUs may not be free; `behind` is the slot whose turn it is on a GPU that both use. `crashes` are the
    times of the restarts that count towards the intensity, `early` the crashes before ready, `streak` the doublings
    of the back-off. `reason` says why the slot last changed for the worse, `planned` whether that was asked for.
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
    times = [life.kill_at for life in lives.slots.values() if life.phase in RUNNING]
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
        case Seen(_, generation, state) if generation == life.generation:
            return _seen(life, state, now, commands)
        case Downloading(_, generation) if generation == life.generation and life.phase is Phase.LOADING:
            if life.intent == "run":
                return msgspec.structs.replace(life, kill_at=now + life.spec.load_deadline + KILL_SLACK)
        case Gone(_, generation) if generation == life.generation and life.phase in RUNNING:
            commands.append(Forget(life.spec.slot, generation))
            return msgspec.structs.replace(_to(life, Phase.KILLING, now), kill_at=math.inf)
        case Exited(_, generation, code, reason, jitter) if generation == life.generation:
            return _exited(life, code, reason, jitter, lives, now, commands)
        case Cleared(_, generation, held) if generation == life.generation:
            if held:
                text = f"memory of its last life is not free: {held}"
                commands.append(Note(life.spec.slot, generation, "held", text, held, bad=True))
            return msgspec.structs.replace(life, clear_by=-math.inf)
        case Condemned(_, generation, why) if generation == life.generation:
            return _condemned(life, why, now, commands)
    return life


def _due(life: Life, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Do what time alone brings: a start, a kill, forgetting."""
    if life.phase is Phase.WAITING and lives.bus and lives.ending == "no":
        if now >= max(life.start_at, life.clear_by):
            return _turn(life, lives, now, commands)
    if life.phase in (Phase.LOADING, Phase.READY, Phase.DRAINING) and now >= life.kill_at:
        return _condemned(life, _overdue(life), now, commands)
    if life.phase is Phase.READY and life.ready_at is not None and now - life.ready_at >= life.spec.policy.forget:
        if life.crashes or life.early or life.streak:
            return msgspec.structs.replace(life, crashes=(), early=0, streak=0)
    return life


def _turn(life: Life, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Start a slot that is due, unless it is another one's turn on a GPU that both use."""
    other = turns.before(life, lives.slots.values(), now)
    if other is None:
        commands.append(Start(life.spec.slot))
        return msgspec.structs.replace(_to(life, Phase.STARTING, now), behind="")
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
    return _terminate(life, now, commands) if life.intent != "run" or lives.ending != "no" else life


def _start_failed(
    life: Life, reason: str, jitter: float, excuse: Excuse, lives: Lives, now: float, commands: list[SlotCommand]
) -> Life:
    if life.phase is not Phase.STARTING:
        return life
    if life.intent == "stop" or lives.ending != "no":
        return _at_rest(life, Phase.STOPPED, "stopped before it was started", True, now, commands)
    life = msgspec.structs.replace(life, intent="run", started=now, ready_at=None)
    if excuse == "bus":
        return _wait(life, reason, jitter, now, commands)
    return _crashed(life, f"could not be started: {reason}", jitter, now, commands)


def _asked(
    life: Life, what: Literal["drain", "restart"], lives: Lives, now: float, commands: list[SlotCommand]
) -> Life:
    if lives.ending != "no":
        return life
    intent: Intent = "stop" if what == "drain" else "again"
    if intent == "again" and life.phase is Phase.STARTING:
        intent = "run"
    fresh = {"crashes": (), "early": 0, "streak": 0} if what == "restart" else {}
    life = msgspec.structs.replace(life, intent=intent, **fresh)
    if life.phase in (Phase.LOADING, Phase.READY):
        return _terminate(life, now, commands)
    if life.phase in (Phase.WAITING, Phase.STOPPED, Phase.FAILED):
        if what == "drain":
            return _at_rest(life, Phase.STOPPED, "drained", True, now, commands)
        return msgspec.structs.replace(
            _to(life, Phase.WAITING, now), start_at=now, intent="run", reason="restart asked for", planned=True
        )
    return life


def _seen(life: Life, state: State, now: float, commands: list[SlotCommand]) -> Life:
    name, generation = life.spec.slot, life.generation
    if state is State.READY and life.phase is Phase.LOADING and life.intent == "run":
        commands.append(Note(name, generation, "ready", "ready"))
        return msgspec.structs.replace(_to(life, Phase.READY, now), ready_at=now, kill_at=math.inf)
    if state is State.DRAINING and life.phase in (Phase.LOADING, Phase.READY):
        # Somebody asked the actor itself; it was ready, or it could not drain.
        commands.append(Note(name, generation, "draining", "drains, asked by somebody else", planned=True))
        ready_at = now if life.ready_at is None else life.ready_at
        kill_at = now + life.spec.drain_deadline + KILL_SLACK
        return msgspec.structs.replace(_to(life, Phase.DRAINING, now), ready_at=ready_at, kill_at=kill_at)
    return life


def _condemned(life: Life, why: str, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase not in (Phase.LOADING, Phase.READY, Phase.DRAINING):
        return life
    commands.append(Note(life.spec.slot, life.generation, "condemned", f"is killed: {why}", why, bad=True))
    commands.append(Kill(life.spec.slot, life.generation))
    return msgspec.structs.replace(_to(life, Phase.KILLING, now), condemned=why, kill_at=math.inf)


def _exited(
    life: Life, code: int | None, reason: str, jitter: float, lives: Lives, now: float, commands: list[SlotCommand]
) -> Life:
    if life.phase not in RUNNING:
        return life
    commands.append(Forget(life.spec.slot, life.generation))
    if life.spec.gpus and lives.ending == "no":
        commands.append(Clear(life.spec.slot, life.generation))
        life = msgspec.structs.replace(life, clear_by=now + CLEAR_SECONDS)
    reason = life.condemned or reason
    if lives.ending != "no" or life.intent == "stop":
        return _at_rest(life, Phase.STOPPED, reason, True, now, commands)
    if life.intent == "again":
        commands.append(Note(life.spec.slot, life.generation, "stopped", f"stopped: {reason}", reason, planned=True))
        life = msgspec.structs.replace(life, intent="run", reason="restart asked for", planned=True)
        return msgspec.structs.replace(_to(life, Phase.WAITING, now), start_at=now, restarts=life.restarts + 1)
    ok = code == Exit.OK and not life.condemned
    if code in NOT_RETRIED and not life.condemned:
        text = f"{reason} (starting again cannot mend this)"
        return _at_rest(life, Phase.FAILED, text, False, now, commands)
    if life.spec.policy.type == "temporary" or (life.spec.policy.type == "transient" and ok):
        return _at_rest(life, Phase.STOPPED if ok else Phase.FAILED, reason, ok, now, commands)
    if code in (Exit.BUS, Exit.BUS_LOST) and (not lives.bus or lives.bus_lost >= life.started):
        return _wait(life, reason, jitter, now, commands)
    return _crashed(life, reason, jitter, now, commands)


def _crashed(life: Life, reason: str, jitter: float, now: float, commands: list[SlotCommand]) -> Life:
    """Count a crash against the budget it belongs to; start again if that allows it."""
    policy = life.spec.policy
    crashes, early = life.crashes, life.early
    if life.ready_at is None:
        early += 1
        if early > policy.crashes_before_ready:
            text = f"{reason} (crashed {early} times before it was ready)"
            return _at_rest(life, Phase.FAILED, text, False, now, commands)
    else:
        crashes = add_restart(crashes, now, policy.period)
        if len(crashes) > policy.intensity:
            text = f"{reason} ({len(crashes)} crashes within {policy.period:g} s, {policy.intensity} are allowed)"
            return _at_rest(life, Phase.FAILED, text, False, now, commands)
    life = msgspec.structs.replace(life, crashes=crashes, early=early)
    return _wait(life, reason, jitter, now, commands)


def _wait(life: Life, reason: str, jitter: float, now: float, commands: list[SlotCommand]) -> Life:
    """Start again after the back-off, which counts from the last start: a long life starts again at once."""
    start_at = max(now, life.started + backoff(life.spec.policy, life.streak, jitter))
    delay = "" if start_at <= now else f" in {start_at - now:.1f} s"
    text = f"died: {reason}; starting again{delay}"
    commands.append(Note(life.spec.slot, life.generation, "died", text, reason, bad=True))
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


def _at_rest(life: Life, phase: Phase, reason: str, planned: bool, now: float, commands: list[SlotCommand]) -> Life:
    what = "gave_up" if phase is Phase.FAILED else "stopped"
    text = f"{'failed' if phase is Phase.FAILED else 'stopped'}: {reason}"
    commands.append(Note(life.spec.slot, life.generation, what, text, reason, planned, phase is Phase.FAILED))
    return msgspec.structs.replace(_to(life, phase, now), reason=reason, planned=planned, kill_at=math.inf)


def _terminate(life: Life, now: float, commands: list[SlotCommand], *, abort: bool = False) -> Life:
    """Ask a process to drain; one that is not ready has nothing to drain and gets little time."""
    commands.append(Terminate(life.spec.slot, life.generation, abort))
    what, text = ("aborted", "aborts what is left") if abort else ("draining", "drains")
    commands.append(Note(life.spec.slot, life.generation, what, text, planned=True))
    patience = 0.0 if abort or life.ready_at is None else life.spec.drain_deadline
    return msgspec.structs.replace(_to(life, Phase.DRAINING, now), kill_at=now + patience + KILL_SLACK)


def _end(lives: Lives, abort: bool, now: float, commands: list[SlotCommand]) -> Lives:
    """Begin the end: what does not run stops, what only loads has nothing to finish, the rest goes tier by tier."""
    lives = msgspec.structs.replace(lives, ending="abort" if abort or lives.ending == "abort" else "drain")
    for life in [life for life in lives.slots.values() if not life.spec.external]:
        if life.phase is Phase.WAITING:
            life = _to(life, Phase.STOPPED, now)
        elif abort and life.phase in (Phase.LOADING, Phase.READY, Phase.DRAINING):
            life = _terminate(life, now, commands, abort=True)
        elif life.phase is Phase.LOADING:
            life = _terminate(life, now, commands)
        lives = _with(lives, life)
    return lives


def _next_tier(lives: Lives, now: float, commands: list[SlotCommand]) -> Lives:
    """Drain the foremost tier that still lives; the next one follows when all of it is gone."""
    living = [life for life in lives.slots.values() if life.phase not in AT_REST and not life.spec.external]
    front = min((life.spec.tier for life in living), default=0)
    for life in living:
        if life.spec.tier == front and life.phase is Phase.READY:
            lives = _with(lives, _terminate(life, now, commands))
    return lives


def _to(life: Life, phase: Phase, now: float) -> Life:
    return msgspec.structs.replace(life, phase=phase, since=now, behind="")
