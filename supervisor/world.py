"""Puts the deciders together, one event in, every consequence out: pure, `(state, event, now) -> (state, commands)`.

The roster says who is ready and who is stuck, the lives what is started and killed, the doors whether the gates are
open. What one of them finds is an event for the next, here and nowhere else.
"""

from typing import Final

import msgspec
from msgspec import Struct

from messages.config import Watch
from messages.gate import Gate
from messages.ids import Role
from messages.lifecycle import State
from supervisor import acts, gate, outside, restart, rolling, roster, understudies
from supervisor.acts import Note
from supervisor.events import Bus, Tick
from supervisor.gate import Door, Wanted
from supervisor.lives import IN_PLACE, Life, Lives, Phase
from supervisor.rolling import Roll
from supervisor.roster import Look, Peek, Roster
from supervisor.spec import Spec

NEWS: Final = {
    Phase.LOADING: (State.STANDBY, State.READY, State.DRAINING),
    Phase.STANDBY: (State.READY, State.DRAINING),
    Phase.READY: (State.DRAINING,),
}
"""Which registered states are news for a slot in this phase."""
WHY_LENGTH: Final = 160
"""Characters of a reason that a gate repeats; the status has all of it."""


class World(Struct, frozen=True, kw_only=True):
    """All that a supervisor knows; `settled` once each registration that it found is known to be alive or dead.

    `rolls` has the last rolling restart of each model, by its alias.
    """

    lives: Lives
    roster: Roster
    doors: dict[str, Door]
    settled: bool = False
    rolls: dict[str, Roll] = {}


class WriteGate(Struct, frozen=True):
    """Write a gate to its bucket (`since` is filled in then) and tell what changed."""

    gate: Gate
    what: str


Event = acts.SlotEvent | roster.Event | rolling.Begin | rolling.Halt
Command = acts.SlotCommand | Look | Peek | WriteGate


def begin(specs: dict[str, Spec], now: float, *, grace: float, watch: Watch | None = None) -> World:
    """Make the first state: nothing runs, nobody is known, every gate is closed."""
    doors: dict[str, Door] = {}
    for spec in specs.values():
        if not spec.model:
            continue
        door = doors.setdefault(spec.alias, Door(model=spec.model, alias=spec.alias, needs={}))
        door.needs[spec.role] = spec.min_ready
    external = frozenset(spec.slot for spec in specs.values() if spec.external)
    return World(
        lives=restart.begin(specs, now),
        roster=Roster(entries={}, grace=grace, external=external, watch=watch or Watch()),
        doors=doors,
        settled=not external,
    )


def remember(world: World, alias: str, written: Gate, *, goes_on: bool) -> World:
    """Take over what was last written of a gate; where the cluster goes on, also that it has been open before."""
    door = world.doors[alias]
    opened = goes_on and (written.open or written.opened)
    return msgspec.structs.replace(
        world, doors=world.doors | {alias: msgspec.structs.replace(door, gate=written, opened=opened)}
    )


def step(world: World, event: Event, now: float) -> tuple[World, list[Command]]:
    """Take in one event and all that follows from it."""
    commands: list[Command] = []
    match event:
        case Bus() | Tick():
            world = _to_roster(world, event, now, commands)
            world = _to_lives(world, event, now, commands)
        case roster.Beat(beat):
            before = world
            world = _to_roster(world, event, now, commands)
            if not commands and _as_ever(before, world, beat.slot):
                return world, commands
        case roster.Whole() | roster.Registered() | roster.Unregistered() | roster.Late() | roster.Looked():
            world = _to_roster(world, event, now, commands)
        case acts.Gone(slot, generation) | acts.Exited(slot, generation):
            world = _to_lives(world, event, now, commands)
            entry = world.roster.entries.get(slot)
            if entry is not None and entry.registration.generation <= generation and slot in world.lives.slots:
                world = _to_roster(world, roster.Unregistered(slot), now, commands)
        case acts.Refused():
            lives, notes = understudies.refused(world.lives, event, now)
            commands += notes
            world = msgspec.structs.replace(world, lives=lives)
        case rolling.Begin(roll):
            world = msgspec.structs.replace(world, rolls=world.rolls | {roll.alias: roll})
        case rolling.Halt(alias):
            world = _halt(world, alias, commands)
        case _:
            world = _to_lives(world, event, now, commands)
    world = _call(_sync(world, now, commands), now, commands)
    return _roll(_decide_gates(world, commands), now, commands), commands


