"""The report of a drill as one self-contained HTML page: nothing in it is loaded from elsewhere."""

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from messages import codec
from supervisor.drills import figures, plot
from supervisor.drills.history import Head, Line
from supervisor.drills.outcome import Outcome
from supervisor.drills.records import Record
from supervisor.drills.show import ms, seconds

EARLIER: Final = 20
"""How many earlier runs of a drill its report lists."""

STYLE: Final = """
:root{--ink:#1c2330;--soft:#5d6878;--line:#d9dee6;--paper:#fff;--ready:#7cc48d;--load:#6aa5e3;--wait:#e6b24c;
--drain:#b59be0;--bad:#d9534f;--area:#9db8d9;--band:#d9534f22}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a3b3;--line:#39414e;--paper:#161a21;--area:#41638f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1060px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.4rem 0}small,.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{text-align:left;padding:.25rem .6rem;
border-bottom:1px solid var(--line);vertical-align:top}th{font-weight:600;color:var(--soft)}.wide{overflow-x:auto}
.badge{display:inline-block;padding:.1rem .6rem;border-radius:1rem;color:#fff;background:var(--bad);font-size:.9rem}
.badge.passed{background:#2f8f4e}.badge.impossible{background:var(--soft)}.yes{color:#2f8f4e}
.no{color:var(--bad);font-weight:600}pre{background:#8881;padding:.6rem;overflow-x:auto;border-radius:.3rem}
svg{width:100%;height:auto;font:10px system-ui,sans-serif}
svg text{fill:var(--soft)}svg .name{font-weight:600}.axis{stroke:var(--line)}.area{fill:var(--area)}
.failed{fill:var(--bad)}circle{fill:var(--load)}.band{fill:var(--band)}.note{stroke:var(--bad);stroke-dasharray:2 2}
.key span{margin-right:1rem}.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;vertical-align:-1px}
details{margin:.5rem 0}
"""


def write(folder: Path, outcome: Outcome, lines: Sequence[Line]) -> None:
    """Write `report.html`, and add the run to `runs.jsonl` of the folder above."""
    runs = folder.parent / "runs.jsonl"
    earlier = [one for one in _runs(runs) if one.drill == outcome.drill and one.run != outcome.run]
    (folder / "report.html").write_text(as_html(outcome, lines, earlier[-EARLIER:]), encoding="utf-8")
    with runs.open("ab") as file:
        file.write(codec.to_json(outcome) + b"\n")


