"""Who may come in: requests held while the gate is closed or nobody is ready, first in, first out, up to a bound."""

from typing import Any, Protocol

from actors.processor.refusal import RefusalError
from actors.processor.view import View
from messages.config import Limits
from messages.ids import Role


class Held(Protocol):
    """A request that can be held."""

    id: str


class Placer(Protocol):
    """Who gives requests to actors: a dispatcher, or an embedder."""

    waiting: dict[str, Any]

    def place(self, job: Any) -> None:
        """Give a request to actors, or let it wait."""

    def place_now(self, job: Any) -> bool:
        """Give a request to actors that can take it now, and say whether there are any."""


class Line:
    """The requests that no actor has been told of yet, as a queue before the dispatcher's own line of the waiting."""

    def __init__(self, view: View, dispatcher: Placer, limits: Limits, role: Role = "decode") -> None:
        self._view = view
        self._dispatcher = dispatcher
        self._limits = limits
        self._role = role
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held) + len(self._dispatcher.waiting)

    def admit(self, job: Held) -> None:
        """Give a new job to the actors, or hold it; over the bound raise RefusalError, with the time to come again."""
        open_now = self._view.open and not self._held
        if open_now and self._dispatcher.place_now(job):
            return
        if len(self) >= self._limits.queued:
            raise self._over_bound()
        if open_now:
            self._dispatcher.waiting[job.id] = job
        else:
            self._held[job.id] = job

    def gate_changed(self) -> None:
        """Let in all that is held, in the order in which it came, if the gate is open."""
        if self._view.open:
            held, self._held = self._held, {}
            for job in held.values():
                self._dispatcher.place(job)

    def over(self, job: Held) -> None:
        """A job has ended, perhaps while it was held."""
        self._held.pop(job.id, None)

    def _over_bound(self) -> RefusalError:
        count, again = len(self), self._limits.retry_after
        full = (
            f"{count} requests wait already, and no more than {self._limits.queued} may" if count else "none may wait"
        )
        if not self._view.open:
            missing = self._view.gate.missing if self._view.gate is not None else []
            why = "; ".join(f"{entry.what}: {entry.why}" for entry in missing[:3]) or "the model is not ready"
            return RefusalError(503, f"the gate is closed ({why}); {full}", retry_after=again)
        if not self._view.has_role(self._role):
            return RefusalError(503, f"nobody is ready to take it; {full}", retry_after=again)
        return RefusalError(429, f"all actors are full; {full}", retry_after=again)