def _as_ever(before: World, after: World, slot: str) -> bool:
    """Whether a heartbeat was one of many, from which nothing can follow; in a large cluster come hundreds a second."""
    known = before.roster.entries.get(slot)
    heard = known is not None and known.beat is not None and not known.expired
    return (
        heard
        and before.settled
        and after.lives is before.lives
        and all(roll.state != "going" for roll in before.rolls.values())
    )


def _to_lives(world: World, event: acts.SlotEvent, now: float, commands: list[Command]) -> World:
    lives, more = restart.step(world.lives, event, now)
    commands += more
    if isinstance(event, outside.Event):
        lives, more = outside.step(lives, event, now)
        commands += more
    return world if lives is world.lives else msgspec.structs.replace(world, lives=lives)


def _to_roster(world: World, event: roster.Event, now: float, commands: list[Command]) -> World:
    """Feed the roster, and the lives with what it finds; slots of others are none of our business beyond the gate."""
    entries, findings = roster.step(world.roster, event, now)
    world = msgspec.structs.replace(world, roster=entries)
    for finding in findings:
        if finding.slot not in world.lives.slots:
            continue
        match finding:
            case Look() | Peek():
                commands.append(finding)
            case roster.Stuck(slot, generation, why, since):
                world = _to_lives(world, acts.Condemned(slot, generation, why, since), now, commands)
            case roster.Vanished(slot, generation, why):
                # Also where its life was never seen: what an earlier supervisor's time has left.
                commands.append(acts.Forget(slot, generation))
                world = _to_lives(world, acts.Lost(slot, generation, why), now, commands)
                world = _to_roster(world, roster.Unregistered(slot), now, commands)
            case roster.Lapsed(slot, generation, over):
                text = "no heartbeat: its lease is over" if over else "is heard again"
                commands.append(Note(slot, generation, "lapsed" if over else "heard", text, bad=over))
    return world


def _sync(world: World, now: float, commands: list[Command]) -> World:
    """Tell the lives what their owners have registered, whichever of the two was known first."""
    for slot, life in world.lives.slots.items():
        entry = world.roster.entries.get(slot)
        if life.spec.external:
            world = _sync_external(world, life, now, commands)
            continue
        if entry is None or life.phase not in IN_PLACE:
            continue
        state, generation = entry.registration.state, entry.registration.generation
        news = NEWS[life.phase]
        if generation == life.generation and state in news:
            said = entry.registration
            seen = acts.Seen(slot, generation, state, said.load_seconds, said.stages)
            world = _to_lives(world, seen, now, commands)
    return world


def _sync_external(world: World, life: Life, now: float, commands: list[Command]) -> World:
    """Tell the life of an external slot what is registered; believed once it is heard, for it may be long dead."""
    slot = life.spec.slot
    entry = world.roster.entries.get(slot)
    if entry is None:
        if life.phase in outside.HERE and world.roster.known:
            return _to_lives(world, acts.Left(slot, life.generation), now, commands)
        return world
    state, generation = entry.registration.state, entry.registration.generation
    if entry.beat is None or state not in (State.READY, State.DRAINING):
        return world
    same = generation == life.generation and life.phase is (Phase.READY if state is State.READY else Phase.DRAINING)
    return world if same else _to_lives(world, acts.Seen(slot, generation, state), now, commands)


def _settle(world: World) -> World:
    """See whether every external slot found registered has been heard since, or its lease is over.

    A cluster of which nothing is left but what was written down begins anew: its gates want the whole cast.
    """
    entries = [entry for slot, entry in world.roster.entries.items() if slot in world.roster.external]
    if any(entry.beat is None and not entry.expired and entry.registration.state is State.READY for entry in entries):
        return world
    doors = world.doors
    if all(life.phase is not Phase.READY for life in world.lives.slots.values()):
        doors = {alias: msgspec.structs.replace(door, opened=False) for alias, door in doors.items()}
    return msgspec.structs.replace(world, doors=doors, settled=True)


def _decide_gates(world: World, commands: list[Command]) -> World:
    """Decide every gate anew, once the registry has been read and what it says of external slots is known to hold."""
    if world.roster.known and not world.settled:
        world = _settle(world)
    if not world.roster.known or not world.settled:
        return world
    for alias, door in world.doors.items():
        cast = _cast(world, alias)
        http = {
            entry.registration.http
            for entry in world.roster.entries.values()
            if entry.live and entry.registration.alias == alias and entry.registration.http
        }
        # What is external goes on without us, and so does a model of which all is.
        ours = any(life.spec.alias == alias and not life.spec.external for life in world.lives.slots.values())
        new, written = gate.step(door, cast, sorted(http), ending=ours and world.lives.ending != "no")
        if written is not None:
            commands.append(WriteGate(written, gate.what_changed(door.gate, written)))
            world = msgspec.structs.replace(world, doors=world.doors | {alias: new})
    return world


