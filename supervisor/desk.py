"""Answers the command line over NATS: how everything stands, and orders for one slot."""

import os
import time
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.ids import short
from messages.subjects import last_token
from messages.supervise import Order, Said, Status
from supervisor import acts, report
from supervisor.ground import Ground
from supervisor.restart import AT_REST, Life, Phase
from supervisor.slots import Slots
from supervisor.world import World


class Desk:
    """Where orders come in; `look` returns the world as it is now, `ask` hands an order to the deciders."""

    def __init__(
        self, ground: Ground, slots: Slots, look: Callable[[], World], ask: Callable[[acts.Ask], None]
    ) -> None:
        self._ground = ground
        self._slots = slots
        self._look = look
        self._ask = ask
        self._began = time.monotonic()

    async def open(self) -> None:
        """Listen for orders."""
        await self._ground.bus.subscribe(self._ground.subjects.supervises, self._on_order)

    def status(self) -> Status:
        """Report how everything stands."""
        now, ground = time.monotonic(), self._ground
        found = report.of_world(self._look(), self._slots.running, ground.record, now)
        found.supervisor = os.getpid()
        found.uptime = round(now - self._began, 1)
        found.nats_up = ground.bus.connected
        found.nats_pid = ground.embedded.pid if ground.embedded is not None else None
        return found

    async def _on_order(self, msg: Msg) -> None:
        """Answer one order; one for a slot that is not ours is for another supervisor to answer."""
        order = last_token(msg.subject)
        try:
            asked = codec.from_json(msg.data, Order) if msg.data else Order()
        except msgspec.DecodeError:
            return
        answer: Status | Said
        if order == "status":
            answer = self.status()
        elif order in ("drain", "restart") and asked.slot in self._look().lives.slots:
            answer = self._carry_out(acts.Ask(asked.slot, "drain" if order == "drain" else "restart"))
        else:
            return
        if msg.reply:
            await self._ground.bus.publish(msg.reply, codec.to_json(answer))

    def _carry_out(self, asked: acts.Ask) -> Said:
        lives = self._look().lives
        life = lives.slots[asked.slot]
        drain = asked.what == "drain"
        if lives.ending != "no":
            return Said(done=False, message="the cluster is being ended")
        if life.spec.external:
            return self._ask_external(asked, life)
        if drain and life.phase in AT_REST:
            return Said(done=False, message=f"{asked.slot} is {life.phase} already")
        self._ask(asked)
        if life.phase in AT_REST or life.phase is Phase.WAITING:
            verb = "stays stopped" if drain else "is started"
        else:
            verb = "drains, and stays stopped then" if drain else "drains, and is started again then"
        return Said(done=True, message=f"{short(asked.slot, life.generation)} {verb}")

    def _ask_external(self, asked: acts.Ask, life: Life) -> Said:
        """Ask the actor of an external slot to drain and exit; what comes then is for its manager to decide."""
        who = short(asked.slot, life.generation)
        if life.phase is not Phase.READY:
            is_what = "is not there" if life.phase is Phase.WAITING else f"is {life.phase}"
            return Said(
                done=False, message=f"{asked.slot} {is_what}, and only its manager can start or end it (external)"
            )
        self._ask(asked)
        then = (
            "its manager is to start it again" if asked.what == "restart" else "its manager says whether it comes back"
        )
        return Said(done=True, message=f"{who} drains and exits; {then} (external)")
