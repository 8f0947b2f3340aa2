"""Figures, verdict and page of a history: everything accounted for, nothing loaded from elsewhere."""

import re
from pathlib import Path
from xml.dom import minidom

from messages import poison
from supervisor.drills import figures, outcome, page, show
from supervisor.drills.figures import Injection
from supervisor.drills.history import Happened, Line, Moved, Registered
from supervisor.drills.outcome import Outcome
from supervisor.drills.plan import Objectives
from tests.drills.test_checker import SLOT, good, record, restart

WANTED = Objectives(failed=0, gap=4, detect=1, recovery=3)


def played(lines: list[Line], wanted: Objectives = WANTED) -> Outcome:
    """The outcome of a drill that killed a decode actor, with these lines as its history."""
    from supervisor.drills import checker

    strike = Injection(
        fault="kill",
        slot=SLOT,
        said=f"kill {SLOT}#1",
        generation=1,
        injected=10.0,
        recovered=12.5,
        proof="pid 7 is gone",
    )
    one = Outcome(
        run="r",
        drill="kill",
        what="<kill> & see",
        hypothesis="all is well",
        command="troupe drill kill --config 'a b.yaml'",
        seed=3,
        started=0.0,
        facts={"model": "demo"},
        injections=[strike],
    )
    one.verdicts = checker.check(lines)
    outcome.judge(one, lines, wanted)
    return one


def test_a_good_history_passes_with_its_figures() -> None:
    one = played(good())
    assert (one.result, one.ok, one.why) == ("passed", True, "")
    assert (one.ledger.sent, one.ledger.ok, one.ledger.bad) == (3, 3, 0)
    assert one.detected is not None
    assert round(one.detected, 3) == 0.05
    assert one.recovered == 2.5
    assert {latency.phase: latency.requests for latency in one.latency} == {"before": 1, "during": 1, "after": 1}


def readied(lines: list[Line]) -> Happened:
    """The event of the next life's ready."""
    return next(line for line in lines if isinstance(line, Happened) and line.what == "ready")


def laid_out(one: Outcome) -> list[tuple[str, float, float]]:
    """The stages of its recovery: name, begin, end."""
    return [(stage.name, round(stage.begin, 3), round(stage.end, 3)) for stage in one.recovery]


def test_the_stages_of_a_recovery_are_those_that_the_event_tells() -> None:
    lines = good()
    stages = {"detect": 0.05, "clean": 0.0, "spawn": 0.25, "load": 1.6, "warm_up": 0.1}
    readied(lines).detail = {"recovery": stages, "died": 1, "attempts": 1, "outage": 2.0}
    assert laid_out(played(lines)) == [
        ("detect", 0.0, 0.05),
        ("spawn", 0.05, 0.3),
        ("load", 0.3, 1.9),
        ("warm-up", 1.9, 2.0),
    ]


def test_the_stages_count_from_the_injection_though_the_last_sign_of_life_was_before_it() -> None:
    lines = good()
    readied(lines).detail = {"recovery": {"detect": 1.0, "load": 1.4}, "died": 1, "attempts": 1, "outage": 2.4}
    assert laid_out(played(lines)) == [("detect", 0.0, 0.6), ("load", 0.6, 2.0)]


def test_of_several_deaths_in_a_row_the_stages_are_the_last_ones_and_the_others_are_said() -> None:
    lines = good()
    readied(lines).detail = {"recovery": {"detect": 0.1, "load": 0.4}, "died": 3, "attempts": 3, "outage": 2.0}
    one = played(lines)
    assert laid_out(one) == [("earlier", 0.0, 1.5), ("detect", 1.5, 1.6), ("load", 1.6, 2.0)]
    assert one.recovery[0].detail == "2 more deaths before this"


def test_a_planned_end_is_a_drain_and_a_start() -> None:
    lines = [line for line in good() if not (isinstance(line, Happened) and line.what == "died")]
    lines.append(restart(10.75, "stopped", 1, planned=True))
    assert laid_out(played(lines)) == [("drain", 0.0, 0.75), ("start", 0.75, 2.0)]


