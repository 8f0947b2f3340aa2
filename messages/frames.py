"""Tokens on their way back: one message for each turn of an actor's loop and processor, with all its streams in it.

Frames are numbered from 1 for each pair of sender and receiver (both incarnations). The receiver acknowledges
cumulatively; the sender keeps what is not acknowledged, within a bound, and sends it again on the receiver's word.
These are the only structs on the token path, hence arrays on the wire: 17 bytes where a map takes 67.
"""

from msgspec import Struct


class Finish(Struct, array_like=True, gc=False):
    """The end of one attempt at one actor.

    `reason`: "stop", "length", "prefilled" (prefill's good end), "abort" (asked for) or "error"; `code` is HTTP's,
    0 where all is well; `matched` is the token id that stopped it, if one did. Counts are the engine's.
    """

    reason: str
    code: int = 0
    message: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    matched: int | None = None


class Said(Struct, array_like=True, gc=False):
    """The text of an item's tokens, by an engine that has the tokenizer itself; half a character is held back.

    With the first item of an attempt comes how many tokens the chat was, and how its rendering ends.
    """

    text: str
    prompt_tokens: int = 0
    opening: str = ""


class Item(Struct, array_like=True, gc=False):
    """What one stream got: packed token ids, of which the first is output token number `position`.

    `logprobs` are theirs (`codec.pack_logprobs`), None for those who did not ask: one byte. With no tokens they are
    those of the prompt but its first token, of which nobody can tell how likely it was. `said` is there for a chat that
    the engine renders, and then an item has one token at most.
    """

    request: str
    attempt: int
    position: int
    tokens: bytes
    finish: Finish | None = None
    logprobs: bytes | None = None
    said: Said | None = None


class Frame(Struct, array_like=True, gc=False):
    """All that one turn brought for one processor; `base` is the oldest number that the sender can still send again."""

    sender: str
    seq: int
    base: int
    items: list[Item]


class Ack(Struct, array_like=True, tag="ack"):
    """Everything up to and including `seq` has been received by `receiver`."""

    receiver: str
    seq: int


class Hello(Struct, array_like=True, tag="hello"):
    """The receiver is (back) on the bus, or misses frames: send everything after `seq` again."""

    receiver: str
    seq: int


Receipt = Ack | Hello
