"""What stands for a model in the simulated engine: a vocabulary, the next token, how likely it was, an input's vector.

The next token is a function of the whole sequence so far, so a stream that is continued elsewhere from prompt and
tokens so far goes on exactly as it would have.
"""

import json
import math
import random
import zlib
from pathlib import Path

from actors.engines.engine import ConfigurationError, LoadError
from actors.engines.simulated_stream import Stream
from messages.codec import Ranked, pack_logprobs
from messages.config import Model


class SimulatedModel:
    """Chooses tokens without computing anything: `tokens` are the ids it may choose, of a vocabulary of `size`.

    It has neither before `read`.
    """

    def __init__(self, config: Model) -> None:
        self._config = config
        self._eos_every = config.simulated.eos_every
        self.tokens: list[int] = []
        self._packed: list[bytes] = []
        self.size = 0

    def read(self) -> None:
        """Read the vocabulary, and choose the ids to generate: all but the special ones, so that every stream is text.

        Raises ConfigurationError without a tokenizer, LoadError where it is none.
        """
        special: set[int] = set()
        size = self._config.simulated.vocab_size
        folder = self._config.tokenizer or self._config.path
        if size is None:
            if folder is None:
                raise ConfigurationError("the simulated engine needs a tokenizer or simulated.vocab_size")
            path = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
            try:
                data = json.loads(path.read_bytes())
                special = {token["id"] for token in data["added_tokens"]}
                size = max([*data["model"]["vocab"].values(), *special]) + 1
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{path}: no tokenizer: {error}") from None
        self.size = size
        self.tokens = [token for token in range(size) if token not in special]
        self._packed = [token.to_bytes(4, "little") for token in self.tokens]

    def step(self, stream: Stream) -> None:
        """Give a stream its next token, and its last word if that was the last."""
        if stream.done.done():
            return
        eos_every = self._eos_every
        stream.made += 1
        may_stop = stream.made > stream.least
        if eos_every and may_stop and stream.stops and (stream.length + stream.made) % eos_every == 0:
            matched = min(stream.stops)
            self._rank(stream, matched)
            stream.finish(matched.to_bytes(4, "little"), "stop", matched=matched)
            return
        at = stream.crc % len(self._packed)
        if stream.forced or stream.banned or not may_stop:
            at = self._allowed(stream, at, may_stop)
        token = self._packed[at]
        self._rank(stream, self.tokens[at])
        stream.crc = zlib.crc32(token, stream.crc)
        if self.tokens[at] in stream.stops:
            stream.finish(token, "stop", matched=self.tokens[at])
        elif stream.made >= stream.limit:
            stream.finish(token, "length")
        else:
            stream.emit(token, None)

    def _allowed(self, stream: Stream, at: int, may_stop: bool) -> int:
        """Find the first token from a place on that the biases, and the least number of tokens, allow."""
        if stream.forced:
            wanted = stream.forced[at % len(stream.forced)]
            return self.tokens.index(wanted) if wanted in self.tokens else at
        refused = stream.banned if may_stop else stream.banned | stream.stops
        for step in range(len(self.tokens)):
            place = (at + step) % len(self.tokens)
            if self.tokens[place] not in refused:
                return place
        return at

    def _rank(self, stream: Stream, token: int) -> None:
        """Make up how likely a token was, and the next likeliest: a function of what stands before it."""
        if stream.rank is not None:
            stream.rank(pack_logprobs([self._made_up(stream.crc, token, stream.ranks)]))

    def rank_prompt(self, stream: Stream) -> None:
        """Make up how likely the prompt's tokens were, all but the first."""
        if stream.rank is None or not stream.rank_prompt:
            return
        made, crc = [], 0
        for at in range(0, len(stream.prompt), 4):
            token = stream.prompt[at : at + 4]
            made.append(self._made_up(crc, int.from_bytes(token, "little"), stream.ranks))
            crc = zlib.crc32(token, crc)
        stream.rank(pack_logprobs(made[1:]))

    def _made_up(self, crc: int, token: int, ranks: int) -> Ranked:
        first = 0.5 + (crc % 400) / 1_000
        likeliest = [(token, math.log(first))]
        at, left = token, 1.0 - first
        for _ in range(1, min(ranks, self.size)):
            at, left = (at + 1) % self.size, left / 2
            likeliest.append((at, math.log(left)))
        return likeliest[0][1], likeliest[:ranks]


def unit_vector(tokens: bytes, length: int, dimensions: int = 0) -> list[float]:
    """Make the vector of packed token ids: `length` numbers, cut to the first `dimensions` if any, of length 1."""
    chance = random.Random(tokens)
    values = [chance.gauss() for _ in range(length)][: dimensions or None]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]
