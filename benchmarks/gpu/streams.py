"""Streams of token ids and what was seen of them: random prompts, one greedy stream, rates and percentiles."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rig import percentile
from messages.client import Client
from messages.submit import Delta


@dataclass
class Stream:
    """One answer: its tokens, when it was asked for, and when each piece came, in seconds of `perf_counter`."""

    asked: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, tokens: list[int]) -> None:
        """Note a piece that has come now."""
        self.tokens += tokens
        self.times.append(time.perf_counter())
        self.counts.append(len(tokens))

    @property
    def ttft(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def generate(client: Client, model: str, prompt: list[int], tokens: int, **fields: Any) -> Stream:
    """One greedy stream over NATS, of exactly so many tokens."""
    stream = Stream(time.perf_counter())
    fields = {"temperature": 0, "ignore_eos": True} | fields
    async for event in client.generate(model, prompt, max_tokens=tokens, **fields):
        if isinstance(event, Delta):
            stream.add(event.token_ids)
    return stream


def prompts(seed: int, count: int, low: int, high: int, vocabulary: int = 500) -> list[list[int]]:
    """Random token ids, different for each seed: nothing of one is in the prefix cache because of another."""
    chance = random.Random(seed)
    return [[chance.randrange(10, vocabulary - 10) for _ in range(chance.randint(low, high))] for _ in range(count)]


def summary(streams: Sequence[Stream], seconds: float) -> dict[str, float]:
    """What a client would tell of streams that were asked for within `seconds` all together."""
    made = sum(len(stream.tokens) for stream in streams)
    ttft = [stream.ttft for stream in streams]
    gaps = [gap for stream in streams for gap in stream.gaps]
    return {
        "tokens": made,
        "tokens/s": made / seconds,
        "TTFT p50 ms": percentile(ttft, 0.5) * 1e3,
        "TTFT p99 ms": percentile(ttft, 0.99) * 1e3,
        "ITL p50 ms": percentile(gaps, 0.5) * 1e3,
        "ITL p99 ms": percentile(gaps, 0.99) * 1e3,
    }
