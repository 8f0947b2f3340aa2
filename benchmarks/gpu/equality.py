"""Whether prefill and decode apart say the same as one engine, token for token.

One prompt after another, so that no engine has more than one stream: the size of a batch moves sums in bfloat16. Where
tokens differ all the same, the two likeliest at that place are reported, with their log-probabilities.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.streams import prompts
from messages.client import Client
from messages.submit import Delta

TOKENS = 32


@dataclass
class Greedy:
    """A greedy answer: its tokens, and at each place the likeliest ones with their log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)


async def greedy(client: Client, model: str, prompt: list[int], tokens: int) -> Greedy:
    """Ask for so many tokens with the two likeliest at each place."""
    answer = Greedy()
    fields: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "logprobs": 2}
    async for event in client.generate(model, prompt, max_tokens=tokens, **fields):
        if isinstance(event, Delta):
            answer.tokens += event.token_ids
            answer.top += [[(one.id, one.logprob or 0.0) for one in place.top_logprobs] for place in event.logprobs]
    return answer


def difference(mine: Greedy, other: Greedy) -> dict[str, Any] | None:
    """Where two answers first differ, and how near the two likeliest tokens were to each other there."""
    places = enumerate(zip(mine.tokens, other.tokens, strict=False))
    at = next((place for place, (a, b) in places if a != b), None)
    if at is None and len(mine.tokens) == len(other.tokens):
        return None
    if at is None:
        return {"at": min(len(mine.tokens), len(other.tokens)), "lengths": [len(mine.tokens), len(other.tokens)]}
    return {
        "at": at,
        "whole": mine.top[at : at + 1],
        "other": other.top[at : at + 1],
        "gaps": [round(answer.top[at][0][1] - answer.top[at][1][1], 5) for answer in (mine, other)],
    }


def drift(mine: Greedy, other: Greedy) -> float:
    """The largest difference between log-probabilities of the likeliest token, over two equal answers."""
    pairs = zip(mine.top, other.top, strict=True)
    return max((abs(a[0][1] - b[0][1]) for a, b in pairs if a and b), default=0.0)


async def compare(context: Context, result: Result, client: Client, others: Sequence[str], count: int) -> None:
    """Ask `whole` and each of the others every prompt; they are different engines, so they may run side by side."""
    found: dict[str, dict[str, Any]] = {
        name: {"prompts": 0, "equal": 0, "places": 0, "most drift of a log-probability": 0.0, "differ": []}
        for name in others
    }
    result.data["equality"] = found
    longest = context.pick(1_500, 300)
    asked = prompts(3, count, 1, longest, context.vocabulary)
    asked[:3] = [asked[0][:1], asked[1][:16], asked[2][:17]]
    for number, prompt in enumerate(asked):
        if context.left < 30:
            break
        answers = await asyncio.gather(*(greedy(client, name, prompt, TOKENS) for name in ("whole", *others)))
        whole = answers[0]
        for name, answer in zip(others, answers[1:], strict=True):
            row = found[name]
            row["prompts"] += 1
            differs = difference(whole, answer)
            if differs is not None:
                row["differ"].append({"prompt": number, "length": len(prompt)} | differs)
                continue
            row["equal"] += 1
            row["places"] += sum(bool(a and b) for a, b in zip(whole.top, answer.top, strict=True))
            row["most drift of a log-probability"] = max(row["most drift of a log-probability"], drift(whole, answer))
        if number % 20 == 0:
            result.save()
    result.save()
