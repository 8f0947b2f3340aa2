"""Who is the next life of a slot: its generation, raised by compare-and-set before anything starts."""

from typing import Final

from messages.bus import Bucket, BusError, TakenError
from messages.subjects import Subjects

TRIES: Final = 10


async def claim(registry: Bucket, subjects: Subjects, slot: str, at_least: int) -> int:
    """Raise a slot's generation by one, by compare-and-set, and return it; `at_least` is one known to have been used.

    From then on nothing that an earlier life still sends is believed, and that life ends itself. Raises BusError if the
    bus does not answer: then nothing may be started.
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


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() else 0
