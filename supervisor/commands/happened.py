"""Writes what happened as a line for people: `troupe events` and `troupe top` say it in the same words."""

import time
from collections.abc import Mapping
from typing import Any, Final

from messages.ids import short
from messages.lifecycle import Event

SHOWN: Final = 0.005
"""Seconds below which a stage of a recovery is not worth telling."""


def line(event: Event, now: float) -> str:
    """Write one event: when (local time, with the date if it is not today's), to whom, what."""
    return f"{when(event.at, now)}  {whom(event)}  {what(event)}"


def when(at: float, now: float) -> str:
    """Write a moment in local time; the date only where it is another day than `now`."""
    moment, today = time.localtime(at), time.localtime(now)
    stamp = f"{time.strftime('%H:%M:%S', moment)}.{int(at % 1 * 1_000):03d}"
    return stamp if moment[:3] == today[:3] else f"{time.strftime('%Y-%m-%d', moment)} {stamp}"


def whom(event: Event) -> str:
    """Say to whom it happened, shortly."""
    if event.topic == "gate":
        return f"gate of {plain(event.of)}"
    return plain(short(event.of, event.generation) if event.generation else event.of)


def what(event: Event) -> str:
    """Say what happened, and why."""
    detail = event.detail
    match event.topic, event.what:
        case "restart", "started":
            return f"started (pid {detail['pid']})" if "pid" in detail else "started"
        case "restart", "ready" | "standby":
            return plain(_ready(event.what, detail))
        case "restart", "died":
            delay = _seconds(detail.get("delay"))
            again = f"; starting again{f' in {delay:.1f} s' if delay else ''}"
            return plain(f"died: {event.reason}{again}")
        case "restart", "gave_up":
            return plain(f"failed: {event.reason}")
        case "restart", "condemned":
            return plain(f"is killed: {event.reason}")
        case "actor", "stage":
            text = f" {detail.get('text')}" if detail.get("text") else ""
            return plain(f"{detail.get('stage', '?')}{text} at {_seconds(detail.get('seconds')):.2f} s")
    planned = " (planned)" if event.planned and event.topic == "actor" else ""
    return plain(f"{event.what.replace('_', ' ')}{planned}{': ' + event.reason if event.reason else ''}")


def stages(recovery: Mapping[str, Any], least: float = SHOWN) -> str:
    """Write the stages of a recovery that took any time."""
    told = {name: _seconds(seconds) for name, seconds in recovery.items()}
    return ", ".join(f"{name.replace('_', '-')} {seconds:.2f}" for name, seconds in told.items() if seconds >= least)


def plain(text: str) -> str:
    """Leave out what would steer a terminal: reasons and names are others' words."""
    return "".join(char if char.isprintable() else "·" for char in text)


def _ready(what: str, detail: Mapping[str, Any]) -> str:
    said = f"{what} after {_seconds(detail['seconds']):.1f} s" if "seconds" in detail else what
    recovery = detail.get("recovery")
    if not isinstance(recovery, dict) or not recovery:
        return said
    total = sum(_seconds(seconds) for seconds in recovery.values())
    attempts = detail.get("attempts", 1)
    more = f", {attempts} attempts" if attempts != 1 else ""
    return f"{said}; {total:.2f} s after it died ({stages(recovery)}){more}"


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
