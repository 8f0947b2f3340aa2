"""The plots of a drill's report, as SVG text: how things went over time, and the lives of the slots. Pure."""

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from supervisor.drills.history import GateSeen, Happened, Line, Registered
from supervisor.drills.outcome import Outcome
from supervisor.drills.records import Record

WIDTH: Final = 1_000
LEFT: Final = 70
RIGHT: Final = 20
HEIGHT: Final = 96
LANE: Final = 22
BUCKETS: Final = 160
ROW: Final = 11
LETTER: Final = 5.5
"""Pixels that a letter of a label takes, more or less."""

COLOURS: Final = {
    "waiting": "var(--wait)",
    "loading": "var(--load)",
    "ready": "var(--ready)",
    "draining": "var(--drain)",
    "down": "var(--bad)",
}
AFTER: Final = {
    "started": "loading",
    "ready": "ready",
    "draining": "draining",
    "condemned": "down",
    "died": "waiting",
    "stopped": "waiting",
    "gave_up": "down",
}


class Scale(NamedTuple):
    """Seconds since the load began to pixels."""

    begin: float
    end: float

    def x(self, at: float) -> float:
        """Return the place of a moment, kept within the plot."""
        share = (at - self.begin) / max(1e-9, self.end - self.begin)
        return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)


class Note(NamedTuple):
    """A moment with a name."""

    at: float
    name: str


def scale_of(records: Sequence[Record], outcome: Outcome) -> Scale:
    """Make the scale that all plots of a report share: from the first request to the last end."""
    begin = min((record.sent for record in records), default=0.0)
    end = max((record.ended for record in records), default=begin + 1.0)
    ends = [one.recovered for one in outcome.injections if one.recovered is not None]
    return Scale(begin, max([end, *ends]))


def notes_of(lines: Sequence[Line], outcome: Outcome, alias: str) -> list[Note]:
    """Name what happened on the way: injected, detected, respawned, ready, gate."""
    notes: list[Note] = []
    for one in outcome.injections[:1] if len(outcome.injections) < 3 else []:
        if one.injected is None:
            continue
        notes.append(Note(one.injected, "injected"))
        if outcome.detected is not None:
            notes.append(Note(one.injected + outcome.detected, "detected"))
        events = [
            line for line in lines if isinstance(line, Happened) and line.of == one.slot and line.topic == "restart"
        ]
        for what, name in (("started", "respawned"), ("ready", "ready")):
            at = next((event.at for event in events if event.what == what and event.at > one.injected), None)
            if at is not None:
                notes.append(Note(at, name))
        gates = [
            line for line in lines if isinstance(line, GateSeen) and line.alias == alias and line.at > one.injected
        ]
        notes += [Note(line.at, "gate open" if line.open else "gate closed") for line in gates[:4]]
        if one.recovered is not None:
            notes.append(Note(one.recovered, "recovered"))
    return sorted(notes)


def timeline(records: Sequence[Record], outcome: Outcome, notes: Sequence[Note], scale: Scale) -> str:
    """Draw throughput, time to first token, requests in flight and failures, with the fault as a band."""
    width = max(0.05, (scale.end - scale.begin) / BUCKETS)
    count = math.ceil((scale.end - scale.begin) / width) + 1
    tokens, flying, failed = [0.0] * count, [0.0] * count, [0.0] * count

    def at(moment: float) -> int:
        return min(count - 1, max(0, int((moment - scale.begin) / width)))

    for record in records:
        for piece in record.pieces:
            tokens[at(piece.at)] += (len(piece.token_ids) or 1) / width
        ended = record.ended or scale.end
        for bucket in range(at(record.sent), at(ended) + 1):
            begin = scale.begin + bucket * width
            flying[bucket] += max(0.0, min(ended, begin + width) - max(record.sent, begin)) / width
        if record.outcome != "done":
            failed[at(record.ended or scale.end)] += 1
    firsts = [(record.pieces[0].at, record.pieces[0].at - record.sent) for record in records if record.pieces]
    rows = [
        _row(0, "tokens/s", _steps(tokens, width, scale, 0), max(tokens, default=0.0)),
        _row(1, "first token, s", _dots(firsts, scale, 1), max((ttft for _, ttft in firsts), default=0.0)),
        _row(2, "in flight", _steps(flying, width, scale, 2), max(flying, default=0.0), whole=True),
        _row(3, "failed", _steps(failed, width, scale, 3), max(failed, default=0.0), whole=True),
    ]
    labels, deep = _notes(notes, scale, foot := 4 * (HEIGHT + 18))
    return _svg(foot + deep + 40, [_bands(outcome, scale, foot), *rows, labels, _axis(scale, foot + deep + 14)])


