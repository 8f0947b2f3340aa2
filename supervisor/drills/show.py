"""What a drill looks like in the terminal: a line a second while it runs, a table when it is over."""

import asyncio
import sys
import time
from collections.abc import Sequence
from statistics import median

from supervisor.commands.common import say, table
from supervisor.drills.figures import Latency
from supervisor.drills.load import Load
from supervisor.drills.outcome import Outcome

PERIOD_TTY = 0.5
PERIOD_PIPE = 5.0


class Progress:
    """Tells how far a drill is: in place on a terminal, every few seconds elsewhere."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = time.monotonic()
        self._tty = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Tell something that happened."""
        if self._tty:
            sys.stdout.write("\r\x1b[K")
        say(f"{time.monotonic() - self._began:7.2f} s  {text}")

    async def watch(self, load: Load) -> None:
        """Go on telling how the load is; run it as a task, and cancel it."""
        while True:
            await asyncio.sleep(PERIOD_TTY if self._tty else PERIOD_PIPE)
            of = f" of {load.wanted}" if load.wanted else ""
            text = (
                f"{self._title}: {load.finished}{of} ended, {load.in_flight} in flight, {load.failed} failed, "
                f"{load.moved} went on elsewhere, longest silence {load.gap:.2f} s"
            )
            if self._tty:
                sys.stdout.write(f"\r\x1b[K{time.monotonic() - self._began:7.2f} s  {text}")
                sys.stdout.flush()
            else:
                self.say(text)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Lay out all runs, with the columns in which others publish theirs."""
    heads = [
        "DRILL",
        "RESULT",
        "STARTUP",
        "SUCCESS",
        "FAILED",
        "MOVED",
        "TTFT p50 before/after",
        "ITL p50 before/after",
    ]
    rows = [[*heads, "SILENCE", "NOTICED", "RECOVERED"]]
    for one in outcomes:
        if one.result == "impossible":
            rows.append([one.drill, "not here", *["-"] * 9])
            continue
        before, after = _phase(one, "before"), _phase(one, "after")
        rows.append(
            [
                one.drill,
                one.result,
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
        )
    return "\n".join([table(rows), *_medians(outcomes)])


def _medians(outcomes: Sequence[Outcome]) -> list[str]:
    """Say of each drill that was played several times how its recoveries lie."""
    lines = []
    for name in dict.fromkeys(one.drill for one in outcomes):
        found = sorted(one.recovered for one in outcomes if one.drill == name and one.recovered is not None)
        if len(found) > 1:
            spread = f"{found[0]:.2f} to {found[-1]:.2f} s"
            lines.append(f"{name}: recovered after {median(found):.2f} s (median of {len(found)}; {spread})")
    return lines


def details(one: Outcome) -> str:
    """Say of one run what was asked and what came, rule by rule."""
    lines = [f"\n{one.drill}: {one.result}{f' ({one.why})' if one.why else ''}"]
    if one.result == "impossible":
        return "\n".join(lines)
    lines += [f"  {_tick(met.met)} {met.name}: {met.found} ({met.asked})" for met in one.objectives]
    for verdict in one.verdicts:
        mark = {"kept": "ok  ", "broken": "FAIL", "skipped": "skip"}[verdict.state]
        told = f" ({verdict.looked_at} looked at)" if verdict.looked_at else f" ({verdict.why})" if verdict.why else ""
        lines.append(f"  {mark} {verdict.rule} {verdict.title}{told}")
        lines += [f"         {wrong}" for wrong in verdict.broken[:5]]
        if len(verdict.broken) > 5:
            lines.append(f"         and {len(verdict.broken) - 5} more")
    if one.recovery:
        stages = ", ".join(f"{stage.name} {stage.end - stage.begin:.2f}" for stage in one.recovery)
        lines.append(f"  recovery in seconds: {stages}")
    failed = "".join(f", {count} {what}" for what, count in one.ledger.failed.items())
    unknown = f", {one.ledger.unknown} unknown" if one.ledger.unknown else ""
    lines.append(
        f"  {one.ledger.sent} requests: {one.ledger.ok} ok{failed}{unknown}; {one.ledger.moved} went on elsewhere"
    )
    lines += [
        f"  perhaps poison: request {each.request} ({each.client}) was at {len(each.deaths)} deaths, "
        f"{', '.join(each.deaths)}; it was not tried again"
        for each in one.poisoned
    ]
    return "\n".join(lines)


def seconds(value: float | None) -> str:
    """Write seconds, or a dash for none."""
    return "-" if value is None else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def ms(value: float | None) -> str:
    """Write milliseconds, or a dash for none."""
    return "-" if value is None else f"{1_000 * value:.0f} ms" if value >= 0.01 else f"{1_000 * value:.1f} ms"


def _phase(one: Outcome, name: str) -> Latency | None:
    return next((latency for latency in one.latency if latency.phase == name), None)


def _tick(met: bool | None) -> str:
    return {True: "ok  ", False: "FAIL", None: "?   "}[met]
