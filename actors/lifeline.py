"""What an actor needs of NATS to live: to be there, to take messages as large as its prompts, and not to stay away."""

import asyncio
import time
from typing import Final

from actors.ending import Ending
from messages.bus import Bus, BusError
from messages.config import Nats
from messages.lifecycle import Exit

BUS_WAIT: Final = 60.0
PROMPT_BYTES: Final = 8
"""Bytes of a message for each token of a prompt: four packed between actors, up to eight as clients send them."""


async def connect(nats: Nats, name: str) -> Bus:
    """Connect under a name. Raises Ending if NATS cannot be reached."""
    try:
        return await Bus.connect(nats, name=name, wait=BUS_WAIT)
    except BusError as error:
        raise Ending(Exit.BUS, str(error)) from None


def check_payload(bus: Bus, context_length: int) -> None:
    """Raise Ending if NATS takes no message as large as a prompt that fills the context."""
    if (needs := context_length * PROMPT_BYTES) > bus.max_payload:
        raise Ending(
            Exit.BUS,
            f"NATS takes messages of {bus.max_payload} bytes, but a context of {context_length} tokens needs {needs}; "
            "raise max_payload there",
        )


async def until_back(bus: Bus, grace: float) -> None:
    """Wait until a lost connection is back. Raises Ending if it has not come back after `grace` seconds."""
    deadline = time.monotonic() + grace
    while (left := deadline - time.monotonic()) > 0:
        if bus.connected:
            return
        await asyncio.sleep(min(left, 0.5))
    raise Ending(Exit.BUS_LOST, f"NATS has been away for {grace:g} s")