def write_index(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `index.html`: all drills that were played together, side by side."""
    rows = [_row(one, f"{one.run}/report.html") for one in outcomes]
    body = f"<h1>Drills</h1><p class=soft>{_when(outcomes[0].started)}</p>{_summary(rows)}"
    (folder / "index.html").write_text(_page("Drills", body), encoding="utf-8")


def _runs(path: Path) -> list[Outcome]:
    """Read the earlier runs; a line that an older version wrote otherwise is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(codec.from_json(line, Outcome))
        except msgspec.DecodeError:
            continue
    return found


def as_html(one: Outcome, lines: Sequence[Line], earlier: Sequence[Outcome]) -> str:
    """Make the page."""
    records = figures.asked(lines)
    alias = next((line.alias for line in lines if isinstance(line, Head)), "")
    body = [
        f'<h1>Drill <code>{escape(one.drill)}</code> <span class="badge {one.result}">{one.result}</span></h1>',
        f"<p>{escape(one.what)}. Expected, before it ran: {escape(one.hypothesis)}.</p>",
        f"<p class=no>{escape(one.why)}</p>" if one.why and not one.ok else f"<p>{escape(one.why)}</p>",
        f"<p class=soft>{_when(one.started)} · took {one.seconds:.0f} s · run {escape(one.run)} · seed {one.seed}</p>",
        f"<p>To repeat it:</p><pre>{escape(one.command)}</pre>",
    ]
    if one.result != "impossible":
        body += [
            "<h2>In one line</h2>",
            _summary([_row(one)]),
            "<h2>Objectives and rules</h2>",
            _verdicts(one),
            "<h2>The fault, and the proof of it</h2>",
            _injections(one),
        ]
    if records:
        scale = plot.scale_of(records, one)
        body += [
            "<h2>Over time</h2><p class=soft>The band is the time from the injection until all was well again. "
            "Each dot is a request's first token.</p>",
            plot.timeline(records, one, plot.notes_of(lines, one, alias), scale),
            "<h2>Slots</h2>",
            _key(),
            plot.lanes(lines, one, scale),
        ]
        if one.recovery:
            body += ["<h2>The stages of recovery</h2>", plot.stages(one)]
        body += ["<h2>Latency</h2>", _latency(one), "<h2>Ledger</h2>", _ledger(one, records)]
    body += ["<h2>Conditions</h2>", _table(["what", "value"], ([name, text] for name, text in one.facts.items()))]
    if earlier:
        body += ["<h2>Earlier runs</h2>", _summary([_row(other) for other in earlier])]
    return _page(f"Drill {one.drill}: {one.result}", "\n".join(body))


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style>{body}</html>\n'
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    return f"<div class=wide><table><tr>{head}{body}</table></div>"


def _row(one: Outcome, link: str = "") -> list[str]:
    phases = {latency.phase: latency for latency in one.latency}
    before, after = phases.get("before"), phases.get("after")
    name = escape(one.drill)
    return [
        f'<a href="{escape(link)}">{name}</a>' if link else name,
        _when(one.started),
        f'<span class="badge {one.result}">{one.result}</span>',
        seconds(one.startup),
        str(one.ledger.ok),
        str(one.ledger.bad),
        str(one.ledger.moved),
        f"{ms(before.ttft_p50 if before else None)} / {ms(after.ttft_p50 if after else None)}",
        f"{ms(before.itl_p50 if before else None)} / {ms(after.itl_p50 if after else None)}",
        seconds(one.gap),
        seconds(one.detected),
        seconds(one.recovered),
    ]


def _summary(rows: list[list[str]]) -> str:
    heads = [
        "drill",
        "when",
        "result",
        "startup",
        "success",
        "failed",
        "went on elsewhere",
        "first token p50 before / after",
    ]
    return _table([*heads, "between tokens p50 before / after", "longest silence", "noticed", "recovered"], rows)


def _verdicts(one: Outcome) -> str:
    rows = [[_word(met.met), escape(met.name), escape(met.asked), escape(met.found)] for met in one.objectives]
    for verdict in one.verdicts:
        found = f"{verdict.looked_at} looked at" if verdict.looked_at else escape(verdict.why)
        if verdict.broken:
            listed = "".join(f"<li>{escape(wrong)}" for wrong in verdict.broken[:100])
            found += f"<details><summary>{len(verdict.broken)} times</summary><ul>{listed}</ul></details>"
        met = {"kept": True, "broken": False, "skipped": None}[verdict.state]
        rows.append([_word(met), verdict.rule, escape(verdict.title), found])
    return _table(["", "objective or rule", "asked", "found"], rows)


def _word(met: bool | None) -> str:
    return {
        True: "<span class=yes>yes</span>",
        False: "<span class=no>no</span>",
        None: "<small>not looked at</small>",
    }[met]


def _injections(one: Outcome) -> str:
    rows = []
    for injection in one.injections:
        took = ""
        if injection.injected is not None and injection.recovered is not None:
            took = seconds(injection.recovered - injection.injected)
        proof = f"<span class=no>{escape(injection.missed)}</span>" if injection.missed else escape(injection.proof)
        trouble = f"<span class=no>{escape(injection.trouble)}</span>" if injection.trouble else took
        rows.append([escape(injection.said), proof, escape(injection.healing), trouble])
    return _table(["injected", "proof that it happened", "taken back", "recovered after"], rows)


def _key() -> str:
    listed = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in plot.COLOURS.items())
    return f"<p class=key>{listed}</p>"


def _latency(one: Outcome) -> str:
    heads = [
        "phase",
        "requests",
        "first token p50",
        "p99",
        "between tokens p50",
        "p99",
        "whole request p50",
        "p99",
        "tokens/s",
    ]
    rows = [
        [
            latency.phase,
            str(latency.requests),
            ms(latency.ttft_p50),
            ms(latency.ttft_p99),
            ms(latency.itl_p50),
            ms(latency.itl_p99),
            ms(latency.request_p50),
            ms(latency.request_p99),
            f"{latency.tokens_per_second:.0f}" if latency.tokens_per_second is not None else "-",
        ]
        for latency in one.latency
    ]
    return _table(heads, rows)


def _ledger(one: Outcome, records: Sequence[Record]) -> str:
    led = one.ledger
    rows = [["sent", str(led.sent)], ["ok", str(led.ok)]]
    rows += [[f"failed: {escape(what)}", str(count)] for what, count in led.failed.items()]
    rows += [["unknown (no end was seen)", str(led.unknown)], ["of these late", str(led.late)]]
    rows += [["of these went on elsewhere", str(led.moved)]]
    rows += [["of these were refused first, and came again", str(led.retried)]]
    if one.error_window:
        rows.append(["from the first failure to the last", seconds(one.error_window)])
    suspects = _table(
        ["perhaps poison, so not tried again", "client", "was at the end of"],
        (
            [f"<code>{escape(bad.request)}</code>", escape(bad.client), "<br>".join(map(escape, bad.deaths))]
            for bad in one.poisoned
        ),
    )
    each = _table(
        ["request", "client", "outcome", "attempts", "tokens", "sent at", "took", "longest silence"],
        (
            [
                f"<code>{escape(record.id)}</code>",
                escape(record.client),
                escape(f"{record.outcome} {record.code or ''} {record.message}".strip()),
                str(record.attempts) if record.door == "nats" else "-",
                str(len(record.token_ids) or len(record.pieces)),
                f"{record.sent - records[0].sent:.2f} s",
                f"{record.ended - record.sent:.2f} s" if record.ended else "-",
                f"{record.gap:.2f} s" if record.ended else "-",
            ]
            for record in sorted(records, key=lambda record: record.sent)
        ),
    )
    told = f"{_table(['requests', ''], rows)}{suspects if one.poisoned else ''}"
    return f"{told}<details><summary>every one of them</summary>{each}</details>"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