def lanes(lines: Sequence[Line], outcome: Outcome, scale: Scale) -> str:
    """Draw what each slot was at, all the time."""
    slots = sorted(
        {line.slot for line in lines if isinstance(line, Registered)}
        | {line.of for line in lines if isinstance(line, Happened) and line.topic == "restart"}
    )
    parts = [_bands(outcome, scale, LANE * len(slots))]
    for row, slot in enumerate(slots):
        events = [
            line
            for line in lines
            if isinstance(line, Happened) and line.topic == "restart" and line.of == slot and line.what in AFTER
        ]
        state, since, generation = "ready", scale.begin, min((event.generation for event in events), default=0)
        y = row * LANE + 3
        parts.append(f'<text x="{LEFT - 6}" y="{y + 12}" class="lane" text-anchor="end">{escape(_brief(slot))}</text>')
        for event in [*sorted(events, key=lambda event: event.at), None]:
            until = event.at if event is not None else scale.end
            x, end = scale.x(since), scale.x(until)
            if end > x:
                title = f"{slot}#{generation} {state}, {until - since:.2f} s"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{end - x:.1f}" height="{LANE - 6}" fill="{COLOURS[state]}">'
                    f"<title>{escape(title)}</title></rect>"
                )
            if event is not None:
                state, since, generation = AFTER[event.what], event.at, event.generation
    height = LANE * len(slots) + 40
    return _svg(height, [*parts, _axis(scale, LANE * len(slots) + 14)])


def stages(outcome: Outcome) -> str:
    """Draw one recovery, stage by stage."""
    if not outcome.recovery:
        return ""
    end = max(stage.end for stage in outcome.recovery) or 1.0
    scale = Scale(0.0, end)
    parts = []
    for row, stage in enumerate(outcome.recovery):
        y = row * LANE + 3
        x, to = scale.x(stage.begin), scale.x(stage.end)
        text = f"{stage.end - stage.begin:.3f} s"
        anchor, place = ("start", to + 5) if to < WIDTH * 0.8 else ("end", x - 5)
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 12}" class="lane" text-anchor="end">{escape(stage.name[:11])}</text>'
        )
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(1.5, to - x):.1f}" height="{LANE - 6}" fill="var(--load)">'
            f"<title>{escape(f'{stage.name} {text} {stage.detail}')}</title></rect>"
            f'<text x="{place:.1f}" y="{y + 12}" text-anchor="{anchor}">{text}</text>'
        )
    height = LANE * len(outcome.recovery)
    return _svg(height + 40, [*parts, _axis(scale, height + 14)])


def _brief(slot: str) -> str:
    """A slot's role and number: the alias is the same in all lanes but the publisher's."""
    role, _, number = slot.rpartition("-")
    return f"{role.rpartition('-')[2]}-{number}"


def _svg(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _row(number: int, name: str, marks: str, most: float, *, whole: bool = False) -> str:
    top = number * (HEIGHT + 18) + 8
    peak = f"{most:.0f}" if whole or most >= 10 else f"{most:.2f}"
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top + HEIGHT}" y2="{top + HEIGHT}" class="axis"/>'
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{peak}</text>'
        f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>'
        f'<text x="{LEFT + 4}" y="{top + 8}" class="name">{escape(name)}</text>{marks}'
    )


def _steps(values: list[float], width: float, scale: Scale, number: int) -> str:
    top, most = number * (HEIGHT + 18) + 8, max([*values, 1e-9])
    points = [f"{LEFT:.1f},{top + HEIGHT}"]
    for bucket, value in enumerate(values):
        y = top + HEIGHT - (HEIGHT - 12) * value / most
        points.append(f"{scale.x(scale.begin + bucket * width):.1f},{y:.1f}")
        points.append(f"{scale.x(scale.begin + (bucket + 1) * width):.1f},{y:.1f}")
    points.append(f"{WIDTH - RIGHT:.1f},{top + HEIGHT}")
    return f'<polyline points="{" ".join(points)}" class="{"failed" if number == 3 else "area"}"/>'


def _dots(found: list[tuple[float, float]], scale: Scale, number: int) -> str:
    top, most = number * (HEIGHT + 18) + 8, max([value for _, value in found] + [1e-9])
    places = [(scale.x(at), top + HEIGHT - (HEIGHT - 12) * value / most) for at, value in found]
    return "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>' for x, y in places)


def _bands(outcome: Outcome, scale: Scale, height: float) -> str:
    bands = []
    for one in outcome.injections:
        if one.injected is not None:
            x, end = scale.x(one.injected), scale.x(one.recovered or scale.end)
            bands.append(
                f'<rect x="{x:.1f}" y="0" width="{max(1.5, end - x):.1f}" height="{height:.0f}" class="band">'
                f"<title>{escape(one.said)}</title></rect>"
            )
    return "".join(bands)


def _notes(notes: Sequence[Note], scale: Scale, foot: float) -> tuple[str, float]:
    """Write the notes below the plots, each in the first row where it has room; return how deep that goes."""
    parts: list[str] = []
    taken: list[float] = []
    for note in notes:
        x, wide = scale.x(note.at), LETTER * len(note.name) + 8
        right = x + wide < WIDTH
        begin = x if right else x - wide
        row = next((row for row, end in enumerate(taken) if end <= begin), len(taken))
        taken[row:] = [begin + wide, *taken[row + 1 :]]
        y = foot + 10 + ROW * row
        place, anchor = (x + 3, "start") if right else (x - 3, "end")
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y:.0f}" class="note"/>'
            f'<text x="{place:.1f}" y="{y:.0f}" text-anchor="{anchor}">{escape(note.name)}</text>'
        )
    return "".join(parts), ROW * len(taken)


def _axis(scale: Scale, y: float) -> str:
    span = scale.end - scale.begin
    step = next((size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300) if span / size <= 12), 600.0)
    places = [number * step for number in range(int(span / step) + 1)]
    ticks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" class="axis"/>'
        f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{at:g} s</text>'
        for at in places
        for x in (scale.x(scale.begin + at),)
    )
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="axis"/>{ticks}'
