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

Here every event is taken in, and what time alone brings; `deaths` decides what follows one, `ending` how to end.
"""

import math
from typing import Final

import msgspec

from messages.lifecycle import State
from supervisor import deaths, ending, recovery, turns
from supervisor.acts import (
    Adopted,
    Ask,
    Began,
    Cleared,
    Condemned,
    Downloading,
    End,
    Exited,
    Forget,
    Gone,
    Seen,
    SlotCommand,
    SlotEvent,
    Start,
    Started,
    StartFailed,
    What,
)
from supervisor.events import Bus, Tick
from supervisor.lives import IN_PLACE, KILL_SLACK, MORTAL, RUNNING, Intent, Life, Lives, Phase
from supervisor.spec import Spec

HAND_OVER: Final = 5.0
"""Seconds that one who is to go waits for an understudy to take over; being called takes milliseconds."""

UP: Final = {State.READY: Phase.READY, State.STANDBY: Phase.STANDBY}
"""Registered states that end loading."""


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
            lives = ending.end_all(lives, abort, now, commands)
        case Tick():
            pass
        case _:
            life = lives.slots.get(event.slot)
            if life is not None and not life.spec.external:
                lives = lives.having(_one(life, event, lives, now, commands))
    for life in lives.ours:
        lives = lives.having(_due(life, lives, now, commands))
    if lives.ending == "drain":
        lives = ending.next_tier(lives, now, commands)
    return lives, commands


def next_wake(lives: Lives) -> float:
    """Tell when a Tick is needed at the latest, if nothing else happens; infinity for never."""
    times = [min(life.kill_at, life.hand_over) for life in lives.slots.values() if life.phase in RUNNING]
    if lives.bus:
        waiting = [life for life in lives.slots.values() if life.phase is Phase.WAITING and not life.behind]
        times += [max(life.start_at, life.clear_by) for life in waiting]
    return min(times, default=math.inf)


def _one(life: Life, event: SlotEvent, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Take in an event of one slot."""
    match event:
        case Adopted():
            return _adopted(life, event, now)
        case Started(_, generation):
            return _started(life, generation, lives, now, commands)
        case StartFailed():
            return deaths.not_started(life, event, lives, now, commands)
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
            return life.to(Phase.KILLING, now, kill_at=math.inf, outage=outage)
        case Exited(_, generation, _) if generation == life.generation:
            return deaths.exited(life, event, lives, now, commands)
        case Cleared(_, generation, held) if generation == life.generation:
            if life.outage is not None and life.phase is Phase.WAITING:
                life = msgspec.structs.replace(life, outage=recovery.cleaned(life.outage, now))
            if held:
                commands.append(life.note("held", f"memory of its last life is not free: {held}", held, bad=True))
            return msgspec.structs.replace(life, clear_by=-math.inf)
        case Condemned(_, generation, why, since) if generation == life.generation:
            return ending.condemn(life, why, since, now, commands)
    return life


def _due(life: Life, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    """Do what time alone brings: a start, a kill, forgetting."""
    if life.phase is Phase.WAITING and lives.bus and lives.ending == "no":
        if now >= max(life.start_at, life.clear_by):
            return _turn(life, lives, now, commands)
    if life.phase in MORTAL and now >= life.kill_at:
        return ending.condemn(life, _overdue(life), None, now, commands)
    if life.phase is Phase.READY and now >= life.hand_over:
        return ending.terminate(life, now, commands)
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
        return life.to(Phase.STARTING, now, outage=outage)
    if life.behind == other.slot:
        return life
    text = f"waits for its turn on the GPU it shares: {other.slot} {other.what}"
    commands.append(life.note("waits", text, text, planned=True))
    return msgspec.structs.replace(life, behind=other.slot)


def _overdue(life: Life) -> str:
    if life.phase is Phase.LOADING and life.intent == "run":
        return f"not ready within its load deadline of {life.spec.load_deadline:g} s"
    return "did not end within its drain deadline"


def _adopted(life: Life, adopted: Adopted, now: float) -> Life:
    if life.phase is not Phase.WAITING:
        return life
    started = now - adopted.age
    return life.to(
        Phase.LOADING,
        now,
        generation=adopted.generation,
        started=started,
        restarts=adopted.restarts,
        reason=adopted.reason,
        # A deadline that passed while nobody looked gives the registration time to be read first.
        kill_at=max(started + life.spec.load_deadline, now) + KILL_SLACK,
    )


def _started(life: Life, generation: int, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    if life.phase is not Phase.STARTING:
        return life
    life = life.to(
        Phase.LOADING,
        now,
        generation=generation,
        started=now,
        ready_at=None,
        condemned="",
        kill_at=now + life.spec.load_deadline + KILL_SLACK,
    )
    commands.append(life.note("started", "started"))
    return ending.terminate(life, now, commands) if life.intent != "run" or lives.ending != "no" else life


def _asked(life: Life, what: What, lives: Lives, now: float, commands: list[SlotCommand]) -> Life:
    if lives.ending != "no":
        return life
    intent: Intent = "stop" if what in ("drain", "out") else "again"
    if intent == "again" and life.phase is Phase.STARTING:
        intent = "run"
    fresh = {"crashes": (), "early": 0, "streak": 0} if intent != "stop" else {}
    life = msgspec.structs.replace(life, intent=intent, **fresh)
    if what in ("now", "out") and life.phase in MORTAL:
        why = "taken out" if what == "out" else "restart asked for, at once"
        return ending.at_once(life, why, now, commands)
    if life.phase is Phase.READY and life.spec.actives:
        return msgspec.structs.replace(life, hand_over=min(life.hand_over, now + HAND_OVER))
    if life.phase in IN_PLACE:
        return ending.terminate(life, now, commands)
    if life.phase in (Phase.WAITING, Phase.STOPPED, Phase.FAILED):
        if intent == "stop":
            return deaths.stopped(life, "taken out" if what == "out" else "drained", now, commands)
        return deaths.again(life, now)
    return life


def _seen(life: Life, seen: Seen, now: float, commands: list[SlotCommand]) -> Life:
    state = seen.state
    if state is State.READY and life.phase is Phase.STANDBY:
        commands.append(life.note("promoted", "is at work: it stands in for one that is gone"))
        return life.to(Phase.READY, now)
    if state in UP and life.phase is Phase.LOADING and life.intent == "run":
        recovered = None
        if life.outage is not None:
            said = life.born[1] + seen.total if life.born[0] == life.generation else None
            recovered = recovery.over(life.outage, seen.stages, said, now)
        commands.append(life.note(state, state, detail=recovered.detail if recovered is not None else {}))
        return life.to(
            UP[state],
            now,
            ready_at=now,
            kill_at=math.inf,
            outage=None,
            recovered=recovered or life.recovered,
        )
    if state is State.DRAINING and life.phase in IN_PLACE:
        # Somebody asked the actor itself; it was ready, or it could not drain.
        commands.append(life.note("draining", "drains, asked by somebody else", planned=True))
        ready_at = now if life.ready_at is None else life.ready_at
        return life.to(Phase.DRAINING, now, ready_at=ready_at, kill_at=now + life.spec.drain_deadline + KILL_SLACK)
    return life
