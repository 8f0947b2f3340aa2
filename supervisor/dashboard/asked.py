"""What a request's query says, read and bounded; what makes no sense is refused with the name of the field."""

import math

from aiohttp import web

from supervisor.dashboard.refusal import RefusalError


def number(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """Read a whole number between two bounds. Raises RefusalError."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18 or not least <= int(text) <= most:
        raise RefusalError(400, f"{name}: {text[:40]!r} is not a whole number from {least} to {most}")
    return int(text)


def moment(request: web.Request, name: str) -> float:
    """Read a moment in seconds since 1970; 0 where there is none. Raises RefusalError."""
    text = request.query.get(name, "")
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RefusalError(400, f"{name}: {text[:40]!r} is no moment in seconds since 1970")
    return value


def word(request: web.Request, name: str) -> str:
    """Read a short text."""
    return request.query.get(name, "")[:256]
