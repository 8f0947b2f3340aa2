"""The end of a registration whose owner is dead: the one thing that a supervisor takes out of the registry."""

import logging

import msgspec

from messages import codec
from messages.bus import Bucket, BusError, TakenError
from messages.ids import Role, short
from messages.lifecycle import Registration
from messages.subjects import Subjects

log = logging.getLogger("troupe.supervisor")


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
