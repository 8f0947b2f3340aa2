"""Lays `troupe top` out as rows of text: pure, for any size; state is told by words, colour only helps."""

import time
from typing import Final, Literal, NamedTuple

from messages.gate import Gate
from messages.ids import short
from messages.supervise import SlotStatus, Status
from supervisor.commands import happened
from supervisor.commands.common import span
from supervisor.top.view import Known, Ui, shown, told
from supervisor.traffic import Point

Style = Literal["plain", "bold", "good", "busy", "bad", "dim", "chosen"]

SMALLEST: Final = (40, 8)
EVENTS_LEAST: Final = 6
TALL: Final = 16
"""Lines from which on the chosen slot has two of its own."""
KEYS: Final = "q quit  up/down slot  d drain  r restart  l log  / filter  ? help"
HELP: Final = (
    "q          quit",
    "up, down   choose a slot (also k and j)",
    "d          drain it: it finishes what it has, and stays stopped",
    "r          restart it: it finishes what it has, then starts anew; waiting: at once",
    "l          the end of its log, and back",
    "/          show only what has these letters in it; Escape shows all again",
    "?          this, and back",
    "",
    "d and r ask first. What a supervisor does is in the history: `troupe events`.",
)
STYLES: Final[dict[str, Style]] = {"ready": "good", "standby": "good", "failed": "bad", "killing": "bad"}
BUSY: Final = ("waiting", "starting", "loading", "draining")
BAD: Final = ("died", "gave_up", "condemned", "closed", "held", "lapsed")
GOOD: Final = ("ready", "opened", "whole", "heard", "promoted")


class Span(NamedTuple):
    """Text in one style."""

    text: str
    style: Style = "plain"


Row = list[Span]


def draw(known: Known, ui: Ui, width: int, height: int, now: float, wall: float) -> list[Row]:
    """Lay out the whole screen: `height` rows of at most `width` characters. `now` is monotonic, `wall` the clock."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return [[Span(f"at least {SMALLEST[0]} x {SMALLEST[1]}, please"[:width])]]
    top = [_header(known, now, wall, width)]
    table, chosen_at = _table(known, ui, width)
    details = _details(known, ui, height)
    room = height - len(top) - len(details) - 3
    size = min(len(table), max(room - EVENTS_LEAST, 2))
    begin = max(0, min(chosen_at - size // 2, len(table) - size))
    table = table[begin : begin + size]
    left = room - len(table)
    rows = [*top, _heads(width), *table, *details, _rule(ui, width), *_below(known, ui, left, wall)]
    rows += [[] for _ in range(height - 1 - len(rows))]
    return [_cut(row, width) for row in [*rows[: height - 1], _footer(ui, now)]]


def _header(known: Known, now: float, wall: float, width: int) -> Row:
    clock = time.strftime("%H:%M:%S", time.localtime(wall))
    found = known.status
    if found is None:
        return [Span("troupe  "), Span(known.trouble, "bad")]
    who = f"supervisor {found.supervisor} up {span(found.uptime)}" if found.uptime else "no supervisor answers"
    row = [Span(f"{found.cluster} on {found.host}  ", "bold"), Span(who, "plain" if found.uptime else "bad")]
    counts = _counts(found)
    row.append(Span(f"  {counts}"))
    if known.stale(now):
        why = f"STALE for {span(known.age(now))}" + (f": {known.trouble}" if known.trouble else "")
        return [Span(why, "bad"), Span("  "), *row]
    used = sum(len(part.text) for part in row)
    return [*row, Span(" " * max(2, width - used - len(clock)) + clock, "dim")]


def _counts(found: Status) -> str:
    states = ["silent" if slot.state == "ready" and not slot.live else slot.state for slot in found.slots]
    ready = sum(state in ("ready", "standby") for state in states)
    others = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state not in STYLES)
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    return f"{ready} of {len(states)} slots ready{', ' + others if others else ''}{failed}"


WIDTHS: Final = (18, 7, 4, 4, 8, 5)
HEADS: Final = ("STATE", "FOR", "GEN", "RST", "IN USE", "KV")


def _name_width(width: int) -> int:
    return min(30, max(13, width - 66))


def _heads(width: int) -> Row:
    cells = "".join(f"{head:<{size}}" if at < 2 else f"{head:>{size}}" for at, (head, size) in _numbered(HEADS))
    return [Span(f"  {'SLOT':<{_name_width(width)}} {cells}  LAST REASON", "dim")]


def _numbered(cells: tuple[str, ...]) -> "enumerate[tuple[str, int]]":
    return enumerate(zip(cells, WIDTHS, strict=True))


def _table(known: Known, ui: Ui, width: int) -> tuple[list[Row], int]:
    """The slots under their models; also at which row the chosen one stands."""
    rows: list[Row] = []
    at, model = 0, None
    for slot in shown(known, ui.filter):
        if slot.model != model:
            model = slot.model
            rows.append(_model(known, model))
        if slot.slot == ui.chosen:
            at = len(rows)
        rows.append(_slot(slot, slot.slot == ui.chosen, width))
    return rows, at


def _model(known: Known, model: str) -> Row:
    assert known.status is not None
    gate = next((gate for gate in known.status.gates if gate.model == model), None)
    row = [Span(happened.plain(model) or "of this host", "bold")]
    if gate is not None:
        row += [Span("  gate "), *_gate(gate)]
    if (point := known.points.get(model)) is not None:
        row.append(Span(f"  {_traffic(point)}", "dim"))
    return row


def _gate(gate: Gate) -> Row:
    missing = ", ".join(item.what for item in gate.missing)
    if not gate.open:
        return [Span("CLOSED", "bad"), Span(f": missing {missing}" if missing else "")]
    if gate.degraded:
        return [Span("open, degraded", "busy"), Span(f": missing {missing}" if missing else "")]
    return [Span("open", "good")]


def _traffic(point: Point) -> str:
    ttft = f"  TTFT {_ms(point.ttft_p50)}/{_ms(point.ttft_p99)}" if point.ttft_p50 is not None else ""
    itl = f"  ITL {_ms(point.itl_p50)}/{_ms(point.itl_p99)}" if point.itl_p50 is not None else ""
    queued = f"  {point.queued} queued" if point.queued else ""
    return f"{point.requests:.1f} req/s {point.tokens:.0f} tok/s{ttft}{itl}{queued}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1_000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


def _slot(slot: SlotStatus, chosen: bool, width: int) -> Row:
    state = "ready, silent" if slot.state == "ready" and not slot.live else slot.state
    state = f"{state} {slot.stage}" if slot.stage else state
    cells = (
        state if len(state) < WIDTHS[0] else f"{state[: WIDTHS[0] - 2]}…",
        span(slot.seconds),
        str(slot.generation),
        str(slot.restarts),
        f"{slot.in_flight}/{slot.capacity}" if slot.capacity else str(slot.in_flight),
        f"{100 * slot.kv_used / slot.kv_total:.0f}%" if slot.kv_total else "-",
    )
    laid = [f"{cell:<{size}}" if at < 2 else f"{cell:>{size}}" for at, (cell, size) in _numbered(cells)]
    reason = f"{happened.plain(slot.reason)}{' (planned)' if slot.planned else ''}"
    name, size = _short_name(slot), _name_width(width)
    name = name if len(name) <= size else f"{name[: size - 1]}…"
    if chosen:
        return [Span(f"> {name:<{size}} {''.join(laid)}  {reason}".ljust(width), "chosen")]
    style: Style = "busy" if state != "ready" and slot.state in ("ready", *BUSY) else STYLES.get(slot.state, "plain")
    return [Span(f"  {name:<{size}} "), Span(laid[0], style), Span("".join(laid[1:])), Span(f"  {reason}", "dim")]


def _short_name(slot: SlotStatus) -> str:
    """The slot's name without the alias of its model, which stands above it."""
    alias, mark, rest = slot.slot.rpartition(f"-{slot.role}-")
    return f"{slot.role}-{rest}" if alias and mark else slot.slot


