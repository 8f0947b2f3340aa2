"""A slot that no supervisor starts takes its own generation: once nobody else is heard to live in it."""

import asyncio
import contextlib
import logging
import time
from typing import Final

import msgspec

from actors.ending import Ending
from messages import codec, generations
from messages.bus import Bucket, Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.config import Nats
from messages.ids import Slot, short
from messages.lifecycle import Answer, Exit, Registration, State
from messages.subjects import Subjects

log = logging.getLogger("troupe.actor")

BUS_WAIT: Final = 60.0
PING_SECONDS: Final = 2.0
LOOK_AGAIN: Final = 0.25


async def claim(nats: Nats, subjects: Subjects, slot: Slot, patience: float) -> int:
    """Return the generation of the life that begins here.

    An earlier life that drains is waited for, `patience` seconds at the most. Raises Ending where another life goes on
    in this slot, and where NATS does not answer.
    """
    try:
        bus = await Bus.connect(nats, name=f"{slot}-start", wait=BUS_WAIT)
    except BusError as error:
        raise Ending(Exit.BUS, str(error)) from None
    try:
        await bus.require_jetstream()
        registry = await bus.bucket(subjects.registry_bucket)
        used = await _until_free(bus, registry, subjects, slot, time.monotonic() + patience)
        return await generations.claim(registry, subjects, str(slot), used)
    except BusError as error:
        raise Ending(Exit.BUS, f"the generation of {slot} cannot be had: {error}") from None
    finally:
        await bus.close()


async def _until_free(bus: Bus, registry: Bucket, subjects: Subjects, slot: Slot, deadline: float) -> int:
    """Wait until nobody lives in the slot; return the generation that was registered last, 0 if none is.

    Who is registered and does not answer is dead or hangs: nobody subscribed is told at once. Raises Ending.
    """
    name = str(slot)
    while True:
        there = await registry.get(subjects.registration_key(slot.role, name))
        known = _decoded(there[0]) if there is not None else None
        if known is None:
            return 0
        try:
            answer = await bus.request(subjects.control(name, "ping"), timeout=PING_SECONDS)
            state = codec.from_json(answer.data, Answer).state
        except (NobodyThereError, SilentError) as error:
            log.info("%s does not answer any more (%s): its slot is taken over", short(name, known.generation), error)
            return known.generation
        except (ServiceError, msgspec.DecodeError):
            state = known.state
        if state is State.READY:
            raise Ending(
                Exit.REGISTER,
                f"{short(name, known.generation)} lives on {known.host} (pid {known.pid}) and answers; a slot is one "
                "process: start this one as another --slot, or end that one first",
            )
        if time.monotonic() >= deadline:
            raise Ending(Exit.REGISTER, f"{short(name, known.generation)} on {known.host} is {state} and does not end")
        await asyncio.sleep(LOOK_AGAIN)


def _decoded(value: bytes) -> Registration | None:
    with contextlib.suppress(msgspec.DecodeError):
        return codec.from_json(value, Registration)
    return None
