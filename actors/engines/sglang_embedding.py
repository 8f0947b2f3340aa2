"""What an SGLang engine does differently as an embedding engine: inputs to vectors, and how long these are cut."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from typing import Any

from messages.codec import unpack_tokens


async def vectors(
    manager: Any, key: str, inputs: list[bytes], on_output: Callable[[], None]
) -> AsyncGenerator[list[float], None]:
    """Give the vectors of inputs (packed token ids), in their order, each when it is there.

    All inputs go to SGLang at once, which puts them in batches as it does with everybody's. What is still under way
    when this ends, however it ends, is stopped in the scheduler too. `on_output` is called with each that comes.
    """
    parts = [
        asyncio.create_task(_vector(manager, tokens, f"{key}:{at}", on_output)) for at, tokens in enumerate(inputs)
    ]
    try:
        for part in parts:
            yield await part
    finally:
        for at, part in enumerate(parts):
            if not part.done():
                manager.abort_request(rid=f"{key}:{at}")
                part.cancel()
            elif not part.cancelled():
                # Only the first failure is told; the others' are the same or of no interest.
                part.exception()


async def _vector(manager: Any, tokens: bytes, rid: str, on_output: Callable[[], None]) -> list[float]:
    """Turn one input into its vector. `Engine.async_encode` takes no token ids, what it calls does."""
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    asked = EmbeddingReqInput(input_ids=unpack_tokens(tokens), rid=rid)
    answer = await anext(manager.generate_request(asked, None))
    on_output()
    vector: list[float] = answer["embedding"]
    return vector


def cut(vector: list[float], dimensions: int) -> list[float]:
    """Keep the first numbers of a vector, brought to length 1 again; 0 keeps it as it is."""
    if not dimensions or dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in kept))
    return [value / length for value in kept] if length else kept
