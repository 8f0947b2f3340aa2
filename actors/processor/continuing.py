"""What a stream must be like to go on elsewhere, and how large the message is that asks for it."""

from typing import Final

from messages.work import Sampling

ENVELOPE: Final = 2_048


def work_bytes(tokens: int) -> int:
    """Say how large the message is, at most, that asks an actor to work on so many tokens."""
    return ENVELOPE + 4 * tokens


def why_not_continued(sampling: Sampling) -> str | None:
    """Say why a stream cannot go on elsewhere from its tokens so far, or None if it can.

    An engine counts generated tokens for these; those that stand in its prompt do not count.
    """
    penalties = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
    named = "penalties count" if penalties else "min_tokens counts" if sampling.min_tokens else None
    return None if named is None else f"{named} generated tokens, so that it cannot be continued elsewhere"
