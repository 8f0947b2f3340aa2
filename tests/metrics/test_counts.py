"""What the supervisor counts of its slots: each restart once and for its reason, the bus through all lives."""

from typing import Any

import msgspec

from messages.lifecycle import Heartbeat, State
from supervisor.acts import Note
from supervisor.counts import Counts, Place, reason_of
from supervisor.lives import Life
from supervisor.restart import begin
from tests.supervisor.histories import D0, spec

PLACE: Place = ("demo", "decode")


def life(**fields: Any) -> Life:
    """A slot's life as the deciders have it."""
    whole = begin({D0: spec()}, 0.0).slots[D0]
    return msgspec.structs.replace(whole, **fields)


def test_each_restart_is_counted_once_for_its_reason() -> None:
    counts = Counts()
    counts.note(Note(D0, 1, "started", "started"), life())
    assert counts.restarts == {}, "the first start is no restart"
    crashed = Note(D0, 1, "died", "died", "killed by SIGKILL", detail={"exit": "SIGKILL"})
    counts.note(crashed, life(restarts=1))
    assert counts.restarts == {}, "it has not been started again yet"
    counts.note(Note(D0, 2, "started", "started"), life(restarts=1))
    counts.note(Note(D0, 2, "condemned", "is killed", "stalled"), life(restarts=1))
    counts.note(Note(D0, 2, "died", "died", "stalled", detail={"exit": "SIGKILL"}), life(restarts=2))
    counts.note(Note(D0, 3, "started", "started"), life(restarts=2))
    counts.note(Note(D0, 3, "stopped", "stopped", "restart asked for", planned=True), life(restarts=3, planned=True))
    counts.note(Note(D0, 4, "started", "started"), life(restarts=3, planned=True))
    assert counts.restarts == {(PLACE, "signal"): 1, (PLACE, "stalled"): 1, (PLACE, "planned"): 1}
    assert counts.stalled == {PLACE: 1}
    counts.note(Note(D0, 4, "stopped", "stopped", "drained", planned=True), life())
    counts.note(Note(D0, 5, "started", "is loading, started by its manager"), life())
    assert counts.restarts[PLACE, "planned"] == 2, "an external slot's own count may say nothing of it"
    counts.note(Note(D0, 5, "gave_up", "failed"), life(restarts=3))
    assert counts.gave_up == {PLACE: 1}


def test_recoveries_are_spread_by_their_stages() -> None:
    counts = Counts()
    detail = {"recovery": {"detect": 0.02, "load": 3.0}, "outage": 3.02}
    counts.note(Note(D0, 2, "ready", "ready", detail=detail), life())
    counts.note(Note(D0, 3, "ready", "ready"), life())
    assert {key[1]: buckets.sum for key, buckets in counts.recovery.items()} == {"detect": 0.02, "load": 3.0}
    assert sum(counts.outage[PLACE].counts) == 1


def test_the_buses_troubles_add_up_through_all_lives() -> None:
    counts = Counts()
    for generation, reconnects in ((1, 1), (1, 3), (2, 0), (2, 1), (2, 1)):
        beat = Heartbeat(slot=D0, generation=generation, state=State.READY, bus_reconnects=reconnects, bus_dropped=2)
        counts.beat(beat, ("demo", "decode"))
    assert counts.of_bus == {("bus_reconnects", PLACE): 4, ("bus_dropped", PLACE): 4}


def test_every_end_has_a_reason_of_ours() -> None:
    assert reason_of("SIGSEGV", "") == "signal"
    assert reason_of("engine died", "") == "engine_died"
    assert reason_of("warm-up", "") == "warm_up"
    assert reason_of("", "could not be started: no such file") == "not_started"
    assert reason_of("<script>", "") == "unknown"
