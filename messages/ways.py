"""Finds the way of one request: asks every processor that is registered, for nobody else knows whose it was."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import msgspec

from messages import codec
from messages.bus import Bucket, Bus, NobodyThereError, ServiceError, SilentError
from messages.ids import check_request_id
from messages.lifecycle import Control
from messages.subjects import Subjects, last_token
from messages.telemetry import Way

SECONDS: Final = 2.0
PREFIXES: Final = ("chatcmpl-", "cmpl-")


def request_id(text: str) -> str:
    """Read a request id, also as it stands in an answer of the OpenAI API (`chatcmpl-…`). Raises ValueError."""
    for prefix in PREFIXES:
        text = text.removeprefix(prefix)
    return check_request_id(text)


async def processors(registry: Bucket) -> list[str]:
    """List the slots of all processors that are registered. Raises BusError."""
    return sorted(last_token(key) for key in await registry.all() if key.startswith("processor."))


async def ways(bus: Bus, subjects: Subjects, slots: Iterable[str], request: str) -> list[Way]:
    """Ask these processors for the way of a request; the oldest first.

    There is more than one where a processor has died and its client went on with another. One that is silent, or is
    not there any more, knows nothing. Raises BusError where there is no connection.
    """

    async def ask(slot: str) -> Way | None:
        with contextlib.suppress(NobodyThereError, SilentError, ServiceError, msgspec.DecodeError):
            asked = codec.to_json(Control(request=request))
            answer = await bus.request(subjects.control(slot, "trace"), asked, timeout=SECONDS)
            return codec.from_json(answer.data, Way)
        return None

    found = await asyncio.gather(*(ask(slot) for slot in slots))
    return sorted(
        (way for way in found if way is not None), key=lambda way: way.stations[0].at if way.stations else 0.0
    )
