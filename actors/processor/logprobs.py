"""Log-probabilities as clients read them: each token by its text and bytes."""

from collections.abc import Iterable

from actors.processor.detokenize import Pieces
from messages.codec import Ranked
from messages.submit import Likely, Logprob


def named(pieces: Pieces, ids: Iterable[int], ranked: Iterable[Ranked]) -> list[Logprob]:
    """Name tokens and the likeliest in their places; half a character is U+FFFD in the text, and whole in the bytes."""
    made = []
    for at, (logprob, likeliest) in zip(ids, ranked, strict=False):
        data = pieces.of_token(at)
        made.append(
            Logprob(
                id=at,
                token=data.decode("utf-8", "replace"),
                logprob=logprob,
                bytes=list(data),
                top_logprobs=[_likely(pieces, other, value) for other, value in likeliest],
            )
        )
    return made


def _likely(pieces: Pieces, at: int, logprob: float) -> Likely:
    data = pieces.of_token(at)
    return Likely(id=at, token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))
