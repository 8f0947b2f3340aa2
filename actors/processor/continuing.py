"""What a stream must be like to go on elsewhere, what is left of it then, and how large the message is that asks."""

from typing import Final

import msgspec

from messages.work import Sampling

ENVELOPE: Final = 2_048


def work_bytes(tokens: int, sampling: Sampling, chat_bytes: int = 0) -> int:
    """Say how large the message is, at most, that asks an actor to work on so many tokens, after such a chat."""
    size = ENVELOPE + 4 * tokens + chat_bytes + 14 * len(sampling.logit_bias)
    if (name := sampling.grammar) is not None:
        size += len(getattr(sampling, name).encode())
    return size


def ranked_bytes(tokens: int, sampling: Sampling) -> int:
    """Say how large the message is, at most, that brings the log-probabilities of a prompt; 0 if none are asked for."""
    return ENVELOPE + tokens * (4 + 8 * (sampling.logprobs or 0)) if sampling.prompt_logprobs else 0


def why_not_continued(sampling: Sampling) -> str | None:
    """Say why a stream cannot go on elsewhere once there are tokens, or None if it can, one way or the other."""
    if sampling.grammar is not None and not greedy(sampling):
        return (
            "a grammar begins with the first token generated, and what was drawn at random does not come again, so "
            "that it cannot be continued elsewhere"
        )
    return None


def greedy(sampling: Sampling) -> bool:
    """Whether the same prompt gives the same tokens again."""
    return sampling.temperature == 0


def begins_anew(sampling: Sampling) -> bool:
    """Whether a stream that goes on elsewhere is generated anew from its prompt, to be what it would have been.

    An engine counts generated tokens for penalties, and a grammar begins with the first generated token; those that
    stand in its prompt do not count. A sampled stream with penalties goes on without those before.
    """
    penalties = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
    return greedy(sampling) and bool(penalties or sampling.grammar is not None)


def rest(sampling: Sampling, made: int) -> Sampling:
    """Say how to go on after so many tokens: what is counted from the first of them is counted from here."""
    return msgspec.structs.replace(
        sampling,
        max_tokens=sampling.max_tokens - made,
        min_tokens=max(0, sampling.min_tokens - made),
        prompt_logprobs=False,
    )
