"""Takes control verbs in: each is decoded, meant for this generation, carried out in a task of its own, answered."""

import contextlib
from collections.abc import Awaitable, Callable

import msgspec
from anyio.abc import TaskGroup
from msgspec import Struct
from nats.aio.msg import Msg

from messages import codec, logs
from messages.bus import Bus, BusError, ServiceError, error_headers
from messages.ids import short
from messages.lifecycle import Answer, Control, State
from messages.subjects import last_token

CarryOut = Callable[[str, Control], Awaitable[str | Struct]]


class Controls:
    """Where one actor's control verbs come in; `carry_out` returns a word, or an answer whole, or raises ServiceError.

    `state` returns the actor's state as it is now, `tasks` are the actor's.
    """

    def __init__(
        self,
        bus: Bus,
        tasks: TaskGroup,
        slot: str,
        generation: int,
        state: Callable[[], State],
        carry_out: CarryOut,
    ) -> None:
        self._bus = bus
        self._tasks = tasks
        self._slot = slot
        self._generation = generation
        self._state = state
        self._carry_out = carry_out

    async def take(self, msg: Msg) -> None:
        """Hand a verb to its own task, so that a slow one keeps no other waiting."""
        self._tasks.start_soon(self._answer, msg)

    async def _answer(self, msg: Msg) -> None:
        verb = last_token(msg.subject)
        try:
            asked = codec.from_json(msg.data, Control) if msg.data else Control()
            if asked.generation and asked.generation != self._generation:
                raise ServiceError(409, f"this is {short(self._slot, self._generation)}, not #{asked.generation}")
            said = await self._carry_out(verb, asked)
        except msgspec.DecodeError as error:
            await respond(self._bus, msg, b"", error_headers(400, f"control {verb}: {error}"))
        except ServiceError as error:
            await respond(self._bus, msg, b"", error_headers(error.code, error.message))
        else:
            if isinstance(said, str):
                said = Answer(slot=self._slot, generation=self._generation, state=self._state(), message=said)
            await respond(self._bus, msg, codec.to_json(said))


async def respond(bus: Bus, msg: Msg, payload: bytes, headers: dict[str, str] | None = None) -> None:
    """Answer, if an answer is wanted; where NATS is away, whoever asked will ask again."""
    if msg.reply:
        with contextlib.suppress(BusError):
            await bus.publish(msg.reply, payload, headers=headers)


def set_level(level: str) -> str:
    """Log from this level on. Raises ServiceError for one that there is not."""
    try:
        logs.set_level(level)
    except ValueError as error:
        raise ServiceError(400, str(error)) from None
    return f"logs from {level} on"
