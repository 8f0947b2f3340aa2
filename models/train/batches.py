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
from models.train.tokenizer import token_id

Int16: TypeAlias = npt.NDArray[np.int16]
Int32: TypeAlias = npt.NDArray[np.int32]
Float32: TypeAlias = npt.NDArray[np.float32]

LONGEST = 4096
DOCUMENTS_PER_TOKEN = 1 / 96
"""The most that a batch may hold; the average document has 200 tokens. Even an empty one costs attention time."""
AHEAD = 4
"""Batches made in advance, for each process."""


class Document(NamedTuple):
    """One conversation as tokens; the first `asked` of them are given, the rest is to be learnt."""

    tokens: list[int]
    asked: int
    skill: int


class Batch(NamedTuple):
    """Documents one after another, `size` tokens in all; the last document is padding, of no weight."""

    tokens: Int16
    positions: Int16
    weights: Float32
    """Of predicting the token after this one. A long answer weighs more than a short one, by the root of its length."""
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
        """Lay documents one after another. Raises ValueError when they need more than `size` tokens."""
        if (used := sum(len(document.tokens) for document in documents)) > size:
            raise ValueError(f"{used} tokens do not fit into a batch of {size}")
        tokens: Int16 = np.full(size, self.padding, np.int16)
        positions: Int16 = np.zeros(size, np.int16)
        weights: Float32 = np.zeros(size, np.float32)
        starts: Int32 = np.full(most_documents(size) + 1, size, np.int32)
        number: Int32 = np.full(size, len(documents), np.int32)
        skills: Int16 = np.full(most_documents(size), -1, np.int16)
        at = 0
        for index, document in enumerate(documents):
            length, answer = len(document.tokens), len(document.tokens) - document.asked
            tokens[at : at + length] = document.tokens
            positions[at : at + length] = np.arange(length)
            weights[at + document.asked - 1 : at + length - 1] = answer**-0.5
            number[at : at + length] = index
            starts[index], skills[index] = at, document.skill
            at += length
        starts[len(documents)] = at
        positions[at:] = np.arange(size - at) % LONGEST
        for index, start in enumerate(range(at, size, LONGEST)):
            starts[len(documents) + index] = start
        return Batch(tokens, positions, weights, starts, number, skills)

    def _letter(self, letter: str) -> list[int]:
        if letter not in self._letters:
            self._letters[letter] = self.tokenizer.encode(letter).ids
        return self._letters[letter]


def most_documents(size: int) -> int:
    """Return how many documents a batch of this many tokens may hold."""
    return int(size * DOCUMENTS_PER_TOKEN) + size // LONGEST + 2


def training_batch(encoder: Encoder, seed: str, index: int, size: int) -> Batch:
    """Make a batch of the training mixture."""
    source = Source(f"training {seed} {index}", held_out=False)
    chosen: list[Document] = []
    room, misses, most = size, 0, int(size * DOCUMENTS_PER_TOKEN)
    while misses < 8 and room > 64 and len(chosen) < most:
        conversations = [mixture.draw(source) for _ in range(max(8, room // 300))]
        for document in encoder.documents(conversations):
            if len(document.tokens) <= room and len(chosen) < most:
                chosen.append(document)
                room -= len(document.tokens)
            else:
                misses += 1
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


def training_batches(tokenizer: Tokenizer, seed: str, size: int, indices: range, processes: int) -> Iterator[Batch]:
    """Make these batches, in order. With no processes they are made where they are used."""
    if processes == 0:
        encoder = Encoder(tokenizer)
        for index in indices:
            yield training_batch(encoder, seed, index, size)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (tokenizer.to_str(),))
    waiting: deque[Future[Batch]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(_make, seed, index, size))
            if len(waiting) > processes * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
