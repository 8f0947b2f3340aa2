"""Traffic as the page shows it: what the last seconds brought, and fifteen minutes of it step by step."""

from typing import Any, Final

import msgspec

from supervisor.traffic import STEP, Ledger, Point

PLACES: Final = 5
"""Digits that a plot can show."""


class Plots:
    """The points of all models, of which each is told once; `ledger` is the supervisor's own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told: dict[str, float] = {}
        self._due = 0.0

    def now(self, now: float) -> dict[str, dict[str, Any]]:
        """What the last seconds brought, by model."""
        return {model: _shown(self._ledger.now(model, now), "at") for model in self._ledger.models}

    def all(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """Every step of the last fifteen minutes, by model."""
        return {model: [_shown(point) for point in self._ledger.series(model, now)] for model in self._ledger.models}

    def more(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """The steps that have been over since the last call, by model."""
        if now < self._due:
            return {}
        self._due = now - now % STEP + STEP + 0.1
        found = {}
        for model in self._ledger.models:
            points = self._ledger.series(model, now, since=self._told.get(model, now - 3 * STEP))
            if points:
                self._told[model] = points[-1].at + STEP
                found[model] = [_shown(point) for point in points]
        return found


def _shown(point: Point, *without: str) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(point)
    return {
        name: round(value, PLACES) if isinstance(value, float) and name != "at" else value
        for name, value in told.items()
        if name not in without
    }
