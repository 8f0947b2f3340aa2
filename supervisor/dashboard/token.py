"""The token that actions need: made at the first start, kept in the state folder, readable by its owner alone."""

import hmac
import os
import secrets
from pathlib import Path
from typing import Final

BYTES: Final = 24
SHORTEST: Final = 16
"""Characters below which a token is no secret: what is there is taken for damaged, and made anew."""


def read(path: Path) -> str:
    """Return the token, or nothing where there is none."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def have(path: Path) -> str:
    """Return the token, making one where there is none; raises OSError where it cannot be written."""
    known = read(path)
    if len(known) >= SHORTEST:
        return known
    made = secrets.token_urlsafe(BYTES)
    spare = path.with_name(f".{path.name}.new")
    spare.unlink(missing_ok=True)
    with os.fdopen(os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made + "\n")
    spare.replace(path)
    return made


def proves(token: str, header: str) -> bool:
    """Whether an `Authorization` header carries the token; takes as long for a near miss as for a wild guess."""
    kind, _, given = header.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
