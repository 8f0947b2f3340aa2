"""The simulated engine's KV pool and prefix cache, in blocks, with the events that SGLang's would tell."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from actors.engines.simulated_stream import Stream
from actors.kv_wire import GPU, BlockRemoved, BlockStored
from messages.codec import unpack_tokens


class Pool:
    """The KV pool in blocks, with a prefix cache: whole blocks of prompts stay until room is needed, oldest first.

    `tell`, if set, is called with each change of the cache as SGLang's event.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.used = 0
        self._size = block_size * 4
        self._block = block_size
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.tell: Callable[[Any], None] | None = None

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-tokens // self._block)

    def admit(self, stream: Stream) -> int:
        """Take blocks for a prompt; return how many of its tokens were in the cache."""
        prompt, size = stream.prompt, self._size
        stream.blocks = self.blocks_for(stream.length)
        self.used += stream.blocks
        hits, parent, matching = 0, 0, True
        for begin in range(0, len(prompt) - size + 1, size):
            block = _chained(parent, prompt[begin : begin + size])
            if block in self._cached:
                self._cached.move_to_end(block)
                hits += matching
            else:
                matching = False
                self._cached[block] = None
                if self.tell is not None:
                    tokens = unpack_tokens(prompt[begin : begin + size])
                    self.tell(BlockStored([block], parent or None, tokens, self._block, None, GPU))
            parent = block
        self._evict()
        return min(hits * self._block, stream.length - 1)

    def _evict(self) -> None:
        removed = []
        while self._cached and len(self._cached) + self.used > self.total:
            removed.append(self._cached.popitem(last=False)[0])
        if removed and self.tell is not None:
            self.tell(BlockRemoved(removed, GPU))

    def release(self, stream: Stream) -> None:
        """Give a stream's blocks back."""
        self.used -= stream.blocks
        stream.blocks = 0


def _chained(parent: int, block: bytes) -> int:
    """Hash a block together with all that stands before it, as a signed 64-bit number: the same in every process."""
    digest = hashlib.blake2b(parent.to_bytes(8, "little", signed=True) + block, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