def test_a_request_that_two_actors_have_failed_on_is_named_with_their_deaths(tmp_path: Path) -> None:
    lines = good()
    during = record(lines, "during")
    told = poison.as_message([f"{SLOT}#1 died", "demo-prefill-0#4 gave it up: <why>"])
    during.outcome, during.code, during.message, during.client = "error", 500, told, "client-1-nats"
    record(lines, "after").outcome = "error"
    lines[lines.index(next(line for line in lines if isinstance(line, Happened) and line.what == "died"))] = Happened(
        at=10.05, topic="restart", of=SLOT, what="died", generation=1, reason="killed by <SIGKILL>"
    )
    one = played(lines)
    [found] = one.poisoned
    assert (found.request, found.client, found.code) == ("during", "client-1-nats", 500)
    assert found.deaths == [f"{SLOT}#1 (killed by <SIGKILL>)", "demo-prefill-0#4 (no event tells of its death)"]
    assert "request during (client-1-nats) was at 2 deaths, demo-decode-0#1 (killed by <SIGKILL>)" in show.details(one)
    (tmp_path / "r").mkdir()
    page.write(tmp_path / "r", one, lines)
    text = (tmp_path / "r" / "report.html").read_text()
    assert "demo-decode-0#1 (killed by &lt;SIGKILL&gt;)<br>demo-prefill-0#4" in text


def test_every_request_is_accounted_for_by_its_end() -> None:
    lines = good()
    before, during, after = (record(lines, id) for id in ("before", "during", "after"))
    before.outcome, before.code = "error", 503
    during.outcome = "open"
    after.retried = 2
    lines.append(Moved(at=11.0, request="after", attempt=2, slot=SLOT))
    one = played(lines)
    assert one.ledger.failed == {"error 503": 1}
    assert (one.ledger.sent, one.ledger.ok, one.ledger.unknown) == (3, 1, 1)
    assert (one.ledger.moved, one.ledger.retried, one.ledger.bad) == (1, 1, 2)
    assert one.result == "failed"
    assert "rule I1 is broken" in one.why
    assert "failed requests not met" in one.why


def test_objectives_that_are_not_met_fail_it() -> None:
    one = played(good(), Objectives(gap=0.01, detect=0.01, recovery=1, moved=1))
    assert one.result == "failed"
    assert [met.name for met in one.objectives if not met.met] == [
        "longest silence",
        "noticed",
        "recovered",
        "went on elsewhere",
    ]


def test_a_fault_that_missed_is_said_before_anything_else() -> None:
    lines = good()
    one = played(lines)
    one.injections[0].missed = "it is as alive as before"
    outcome.judge(one, lines, WANTED)
    assert (one.result, one.ok) == ("missed", False)
    assert "missed: it is as alive" in one.why


def test_the_page_stands_alone_and_has_every_request(tmp_path: Path) -> None:
    lines = good()
    lines.append(Registered(at=0.1, slot="demo-<odd>-0", generation=1, state="ready"))
    readied(lines).detail = {"recovery": {"detect": 0.05, "load": 1.95}, "died": 1, "attempts": 1, "outage": 2.0}
    (tmp_path / "r").mkdir()
    one = played(lines)
    page.write(tmp_path / "r", one, lines)
    page.write(tmp_path / "r", one, lines)
    text = (tmp_path / "r" / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=|url\(|@import|<script|https?://", text)
    assert "&lt;kill&gt; &amp; see" in text
    assert "troupe drill kill --config &#x27;a b.yaml&#x27;" in text
    assert "pid 7 is gone" in text
    assert all(f"<code>{figures.asked(lines)[n].id}</code>" in text for n in range(3))
    plots = [minidom.parseString(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]
    assert len(plots) == 3
    noted = {node.firstChild.nodeValue for node in plots[0].getElementsByTagName("text") if node.firstChild}
    assert {"injected", "detected", "respawned", "ready", "gate open", "recovered"} <= noted


def test_earlier_runs_are_listed_and_the_index_leads_to_each(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "s").mkdir()
    earlier, one = played(good()), played(good())
    one.run = "s"
    page.write(tmp_path / "r", earlier, good())
    page.write(tmp_path / "s", one, good())
    assert "Earlier runs" not in (tmp_path / "r" / "report.html").read_text()
    assert "Earlier runs" in (tmp_path / "s" / "report.html").read_text()
    page.write_index(tmp_path, [earlier, one])
    assert re.findall(r'href="([^"]+)"', (tmp_path / "index.html").read_text()) == ["r/report.html", "s/report.html"]
