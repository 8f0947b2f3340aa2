"""Answers the command line over NATS: how everything stands, and orders for one slot or a whole model."""

import os
import time
import uuid
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from messages import codec, logs
from messages.ids import short
from messages.subjects import last_token
from messages.supervise import Order, Said, Status
from supervisor import acts, report, rolling
from supervisor.ground import Ground
from supervisor.lives import AT_REST, Life, Phase
from supervisor.slots import Slots
from supervisor.world import Event, World


class Desk:
    """Where orders come in; `look` returns the world as it is now, `ask` hands an order to the deciders."""

    def __init__(self, ground: Ground, slots: Slots, look: Callable[[], World], ask: Callable[[Event], None]) -> None:
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
            answer = self.carry_out(asked.slot, "drain" if order == "drain" else "restart")
        elif order == "restart" and (alias := self._alias(asked.model)):
            answer = self.halt(alias) if asked.halt else self.roll(alias, asked.role)
        elif order == "log-level":
            answer = _set_level(asked.level)
        else:
            return
        if msg.reply:
            await self._ground.bus.publish(msg.reply, codec.to_json(answer))

    def _alias(self, model: str) -> str:
        """Find the alias of a model of ours, named by either; empty if it is none."""
        doors = self._look().doors.values()
        return next((door.alias for door in doors if model in (door.model, door.alias)), "")

    def roll(self, alias: str, role: str = "") -> Said:
        """Begin a rolling restart of a model of ours, or of its slots of one role."""
        world = self._look()
        if world.lives.ending != "no":
            return Said(done=False, message="the cluster is being ended")
        if (under_way := world.rolls.get(alias)) is not None and under_way.state == "going":
            how_far = f"{under_way.done} of {under_way.total} done, {under_way.at or 'none'} is at it"
            return Said(done=False, message=f"a rolling restart of {under_way.what} is under way: {how_far}")
        try:
            roll = rolling.plan(uuid.uuid4().hex[:8], alias, role, world.lives, time.monotonic())
        except ValueError as error:
            return Said(done=False, message=str(error))
        self._ask(rolling.Begin(roll))
        slots = ", ".join(slot for slot, _ in roll.left)
        return Said(done=True, message=f"rolling restart of {roll.what}, one after the other: {slots}", roll=roll.id)

    def halt(self, alias: str) -> Said:
        """Let a model's rolling restart go no further."""
        roll = self._look().rolls.get(alias)
        if roll is None or roll.state != "going":
            return Said(done=False, message=f"no rolling restart of {alias} is under way")
        self._ask(rolling.Halt(alias))
        last = f"; {roll.at} comes back first" if roll.at else ""
        return Said(done=True, message=f"rolling restart of {roll.what} stops after {roll.done} of {roll.total}{last}")

    def knows(self, slot: str) -> bool:
        """Whether this is a slot of ours."""
        return slot in self._look().lives.slots

    def generation(self, slot: str) -> int:
        """The generation of a slot of ours."""
        return self._look().lives.slots[slot].generation

    def carry_out(self, slot: str, what: acts.What) -> Said:
        """Do what is asked of a slot of ours, or say why not."""
        lives, asked = self._look().lives, acts.Ask(slot, what)
        life = lives.slots[slot]
        if lives.ending != "no":
            return Said(done=False, message="the cluster is being ended")
        if life.spec.external:
            return self._ask_external(asked, life)
        stop = what in ("drain", "out")
        if stop and life.phase in AT_REST:
            return Said(done=False, message=f"{slot} is {life.phase} already")
        self._ask(asked)
        if life.phase in AT_REST or life.phase is Phase.WAITING:
            verb = "stays stopped" if stop else "is started"
        elif what in ("now", "out"):
            verb = "is ended at once, and " + ("stays stopped" if stop else "started again")
        else:
            verb = "drains, and stays stopped then" if stop else "drains, and is started again then"
        return Said(done=True, message=f"{short(slot, life.generation)} {verb}")

    def _ask_external(self, asked: acts.Ask, life: Life) -> Said:
        """Ask the actor of an external slot to drain and exit; what comes then is for its manager to decide."""
        who = short(asked.slot, life.generation)
        if asked.what in ("now", "out"):
            return Said(done=False, message=f"only the manager of {asked.slot} can end it at once (external)")
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


def _set_level(level: str) -> Said:
    try:
        logs.set_level(level)
    except ValueError as error:
        return Said(done=False, message=str(error))
    return Said(done=True, message=f"the supervisor logs from {level} on")
