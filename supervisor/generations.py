"""The registry's keys that a supervisor writes: the next generation of a slot, and the end of a dead registration."""

import logging

import msgspec

from messages import codec
from messages.bus import Bucket, BusError, TakenError
from messages.ids import Role, short
from messages.lifecycle import Registration
from messages.subjects import Subjects

log = logging.getLogger("troupe.supervisor")

TRIES = 10


async def claim(registry: Bucket, subjects: Subjects, slot: str, at_least: int) -> int:
    """Raise a slot's generation by one, by compare-and-set, and return it; `at_least` is one known to have been used.

    Raises BusError if the bus does not answer: then nothing may be started.
    """
    key = subjects.generation_key(slot)
    for _ in range(TRIES):
        there = await registry.get(key)
        try:
            if there is None:
                generation = at_least + 1
                await registry.create(key, str(generation).encode())
            else:
                generation = max(_number(there[0]), at_least) + 1
                await registry.update(key, str(generation).encode(), there[1])
        except TakenError:
            continue
        return generation
    raise BusError(f"the generation of {slot} could not be claimed: somebody else claims it again and again")


async def forget(registry: Bucket, subjects: Subjects, role: Role, slot: str, generation: int) -> None:
    """Delete the registration of a slot if it is that of a generation up to this one, which is dead.

    Does nothing if the bus is away: the registry is compared with what runs at each reconnect.
    """
    key = subjects.registration_key(role, slot)
    try:
        there = await registry.get(key)
        if there is None or codec.from_json(there[0], Registration).generation > generation:
            return
        await registry.delete(key, there[1])
        log.debug("registration of %s deleted", short(slot, generation))
    except (TakenError, BusError, msgspec.DecodeError) as error:
        log.debug("registration of %s not deleted: %s", short(slot, generation), error)


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() else 0
