"""Requests for embeddings and what comes back: kind `embed` on NATS, and the body of POST /v1/embeddings.

One request, one life: `submit.Accepted`, then `Vectors` until there is one for each input, then exactly one last word,
`submit.Done` or `submit.Error`. Vectors travel as packed 32-bit little-endian floats: 4 bytes a number where JSON takes
20, and base64 of just these bytes is what OpenAI's clients ask for (`encoding_format`).
"""

import sys
from array import array
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from messages.submit import SCHEMA, Accepted, Done, Error, Positive, Resume, TokenId

FLOAT_BYTES: Final = 4


class Embed(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Texts, or token ids, to be turned into vectors.

    `input` is a text, a list of texts, token ids, or a list of lists of token ids. `dimensions` asks for the first so
    many of a vector's numbers, of length 1 again. `encoding_format` is for the HTTP door: over NATS vectors are packed
    whatever it says. `user` is ignored.
    """

    v: int = SCHEMA
    model: str = ""
    id: str = ""
    timeout: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    resume: Resume | None = None

    input: str | list[str | TokenId | list[TokenId]]
    dimensions: Positive | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class Vectors(Struct, kw_only=True, tag="vectors", omit_defaults=True):
    """Some of the vectors, in the order of the inputs.

    `data` is packed floats (base64 of them in JSON), `dimensions` for each vector; the first one is that of input
    number `index`.
    """

    id: str
    attempt: int
    index: int
    dimensions: int
    data: bytes


Answer = Accepted | Vectors | Done | Error


def pack_floats(values: "array[float] | list[float]") -> bytes:
    """Pack numbers as 32-bit little-endian floats."""
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_floats(data: bytes | memoryview) -> "array[float]":
    """Read packed floats back; raise ValueError if the bytes are no whole number of them."""
    if len(data) % FLOAT_BYTES:
        raise ValueError(f"packed floats take {FLOAT_BYTES} bytes each; {len(data)} are no whole number of them")
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
