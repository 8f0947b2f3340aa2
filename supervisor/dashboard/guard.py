"""Who may ask: names that a stranger's page can point here, and other pages' requests, are refused."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from supervisor.dashboard.refusal import RefusalError

LONGEST: Final = 256

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Put on every answer that has none of its own for it."""


class Guard:
    """Knows the names by which this server may be asked."""

    def __init__(self, host: str, names: Iterable[str]) -> None:
        self._names = {"localhost", host.lower(), socket.gethostname().lower(), *(name.lower() for name in names)}

    def check_host(self, request: web.BaseRequest) -> None:
        """Refuse a name that is none of ours, with 421.

        DNS rebinding: a stranger's page may have its own name stand for our address, and its browser then takes us for
        the stranger's server. An address written as such cannot be had that way. Raises RefusalError.
        """
        asked = request.headers.get("Host", "")
        name = _name(asked)
        if name in self._names or _is_address(name):
            return
        raise RefusalError(
            421, f"this server is not called {asked[:LONGEST]!r}; `dashboard.names` in the configuration can say so"
        )

    def check_origin(self, request: web.BaseRequest) -> None:
        """Refuse what another page's script or form has sent, with 403. Raises RefusalError."""
        site = request.headers.get("Sec-Fetch-Site", "none")
        origin = request.headers.get("Origin")
        own = request.headers.get("Host", "").lower()
        if site not in ("same-origin", "none") or (origin is not None and urlsplit(origin).netloc.lower() != own):
            raise RefusalError(403, "actions are taken from this server's own page alone")


def _name(host: str) -> str:
    """Take the port off a Host header, and the brackets off an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
