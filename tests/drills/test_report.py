"""Figures, verdict and page of a history: everything accounted for, nothing loaded from elsewhere."""

import re
from pathlib import Path
from xml.dom import minidom

from supervisor.drills import figures, outcome, page
from supervisor.drills.figures import Injection
from supervisor.drills.history import Line, Moved, Registered
from supervisor.drills.outcome import Outcome
from supervisor.drills.plan import Objectives
from tests.drills.test_checker import SLOT, good, record

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
    outcome.judge(one, lines, wanted, "demo")
    return one


def test_a_good_history_passes_with_its_figures() -> None:
    one = played(good())
    assert (one.result, one.ok, one.why) == ("passed", True, "")
    assert (one.ledger.sent, one.ledger.ok, one.ledger.bad) == (3, 3, 0)
    assert one.detected is not None
    assert round(one.detected, 3) == 0.05
    assert one.recovered == 2.5
    assert {latency.phase: latency.requests for latency in one.latency} == {"before": 1, "during": 1, "after": 1}
    assert [stage.name for stage in one.recovery] == ["detect", "spawn", "process", "gate"]
    assert round(sum(stage.end - stage.begin for stage in one.recovery), 2) == 2.05


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
    outcome.judge(one, lines, WANTED, "demo")
    assert (one.result, one.ok) == ("missed", False)
    assert "missed: it is as alive" in one.why


def test_the_page_stands_alone_and_has_every_request(tmp_path: Path) -> None:
    lines = good()
    lines.append(Registered(at=0.1, slot="demo-<odd>-0", generation=1, state="ready"))
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
