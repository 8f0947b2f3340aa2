"""Log-probabilities as clients read them: each token by its name, and by the bytes that it adds to the text."""

from collections.abc import Iterable

from actors.processor.detokenize import Pieces
from messages.codec import Ranked
from messages.submit import Likely, Logprob


class Names:
    """Names the tokens of one stream; special ones that its text leaves out have a name, but no bytes."""

    __slots__ = ("_pieces", "_skip_special")

    def __init__(self, pieces: Pieces, *, skip_special: bool) -> None:
        self._pieces = pieces
        self._skip_special = skip_special

    def prompt(self, ids: list[int], ranked: list[Ranked]) -> list[Logprob]:
        """Name a prompt's tokens; of the first nobody can tell how likely it was."""
        token, data = self._name(ids[0])
        first = Logprob(id=ids[0], token=token, logprob=None, bytes=data, top_logprobs=[])
        return [first, *self.ranked(ids[1:], ranked)]

    def ranked(self, ids: Iterable[int], ranked: Iterable[Ranked]) -> list[Logprob]:
        """Name tokens, and the likeliest in their places; half a character is U+FFFD in the name."""
        made = []
        for at, (logprob, likeliest) in zip(ids, ranked, strict=False):
            token, data = self._name(at)
            others = [Likely(id=one, token="", logprob=value, bytes=[]) for one, value in likeliest]
            for other in others:
                other.token, other.bytes = self._name(other.id)
            made.append(Logprob(id=at, token=token, logprob=logprob, bytes=data, top_logprobs=others))
        return made

    def _name(self, at: int) -> tuple[str, list[int]]:
        data = self._pieces.of_token(at)
        hidden = self._skip_special and at in self._pieces.special
        return data.decode("utf-8", "replace"), [] if hidden else list(data)
