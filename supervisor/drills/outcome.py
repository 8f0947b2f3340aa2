"""The result of one drill as data: what was asked of it beforehand, what came, and the verdict on each."""

import math
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field

from supervisor.drills import figures
from supervisor.drills.checker import Verdict
from supervisor.drills.figures import Injection, Latency, Ledger, Poisoned, Stretch
from supervisor.drills.history import Line, Moved
from supervisor.drills.plan import Objectives


class Met(Struct, kw_only=True):
    """One objective: what was asked, what was found, whether that meets it; None where it could not be told."""

    name: str
    asked: str
    found: str
    met: bool | None


class Outcome(Struct, kw_only=True):
    """One run of one drill; `result` is impossible where the fault cannot be had on this cluster; `why` tells more."""

    run: str
    drill: str
    what: str
    hypothesis: str
    command: str
    seed: int
    started: float
    facts: dict[str, str]
    result: Literal["passed", "failed", "missed", "impossible", "interrupted"] = "failed"
    why: str = ""
    startup: float | None = None
    seconds: float = 0.0
    injections: list[Injection] = []
    detected: float | None = None
    recovered: float | None = None
    error_window: float | None = None
    gap: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    latency: list[Latency] = []
    recovery: list[Stretch] = []
    objectives: list[Met] = []
    verdicts: list[Verdict] = []
    folder: str = ""
    poisoned: list[Poisoned] = []

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against it."""
        return self.result in ("passed", "impossible")


def judge(outcome: Outcome, lines: Sequence[Line], asked: Objectives) -> None:
    """Fill in the figures, compare them with what was asked, and come to a result."""
    records = figures.asked(lines)
    struck = [injection for injection in outcome.injections if injection.injected is not None]
    begin = min((one.injected for one in struck if one.injected is not None), default=math.inf)
    end = max((one.recovered or math.inf for one in struck), default=math.inf)
    outcome.ledger = figures.ledger(records, {line.request for line in lines if isinstance(line, Moved)})
    outcome.poisoned = figures.poisoned(records, lines)
    outcome.latency = figures.latencies(records, begin, end)
    outcome.gap = figures.longest_gap(records)
    times = [found for one in struck if (found := figures.detected(lines, one)) is not None]
    outcome.detected = max(times) if times else None
    spans = [one.recovered - one.injected for one in struck if one.recovered and one.injected]
    outcome.recovered = max(spans) if spans and len(spans) == len(struck) else None
    slowest = max(struck, key=lambda one: (one.recovered or math.inf) - (one.injected or 0.0), default=None)
    outcome.recovery = figures.recovery(lines, slowest) if slowest is not None else []
    bad = [record.ended for record in records if record.outcome not in ("done", "open")]
    outcome.error_window = max(bad) - min(bad) if bad else 0.0
    outcome.objectives = _met(outcome, asked)
    missed = [one.missed for one in outcome.injections if one.missed]
    trouble = [one.trouble for one in outcome.injections if one.trouble]
    broken = [verdict.rule for verdict in outcome.verdicts if verdict.state == "broken"]
    unmet = [met.name for met in outcome.objectives if met.met is not True]
    if missed:
        outcome.result, outcome.why = "missed", f"the fault missed: {missed[0]}"
    elif outcome.result == "interrupted" or outcome.why:
        return
    elif broken or unmet or trouble:
        outcome.result = "failed"
        outcome.why = "; ".join(
            [*trouble, *(f"rule {rule} is broken" for rule in broken), *(f"{name} not met" for name in unmet)]
        )
    else:
        outcome.result = "passed"


def _met(outcome: Outcome, asked: Objectives) -> list[Met]:
    found = [
        Met(
            name="failed requests",
            asked=f"{asked.failed} at most",
            found=str(outcome.ledger.bad),
            met=outcome.ledger.bad <= asked.failed,
        )
    ]
    for name, limit, value in (
        ("longest silence", asked.gap, outcome.gap),
        ("noticed", asked.detect, outcome.detected),
        ("recovered", asked.recovery, outcome.recovered),
    ):
        if limit is not None:
            told = f"{value:.2f} s" if value is not None else "never"
            met = value is not None and value <= limit
            found.append(Met(name=name, asked=f"within {limit:g} s", found=told, met=met))
    if asked.moved:
        moved = outcome.ledger.moved
        told = f"{asked.moved} at least"
        found.append(Met(name="went on elsewhere", asked=told, found=str(moved), met=moved >= asked.moved))
    return found
