"""Keeps who is registered, whose lease is live and who is stuck: pure, `(state, event, now) -> (state, findings)`.

Evidence against a slot, the surest first: a process of its engine is stopped, a zombie or gone; its engine, being idle,
does not answer a health probe; it has work and shows no progress (`messages/stall.py`); its lease is over. A heartbeat
that is late is only a reason to look whether its process is stopped, a lease that is over one to ask the actor as well.
Leases run on the observer's own monotonic clock and start anew, in full, whenever the observer could not see: after
it was late itself, and after its bus was away.
"""

from typing import Final, Literal

import msgspec
from msgspec import Struct, field

from messages import stall
from messages.config import Watch
from messages.lifecycle import LEASE, Heartbeat, Probed, Registration, State
from supervisor.events import Bus, Tick
from supervisor.spec import ENGINE_ROLES

PROBE_FAILURES: Final = 2
"""Health probes in a row that an engine has answered with a failure, after which it is taken to be ill. One that is not
answered at all within its deadline is enough."""
LOOK_AGAIN: Final = 2.0


class Entry(Struct, frozen=True, kw_only=True):
    """One registered slot: what it said last and when, and since when it has made no progress."""

    registration: Registration
    heard: float
    beat: Heartbeat | None = None
    mark: float = 0.0
    mark_steps: int = 0
    mark_cpu: float = 0.0
    expired: bool = False
    looked: float = 0.0

    @property
    def live(self) -> bool:
        """Whether requests may be sent there: registered as ready, with a live lease."""
        return self.registration.state is State.READY and not self.expired


class Roster(Struct, frozen=True, kw_only=True):
    """Everybody who is registered, by slot; `known` once the registry has been read whole.

    `external` are the slots that other managers start, whose processes cannot be seen from here.
    """

    entries: dict[str, Entry]
    bus: bool = False
    known: bool = False
    grace: float = 30.0
    external: frozenset[str] = frozenset()
    watch: Watch = field(default_factory=Watch)


# Events.


class Whole(Struct, frozen=True):
    """The registry, read whole."""

    registrations: dict[str, Registration]


class Registered(Struct, frozen=True):
    """One registration was written."""

    registration: Registration


class Unregistered(Struct, frozen=True):
    """One registration was deleted."""

    slot: str


class Beat(Struct, frozen=True):
    """A heartbeat came in."""

    heartbeat: Heartbeat


class Late(Struct, frozen=True):
    """The observer itself did not run for a while: what it did not hear proves nothing."""


class Looked(Struct, frozen=True):
    """What a look at a slot found: its process's state as /proc has it (None: gone), and its answer to a ping."""

    slot: str
    generation: int
    process: str | None
    answer: Literal["answered", "silent", "nobody", "unasked"]


Event = Whole | Registered | Unregistered | Beat | Bus | Late | Tick | Looked


# Findings.


class Look(Struct, frozen=True):
    """Look at a slot's process and ask its actor: its lease is over."""

    slot: str
    generation: int


class Peek(Struct, frozen=True):
    """Look whether a slot's process is stopped: its heartbeat is late."""

    slot: str
    generation: int


class Stuck(Struct, frozen=True):
    """There is evidence that this incarnation will do no more work, of which `since` was the last sign of life."""

    slot: str
    generation: int
    why: str
    since: float


class Vanished(Struct, frozen=True):
    """An external slot's lease is over and its actor does not answer: for those who choose slots it is gone."""

    slot: str
    generation: int
    why: str


class Lapsed(Struct, frozen=True):
    """A lease ran out (`over`), or was taken up again."""

    slot: str
    generation: int
    over: bool


Finding = Look | Peek | Stuck | Vanished | Lapsed


def step(roster: Roster, event: Event, now: float) -> tuple[Roster, list[Finding]]:
    """Take in one event; what comes from an earlier generation than the registered one changes nothing."""
    findings: list[Finding] = []
    match event:
        case Whole(registrations):
            entries = {slot: _entry(roster.entries.get(slot), new, now) for slot, new in registrations.items()}
            roster = msgspec.structs.replace(roster, entries=entries, known=True)
        case Registered(registration):
            old = roster.entries.get(registration.slot)
            if old is None or old.registration.generation <= registration.generation:
                roster = _with(roster, _entry(old, registration, now))
        case Unregistered(slot):
            left = {name: entry for name, entry in roster.entries.items() if name != slot}
            roster = msgspec.structs.replace(roster, entries=left)
        case Beat(heartbeat):
            entry = _of(roster, heartbeat.slot, heartbeat.generation)
            if entry is not None:
                roster = _with(roster, _beat(entry, heartbeat, roster.watch, now, findings))
        case Bus(up):
            entries = {slot: _anew(entry, now) for slot, entry in roster.entries.items()} if up else roster.entries
            roster = msgspec.structs.replace(roster, bus=up, entries=entries)
        case Late():
            entries = {slot: _anew(entry, now) for slot, entry in roster.entries.items()}
            roster = msgspec.structs.replace(roster, entries=entries)
        case Tick() if roster.bus:
            for entry in list(roster.entries.values()):
                roster = _with(roster, _lease(entry, roster, now, findings))
        case Looked(slot, generation, process, answer):
            entry = _of(roster, slot, generation)
            proof = entry is not None and process is not None and process in "TZX"
            if entry is not None and roster.bus and (entry.expired or proof):
                if slot in roster.external and answer in ("nobody", "silent"):
                    said = "nobody listens in its place" if answer == "nobody" else "no answer"
                    why = f"no heartbeat for {now - entry.heard:.1f} s and {said}"
                    findings.append(Vanished(slot, generation, why))
                else:
                    roster = _with(roster, _judge(entry, process, answer, roster.grace, now, findings))
    return roster, findings


