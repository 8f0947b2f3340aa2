"""What all that people write has in common: strict structs, bounded numbers, errors that name the nearest word."""

import difflib
from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, lt=65_536)]


class ConfigError(Exception):
    """A configuration that cannot be used; the text says where, what is wrong and what would be right."""


class Written(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all that people write: every field by name, unknown fields refused."""


def nearest(name: str, known: list[str]) -> str:
    """Name the known word that is most like an unknown one, and all that are known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"known are {', '.join(known[:40])}" if known else "nothing is known there"
    return f"did you mean {close[0]!r}? {listed}" if close else listed
