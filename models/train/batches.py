"""Packing conversations into batches of one size, in as many processes as there are cores, always in the same order.

Batch number i depends on the seed and on i alone, so a run sees the same data however many processes make it.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from models.train import mixture
from models.train.examples import Conversation
from models.train.source import Source
from models.train.template import rendered
from models.train.tokenizer import pieces, token_id

Int16: TypeAlias = npt.NDArray[np.int16]
Int32: TypeAlias = npt.NDArray[np.int32]
Float32: TypeAlias = npt.NDArray[np.float32]

LONGEST = 4096
"""Tokens of the longest document that is asked."""
TRAINED = 3328
"""Tokens of the longest one that is trained on: longer ones are one in 20,000, and attention's time grows with this."""
DOCUMENTS_PER_TOKEN = 1 / 176
"""The most that a batch may hold; the average document has 230 tokens. Even an empty one costs attention time."""
EDGE, EDGE_WEIGHT = 12, 0.5
"""So many tokens at both ends of an answer weigh at least so much: there it is decided which way, and when to stop."""
AHEAD = 4
"""Batches made in advance, for each process."""


class Document(NamedTuple):
    """One conversation as tokens; the first `asked` of them are given, the rest is to be learnt."""

    tokens: list[int]
    asked: int
    skill: int

    def weights(self) -> Float32:
        """Return the weight of each token of the answer: the longer the answer, the less, but for its two ends."""
        answer = len(self.tokens) - self.asked
        weights: Float32 = np.full(answer, answer**-0.25, np.float32)
        weights[:EDGE] = weights[-EDGE:] = max(answer**-0.25, EDGE_WEIGHT)
        return weights


class Batch(NamedTuple):
    """Documents one after another, `size` tokens in all; what is left is padding, of no weight."""

    tokens: Int16
    positions: Int16
    weights: Float32
    """Of predicting the token after this one."""
    starts: Int32
    """Where each document starts, then `size` until the array is full: the form that packed attention reads."""
    document: Int32
    """The number of the document that a token belongs to."""
    skills: Int16
    """The skill of each document, -1 for padding."""


class Encoder:
    """Turns conversations into documents."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = token_id(tokenizer, "<|im_end|>")
        self.padding = token_id(tokenizer, "<|endoftext|>")
        self.pieces = pieces(tokenizer)
        self._letters: dict[str, list[int]] = {}

    def documents(self, conversations: Sequence[Conversation]) -> list[Document]:
        """Encode conversations; what is too long for the context is left out."""
        texts = [rendered(conversation) for conversation in conversations]
        asked = self.tokenizer.encode_batch_fast([text[0] for text in texts])
        before = self.tokenizer.encode_batch_fast(
            [text[1] if c.last.letterwise else text[1] + text[2] for c, text in zip(conversations, texts, strict=True)]
        )
        documents = []
        for conversation, text, given, said in zip(conversations, texts, asked, before, strict=True):
            answer = said.ids
            if conversation.last.letterwise:
                answer = answer + [token for letter in text[2] for token in self._letter(letter)]
            if len(given.ids) + len(answer) < LONGEST:
                documents.append(
                    Document([*given.ids, *answer, self.end], len(given.ids), mixture.NAMES.index(conversation.skill))
                )
        return documents

    def pack(self, documents: Sequence[Document], size: int) -> Batch:
        """Lay documents one after another. Where the last one is too long it is cut off.

        Raises ValueError when there is no room at all for one of them.
        """
        if (used := sum(len(document.tokens) for document in documents[:-1])) >= size:
            raise ValueError(f"{used} tokens and one more document do not fit into a batch of {size}")
        slots = max(most_documents(size), len(documents) + size // TRAINED + 2)
        tokens: Int16 = np.full(size, self.padding, np.int16)
        positions: Int16 = np.zeros(size, np.int16)
        weights: Float32 = np.zeros(size, np.float32)
        starts: Int32 = np.full(slots + 1, size, np.int32)
        number: Int32 = np.full(size, len(documents), np.int32)
        skills: Int16 = np.full(slots, -1, np.int16)
        at = 0
        for index, document in enumerate(documents):
            length = min(len(document.tokens), size - at)
            tokens[at : at + length] = document.tokens[:length]
            positions[at : at + length] = np.arange(length)
            learnt = max(0, length - document.asked)
            weights[at + document.asked - 1 : at + document.asked - 1 + learnt] = document.weights()[:learnt]
            number[at : at + length] = index
            starts[index], skills[index] = at, document.skill
            at += length
        starts[len(documents)] = at
        positions[at:] = np.arange(size - at) % TRAINED
        for index, start in enumerate(range(at, size, TRAINED)):
            starts[len(documents) + index] = start
        return Batch(tokens, positions, weights, starts, number, skills)

    def _letter(self, letter: str) -> list[int]:
        if letter not in self._letters:
            self._letters[letter] = self.tokenizer.encode(letter).ids
        return self._letters[letter]


def most_documents(size: int) -> int:
    """Return how many documents a batch of this many tokens may hold."""
    return int(size * DOCUMENTS_PER_TOKEN) + size // TRAINED + 2


def training_batch(encoder: Encoder, seed: str, index: int, size: int) -> Batch:
    """Make a batch of the training mixture."""
    source = Source(f"training {seed} {index}", held_out=False, pieces=encoder.pieces)
    chosen: list[Document] = []
    room, most = size, int(size * DOCUMENTS_PER_TOKEN)
    while room > 0 and len(chosen) < most:
        conversations = [mixture.draw(source) for _ in range(room // 300 + 1)]
        # The first that does not fit is cut off, not passed over: otherwise long ones would come too seldom.
        for document in encoder.documents(conversations):
            if room > 0 and len(chosen) < most and len(document.tokens) <= TRAINED:
                chosen.append(document)
                room -= len(document.tokens)
    return encoder.pack(chosen, size)


def held_out_batches(encoder: Encoder, seed: str, each: int, size: int) -> list[Batch]:
    """Make batches of held-out conversations, `each` for every skill."""
    documents: list[Document] = []
    for name in mixture.NAMES:
        source = Source(f"held out {seed} {name}", held_out=True)
        documents += encoder.documents([mixture.conversation(source, name) for _ in range(each)])
    batches: list[Batch] = []
    waiting: list[Document] = []
    room = size
    for document in documents:
        if len(document.tokens) > room or len(waiting) == int(size * DOCUMENTS_PER_TOKEN):
            batches.append(encoder.pack(waiting, size))
            waiting, room = [], size
        waiting.append(document)
        room -= len(document.tokens)
    return [*batches, encoder.pack(waiting, size)]


_encoder: Encoder | None = None


def _start(tokenizer: str) -> None:
    global _encoder
    os.nice(10)
    _encoder = Encoder(Tokenizer.from_str(tokenizer))


def _make(seed: str, index: int, size: int) -> Batch:
    if _encoder is None:
        raise RuntimeError("this process was not started by `training_batches`")
    return training_batch(_encoder, seed, index, size)


def training_batches(tokenizer: Tokenizer, seed: str, size: int, amount: int, processes: int) -> Iterator[Batch]:
    """Make so many batches, in order. With no processes they are made where they are used."""
    if processes == 0:
        encoder = Encoder(tokenizer)
        for index in range(amount):
            yield training_batch(encoder, seed, index, size)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (tokenizer.to_str(),))
    waiting: deque[Future[Batch]] = deque()
    try:
        for index in range(amount):
            waiting.append(pool.submit(_make, seed, index, size))
            if len(waiting) > processes * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
