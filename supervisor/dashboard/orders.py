"""What buttons ask of one slot; each is told in the event history, done or refused, with who asked."""

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from messages.supervise import Said
from supervisor.acts import What
from supervisor.dashboard.refusal import RefusalError
from supervisor.dashboard.server import Server
from supervisor.desk import Desk

ORDERS: Final[dict[str, What]] = {"drain": "drain", "restart": "restart", "restart-now": "now", "take-out": "out"}

Tell = Callable[[str, str, dict[str, Any]], None]


class Orders:
    """Hands orders to the desk; `tell` puts into the history what was asked of a slot: slot, reason, detail."""

    def __init__(self, desk: Desk, tell: Tell) -> None:
        self._desk = desk
        self._tell = tell

    async def order(self, request: web.Request) -> web.StreamResponse:
        """Carry out an order for a slot; 409 where it makes no sense now. Raises RefusalError."""
        slot, order = request.match_info["slot"], request.match_info["order"]
        what = ORDERS.get(order)
        if what is None:
            raise RefusalError(404, f"there is no order {order[:80]!r}; there are {', '.join(ORDERS)}")
        if not self._desk.knows(slot):
            raise RefusalError(404, f"there is no slot {slot[:80]!r} here; GET /api/status lists them")
        said: Said = self._desk.carry_out(slot, what)
        by = f"the page, from {request.remote}"
        outcome = said.message if said.done else f"refused: {said.message}"
        self._tell(slot, f"{order} asked for by {by}: {outcome}", {"order": order, "by": by, "done": said.done})
        return Server.json(said, 200 if said.done else 409)
