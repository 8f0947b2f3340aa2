"""What the page is told of a cluster: the status, with times that stand still, and what has changed since last time."""

import time
from typing import Any, Final

import msgspec
from msgspec import Struct

from messages.config import shown
from messages.ids import parse_slot
from messages.supervise import SlotStatus, Status

JITTER: Final = 0.5
"""Seconds by which a moment may seem to move between two looks and is yet the same one."""
MOVING: Final = ("seconds", "probe", "recovered", "in_flight", "queued", "kv_used", "rss_bytes", "tokens")
"""Fields of a slot that change with time or load alone, and are told as moments or figures."""
SPAN: Final = 2.0
"""Seconds over which a rate is measured: heartbeats come twice a second."""
LONGEST: Final = 10.0
"""Seconds between two looks after which a rate would say nothing of now."""

Slot = dict[str, Any]
Traffic = dict[str, dict[str, Any]]


class Rates:
    """Tokens a second of each slot, from counts that grow."""

    def __init__(self) -> None:
        self._marks: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def of(self, slot: str, tokens: int, now: float) -> float:
        """Take in a count, and say how fast it grows; 0 where that is not known yet."""
        at, before = self._marks.get(slot, (0.0, 0))
        if now - at >= SPAN or tokens < before:
            known = now - at <= LONGEST and tokens >= before
            self._last[slot] = round((tokens - before) / (now - at), 1) if known else 0.0
            self._marks[slot] = now, tokens
        return self._last[slot]


class View(Struct):
    """A cluster as the page shows it.

    `head` is what belongs to the whole; `slots` by name, each with `since` (seconds since 1970) in place of a length
    of time; `figures` by slot: in flight, queued, KV blocks used, bytes of memory, moment of the last probe, tokens a
    second. `traffic` is what the last seconds brought, by model.
    """

    head: dict[str, Any]
    slots: dict[str, Slot]
    figures: dict[str, list[float]]
    traffic: Traffic


def of_status(status: Status, traffic: Traffic, rates: Rates, before: View | None, now: float) -> View:
    """Make the view of a status taken at wall-clock time `now`."""
    head = msgspec.to_builtins(status)
    del head["slots"]
    head["nats"] = [shown([url]) for url in status.nats]
    head["began"] = _settled(now - head.pop("uptime", 0.0), before.head["began"] if before is not None else None)
    slots: dict[str, Slot] = {}
    figures: dict[str, list[float]] = {}
    for slot in status.slots:
        known = before.slots.get(slot.slot) if before is not None else None
        slots[slot.slot] = _slot(slot, status.host, known, now)
        probed = round(now - slot.probe.age) if slot.probe is not None else 0
        figures[slot.slot] = [slot.in_flight, slot.queued, slot.kv_used, slot.rss_bytes, probed]
        figures[slot.slot].append(rates.of(slot.slot, slot.tokens, now))
    return View(head, slots, figures, traffic)


def _slot(slot: SlotStatus, host: str, known: Slot | None, now: float) -> Slot:
    told: Slot = {name: value for name, value in msgspec.to_builtins(slot).items() if name not in MOVING}
    told["alias"] = parse_slot(slot.slot).alias
    same = known is not None and (known["state"], known.get("generation")) == (slot.state, told.get("generation"))
    told["since"] = _settled(now - slot.seconds, known["since"] if known is not None and same else None)
    if slot.spawn != "external":
        told["host"] = host
    if slot.probe is not None:
        told["probe"] = {"result": slot.probe.result, "failures": slot.probe.failures, "message": slot.probe.message}
    return told


def _settled(moment: float, known: float | None) -> float:
    """Let a moment stand still that was measured before."""
    return known if known is not None and abs(moment - known) < JITTER else round(moment, 2)


def changes(before: View, after: View) -> dict[str, Any]:
    """Say what is other than before: whole slots that have changed, the head if it has, figures that have moved."""
    told: dict[str, Any] = {}
    if slots := {name: slot for name, slot in after.slots.items() if before.slots.get(name) != slot}:
        told["slots"] = slots
    if gone := [name for name in before.slots if name not in after.slots]:
        told["gone"] = gone
    if after.head != before.head:
        told["head"] = after.head
    if figures := {name: row for name, row in after.figures.items() if before.figures.get(name) != row}:
        told["figures"] = figures
    if after.traffic != before.traffic:
        told["traffic"] = after.traffic
    return told


def whole(view: View) -> dict[str, Any]:
    """Say everything."""
    return {
        "head": view.head,
        "slots": view.slots,
        "figures": view.figures,
        "traffic": view.traffic,
        "now": round(time.time(), 2),
    }
