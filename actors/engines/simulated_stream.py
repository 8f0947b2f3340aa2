"""One stream of the simulated engine: what was asked of it, how far it is, and its last word."""

import asyncio
import zlib
from typing import Final

from actors.engines.engine import Emit, Generation
from messages.codec import token_count
from messages.frames import Finish

HIGHEST_BIAS: Final = 100.0


class Stream:
    """One running stream: `crc` is the state from which its next token follows; a seed is where it begins.

    `forced` are the tokens with the highest possible bias, of which alone it chooses, `banned` those with the lowest.
    """

    __slots__ = (
        "aborted",
        "banned",
        "blocks",
        "cached",
        "crc",
        "done",
        "emit",
        "forced",
        "key",
        "least",
        "length",
        "limit",
        "made",
        "prompt",
        "rank",
        "rank_prompt",
        "ranks",
        "stops",
    )

    def __init__(self, asked: Generation, emit: Emit, done: "asyncio.Future[None]", stops: frozenset[int]) -> None:
        self.key = asked.key
        self.prompt = asked.prompt
        self.emit = emit
        self.done = done
        self.stops = stops
        sampling = asked.sampling
        seed = 0 if sampling.seed is None else zlib.crc32(str(sampling.seed).encode())
        self.crc = zlib.crc32(asked.prompt, seed)
        self.forced = [at for at, bias in sampling.logit_bias.items() if bias >= HIGHEST_BIAS]
        self.banned = {at for at, bias in sampling.logit_bias.items() if bias <= -HIGHEST_BIAS}
        self.least = sampling.min_tokens
        self.ranks = sampling.logprobs or 0
        self.rank = asked.rank
        self.rank_prompt = sampling.prompt_logprobs
        self.length = token_count(asked.prompt)
        self.limit = asked.sampling.max_tokens
        self.made = 0
        self.cached = 0
        self.blocks = 0
        self.aborted = False

    def finish(self, tokens: bytes, reason: str, code: int = 0, message: str = "", matched: int | None = None) -> None:
        """Say the last word; the first one counts."""
        if not self.done.done():
            self.done.set_result(None)
            self.emit(tokens, Finish(reason, code, message, self.length, self.made, self.cached, matched))