def _of(roster: Roster, slot: str, generation: int) -> Entry | None:
    entry = roster.entries.get(slot)
    return entry if entry is not None and entry.registration.generation == generation else None


def _with(roster: Roster, entry: Entry) -> Roster:
    if roster.entries.get(entry.registration.slot) is entry:
        return roster
    return msgspec.structs.replace(roster, entries=roster.entries | {entry.registration.slot: entry})


def _entry(old: Entry | None, new: Registration, now: float) -> Entry:
    """Take over a registration: a new generation starts with a lease in full, a change of state keeps the old one."""
    if old is None or old.registration.generation != new.generation:
        return Entry(registration=new, heard=now, mark=now)
    return msgspec.structs.replace(old, registration=new)


def _anew(entry: Entry, now: float) -> Entry:
    return msgspec.structs.replace(entry, heard=now, mark=now, expired=False)


def _beat(entry: Entry, beat: Heartbeat, watch: Watch, now: float, findings: list[Finding]) -> Entry:
    """Renew the lease, and compare with what was seen at the last sign of progress."""
    generation = beat.generation
    if entry.expired:
        findings.append(Lapsed(beat.slot, generation, over=False))
    cpu = stall.cpu_of(beat)
    before, entry = entry.heard, msgspec.structs.replace(entry, beat=beat, heard=now, expired=False)
    if dead := stall.dead_child(beat):
        findings.append(Stuck(beat.slot, generation, dead, before))
        return entry
    if beat.probe is not None and (ill := _ill(beat.probe)):
        findings.append(Stuck(beat.slot, generation, ill, now - beat.probe.age - beat.probe.seconds))
        return entry
    role = entry.registration.role
    if not stall.works(beat) or beat.steps != entry.mark_steps or role not in ENGINE_ROLES:
        return msgspec.structs.replace(entry, mark=now, mark_steps=beat.steps, mark_cpu=cpu)
    if why := stall.stalled(role, beat, now - entry.mark, cpu - entry.mark_cpu, watch):
        findings.append(Stuck(beat.slot, generation, why, entry.mark))
    return entry


def _ill(probe: Probed) -> str:
    """Say what a health probe proves against its engine; nothing by an empty text."""
    if probe.result == "silent":
        return f"hangs while idle: a health probe had {probe.message}"
    if probe.result == "failed" and probe.failures >= PROBE_FAILURES:
        return f"{probe.failures} health probes failed: {probe.message}"
    return ""


def _lease(entry: Entry, roster: Roster, now: float, findings: list[Finding]) -> Entry:
    """End a lease that is over, and look at its owner, again and again while it stays so; before that, a peek."""
    slot, generation = entry.registration.slot, entry.registration.generation
    silent = now - entry.heard
    if entry.registration.state not in (State.READY, State.STANDBY, State.DRAINING) or silent < roster.watch.look:
        return entry
    if silent < LEASE:
        if slot not in roster.external:
            findings.append(Peek(slot, generation))
        return entry
    if not entry.expired:
        findings.append(Lapsed(slot, generation, over=True))
    elif now - entry.looked < LOOK_AGAIN:
        return entry
    findings.append(Look(slot, generation))
    return msgspec.structs.replace(entry, expired=True, looked=now)


def _judge(entry: Entry, process: str | None, answer: str, grace: float, now: float, findings: list[Finding]) -> Entry:
    """Decide on what was found: a lease alone proves nothing, with one of these it does."""
    slot, generation = entry.registration.slot, entry.registration.generation
    silent = now - entry.heard
    if process is not None and process in "TZX":
        state = "is stopped" if process == "T" else "has ended"
        findings.append(
            Stuck(slot, generation, f"no heartbeat for {silent:.1f} s and its process {state}", entry.heard)
        )
    elif answer == "answered":
        findings.append(Lapsed(slot, generation, over=False))
        return _anew(entry, now)
    elif answer == "silent":
        why = f"no heartbeat for {silent:.1f} s and no answer, on a well bus"
        findings.append(Stuck(slot, generation, why, entry.heard))
    elif answer == "nobody" and silent >= grace + LEASE:
        # An actor that has lost the bus ends by itself after its grace; one that does not is stuck.
        why = f"off the bus for {silent:.1f} s; its grace is {grace:g} s"
        findings.append(Stuck(slot, generation, why, entry.heard))
    return entry
