"""The HTTP ports of the models: chosen once, seen to be nobody else's, and held for all processors of a model.

Processors share their model's port by SO_REUSEPORT. The supervisor holds a socket of the same kind, bound and never
listening: no connection reaches it, and nobody else can take the port between two lives of the processors.
"""

import socket

from messages.config import ConfigError, Dashboard, Http


class PortError(Exception):
    """A port cannot be had; the text says who wants it and what would help."""


class Ports:
    """The ports of all models, held until `close`."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self.of: dict[str, int] = {}

    def take(self, alias: str, http: Http, known: int | None, shared: bool) -> int:
        """Take a model's port: the configured one, or the one `known` from before, or a free one.

        `shared` says that processors of ours may listen there already. Raises PortError, or ConfigError for a host
        that is none of this machine's.
        """
        port = http.port or known or 0
        if not shared:
            try:
                bind(http.host, port, share=False).close()
            except PortError:
                if http.port:
                    raise
                port = 0
        held = bind(http.host, port, share=True)
        self._held.append(held)
        self.of[alias] = int(held.getsockname()[1])
        return self.of[alias]

    def close(self) -> None:
        """Let go of all ports."""
        for held in self._held:
            held.close()
        self._held.clear()


def base_url(http: Http | Dashboard, port: int) -> str:
    """Write a door's address as clients use it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int, *, share: bool, key: str = "http") -> socket.socket:
    """Bind a socket, and listen on it no more than that; `key` is the configuration's for it.

    Raises PortError for a port that cannot be had, ConfigError for a host that is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"{key}.host: {host}: {error.strerror or error}") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except PermissionError:
        bound.close()
        raise PortError(f"{key}.port: {port} on {host} needs more rights than we have; take one above 1023") from None
    except OverflowError as error:
        bound.close()
        raise PortError(f"{key}.port: {error}") from None
    except OSError as error:
        bound.close()
        if error.errno == 99:
            raise ConfigError(f"{key}.host: {host} is no address of this machine") from None
        why = f"is in use by somebody else; stop that, or set another {key}.port (0: a free one)"
        raise PortError(f"{key}.port: {port} on {host} {why}") from None
    return bound
