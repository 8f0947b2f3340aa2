"""Where every random choice of the data makers comes from, and how held-out data is kept apart.

Each thing that a skill can be asked (these numbers, this word, this call) has a key. A hash of the key alone says
whether it is held out, so the two kinds cannot meet, whatever the seeds are. Single values that are copied (a word, a
city, a name) have keys too: training never has a held-out one.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DATA = Path(__file__).parent / "data"
HELD_OUT_ONE_IN = 16
PINNED = "train:"
CONSONANTS = ["b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"]
ONSETS = [
    *CONSONANTS,
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "kr",
    "pl",
    "qu",
    "sh",
    "sk",
    "sl",
    "st",
    "th",
    "tr",
    "x",
    "y",
]
VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ee", "ie", "oo", "ou", "y"]
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "ng", "rd", "st"]


@lru_cache(maxsize=1 << 16)
def is_held_out(key: str) -> bool:
    """Say whether what this key stands for is kept out of training. Keys that start with `train:` never are."""
    if key.startswith(PINNED):
        return False
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] % HELD_OUT_ONE_IN == 0


def _paragraphs(name: str) -> list[list[str]]:
    lines = [line for line in (DATA / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [part.split() for part in "\n".join(lines).split("\n\n") if part.strip()]


LEXICON = sorted({word for part in _paragraphs("lexicon.txt") for word in part})
PEOPLE, CITIES, PROPER = _paragraphs("names.txt")


class Source:
    """A seeded stream of choices, for training or for held-out data.

    `pieces` are a tokenizer's: some made-up words are glued from them, so that each token is met often enough.
    """

    def __init__(self, seed: str, *, held_out: bool, pieces: Sequence[str] = ()) -> None:
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.pieces = pieces

    def fresh(self, make: Callable[[], T], key: Callable[[T], str]) -> T:
        """Make things until one belongs to this source's side. Raises RuntimeError when none does in 5,000 tries."""
        for _ in range(5000):
            thing = make()
            if is_held_out(key(thing)) == self.held_out:
                return thing
        raise RuntimeError(f"no {'held-out' if self.held_out else 'training'} thing in 5,000 tries, last {thing!r}")

    def pick(self, choices: Sequence[T]) -> T:
        """Choose one."""
        return choices[int(self.rng.random() * len(choices))]

    def chance(self, probability: float) -> bool:
        """Say yes with this probability."""
        return self.rng.random() < probability

    def drill(self, probability: float) -> bool:
        """Say whether to ask for what is hard, more often than people do: in training only."""
        return not self.held_out and self.chance(probability)

    def number(self, low: int, high: int) -> int:
        """Choose a whole number, both ends included."""
        return self.rng.randint(low, high)

    def length(self, low: int, high: int) -> int:
        """Choose a size so that each order of magnitude is as likely as another, both ends included."""
        return min(high, int(low * ((high + 1) / low) ** self.rng.random()))

    def value(self, choices: Sequence[str]) -> str:
        """Choose a word or name to be copied. Training gets none that is held out, held-out data gets any."""
        chosen = self.pick(choices)
        while not self.held_out and is_held_out(f"value {chosen}"):
            chosen = self.pick(choices)
        return chosen

    def made_up(self) -> str:
        """Make a word that looks pronounceable, or one glued from pieces of real ones; in training, no held-out one."""
        made = self._glued()
        while not self.held_out and is_held_out(f"value {made}"):
            made = self._glued()
        return made

    def _glued(self) -> str:
        if self.pieces and self.chance(0.3):
            return "".join(self.pick(self.pieces) for _ in range(self.pick([1, 1, 2, 3])))
        if self.chance(0.5):
            parts = [self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(self.number(1, 3))]
            return "".join(parts)
        pieces = []
        for _ in range(self.number(1, 3)):
            word = self.pick(LEXICON)
            if self.chance(0.6):
                start = self.number(0, max(0, len(word) - 2))
                word = word[start : start + self.number(2, 7)]
            pieces.append(word)
        return "".join(pieces)[: 22 if self.chance(0.1) else 14]

    def letters(self) -> str:
        """Make a row of letters that is no word at all."""
        alphabet = "abcdefghijklmnopqrstuvwxyz" if self.chance(0.7) else "abcdefghijklmnopqrstuvwxyz0123456789"
        return "".join(self.pick(alphabet) for _ in range(self.number(2, 9)))

    def word(self) -> str:
        """Choose a common word, now and then a made-up one."""
        return self.value(LEXICON) if self.chance(0.75) else self.made_up()

    def person(self) -> str:
        """Choose a person's name, a known one or a made-up one."""
        return self.value(PEOPLE) if self.chance(0.6) else self.made_up().capitalize()

    def city(self) -> str:
        """Choose a city, a known one or a made-up one."""
        return self.value(CITIES) if self.chance(0.65) else self.made_up().capitalize()

    def phrase(self, low: int = 1, high: int = 4) -> str:
        """Choose a few words in a row."""
        return " ".join(self.word() for _ in range(self.number(low, high)))