def _cast(world: World, alias: str) -> list[Wanted]:
    """List what the cast wants: of a role with understudies as many slots as are to work, those at work first."""
    found: list[Wanted] = []
    spares: dict[Role, list[tuple[bool, Wanted]]] = {}
    for life in world.lives.slots.values():
        if life.spec.alias != alias:
            continue
        wanted = _wanted(life, world.roster)
        if wanted.ready or not life.spec.actives:
            found.append(wanted)
        else:
            spares.setdefault(life.spec.role, []).append((life.phase is Phase.STANDBY, wanted))
    for role, others in spares.items():
        at_work = sum(wanted.role == role for wanted in found)
        actives = next(life.spec.actives for life in world.lives.slots.values() if life.spec.slot == others[0][1].slot)
        # What is missing is who has gone, rather than who is on its way to stand in.
        others.sort(key=lambda other: other[0])
        found += [wanted for _, wanted in others[: max(0, actives - at_work)]]
    return found


def _halt(world: World, alias: str, commands: list[Command]) -> World:
    roll = world.rolls.get(alias)
    if roll is None or roll.state != "going":
        return world
    roll, note = rolling.halt(roll, world.lives)
    commands.append(note)
    return msgspec.structs.replace(world, rolls=world.rolls | {alias: roll})


def _roll(world: World, now: float, commands: list[Command]) -> World:
    """Go on with the rolling restarts under way; a restart may change what the gates lack."""
    for alias, before in world.rolls.items():
        if before.state != "going":
            continue
        roll, steps = rolling.step(before, _standing(world, alias), now)
        if roll is before:
            continue
        world = msgspec.structs.replace(world, rolls=world.rolls | {alias: roll})
        for one in steps:
            if isinstance(one, rolling.Again):
                world = _to_lives(world, acts.Ask(one.slot, "restart"), now, commands)
            else:
                commands.append(one)
        world = _decide_gates(_call(world, now, commands), commands)
    return world


def _call(world: World, now: float, commands: list[Command]) -> World:
    """Call understudies to work where too few do, now that all is known."""
    lives, more = understudies.step(world.lives, now)
    commands += more
    return world if lives is world.lives else msgspec.structs.replace(world, lives=lives)


def _standing(world: World, alias: str) -> rolling.Standing:
    door = world.doors[alias]
    back = [slot for slot, life in world.lives.slots.items() if _in_service(life, world.roster)]
    missing = ", ".join(f"{item.what}: {item.why}" for item in door.gate.missing) if door.gate is not None else ""
    is_open = door.gate is not None and door.gate.open
    return rolling.Standing(lives=world.lives, back=frozenset(back), open=is_open, missing=missing)


def _in_service(life: Life, known: Roster) -> bool:
    """Whether a slot is where it should be: at work, or standing by."""
    entry = known.entries.get(life.spec.slot)
    stands_by = life.phase is Phase.STANDBY and entry is not None and not entry.expired
    return stands_by or _wanted(life, known).ready


def _wanted(life: Life, known: Roster) -> Wanted:
    slot: str = life.spec.slot
    role: Role = life.spec.role
    entry = known.entries.get(slot)
    if life.phase is not Phase.READY:
        return Wanted(slot=slot, role=role, ready=False, why=_why(life))
    if entry is None or entry.registration.generation != life.generation:
        return Wanted(slot=slot, role=role, ready=False, why="not registered")
    return Wanted(slot=slot, role=role, ready=entry.live, why="" if entry.live else "its lease is over")


def _why(life: Life) -> str:
    """Say what an unready slot is about; the same words from death to ready, so that the gate is written once."""
    if life.spec.external and life.phase is Phase.WAITING:
        return f"not there; {outside.WAITS}"
    match life.phase:
        case Phase.WAITING | Phase.STARTING | Phase.LOADING:
            return "starting again" if life.reason else "loading"
        case Phase.STANDBY:
            return "stands by"
        case Phase.KILLING:
            return "starting again" if life.intent != "stop" else "draining"
        case Phase.DRAINING:
            return "draining"
        case _:
            return _shortened(f"{life.phase}: {life.reason}")


def _shortened(text: str) -> str:
    return text if len(text) <= WHY_LENGTH else f"{text[: WHY_LENGTH - 1]}…"


def stamp(world: World, alias: str, since: float) -> World:
    """Put the wall-clock time of its last change into a gate."""
    door = world.doors[alias]
    if door.gate is None:
        return world
    gate_ = msgspec.structs.replace(door.gate, since=since)
    return msgspec.structs.replace(world, doors=world.doors | {alias: msgspec.structs.replace(door, gate=gate_)})