def _details(known: Known, ui: Ui, height: int) -> list[Row]:
    """What the chosen slot's row has no room for: its last reason whole, and how it came back."""
    rows: list[Row] = [[], []] if height >= TALL else [[]]
    slot = next((slot for slot in shown(known, ui.filter) if slot.slot == ui.chosen), None)
    if slot is None:
        return rows
    reason = f"  {happened.plain(slot.reason)}" if slot.reason else ""
    rows[0] = [Span(f"{short(slot.slot, slot.generation)}{reason}", "bold")]
    if slot.recovery:
        total, stages = sum(slot.recovery.values()), happened.stages(slot.recovery)
        rows[-1] = [Span(f"back {span(slot.recovered)} ago in {total:.2f} s: {stages}", "bold")]
    return rows


def _rule(ui: Ui, width: int) -> Row:
    title = {"events": "what happened", "log": f"log of {ui.chosen}", "help": "keys"}[ui.below]
    title += f", only with {ui.filter!r}" if ui.filter else ""
    return [Span(f"-- {title} ".ljust(width, "-"), "dim")]


def _below(known: Known, ui: Ui, room: int, wall: float) -> list[Row]:
    if ui.below == "help":
        return [[Span(line)] for line in HELP[:room]]
    if ui.below == "log":
        return [[Span(happened.plain(line))] for line in known.log[-room:]] if room > 0 else []
    rows: list[Row] = []
    for event in told(known, ui.filter)[: max(room, 0)]:
        style: Style = "bad" if event.what in BAD else "good" if event.what in GOOD else "plain"
        stamp = happened.when(event.at, wall)[:-4]
        rows.append([Span(f"{stamp}  ", "dim"), Span(f"{happened.whom(event)}  "), Span(happened.what(event), style)])
    return rows or [[Span("nothing yet" if not ui.filter else "nothing that passes the filter", "dim")]]


def _footer(ui: Ui, now: float) -> Row:
    if ui.typing is not None:
        return [Span(f"show only what has: {ui.typing}_", "bold")]
    if ui.asked is not None:
        then = "stays stopped" if ui.asked.what == "drain" else "starts anew"
        return [Span(f"y/n  {ui.asked.what} {ui.asked.slot}? It finishes what it has, then {then}.", "bad")]
    if ui.message and now < ui.message_until:
        return [Span(happened.plain(ui.message), "bold")]
    return [Span(KEYS, "dim")]


def _cut(row: Row, width: int) -> Row:
    """Cut a row off where the screen ends, and say that it goes on."""
    left, found = width, []
    for at, part in enumerate(row):
        text = part.text
        more = any(later.text.strip() for later in row[at + 1 :])
        if len(text) > left or (len(text) == left and more):
            if text.rstrip() != text[:left].rstrip() or more:
                text = f"{text[: max(0, left - 1)]}…"
            found.append(Span(text[:left], part.style))
            break
        found.append(part)
        left -= len(text)
    return found
