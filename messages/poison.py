"""Requests that one actor after the other fails on, and may be the cause of it: how their error names those actors."""

import re
from collections.abc import Sequence
from typing import Final

_TOLD: Final = " actors have failed on this request: "
_NAMED: Final = re.compile(r"(?:^|; )([A-Za-z0-9_-]+#[0-9]+) ")


def as_message(failures: Sequence[str]) -> str:
    """Say in an error which actors have failed; each failure begins with an incarnation, `demo-decode-0#7 died`."""
    return f"{len(failures)}{_TOLD}{'; '.join(failures)}"


def actors(message: str) -> list[str]:
    """Return whom an error's message names as having failed on its request, in that order; empty for other errors."""
    _, told, failures = message.partition(_TOLD)
    return _NAMED.findall(failures) if told else []
