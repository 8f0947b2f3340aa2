"""The socket of the page: had before anything is started, so that a port that is taken is told at once."""

import contextlib
import logging
import socket
from typing import Final

from messages.config import Dashboard
from supervisor.ports import PortError, bind

log = logging.getLogger("troupe.supervisor")

PORT: Final = 7070
BACKLOG: Final = 128
KEY: Final = "dashboard"


def listen(config: Dashboard, known: int) -> socket.socket:
    """Listen on the configured port, or on the one `known` from before (0: none), or on 7070, or on a free one.

    Raises PortError where a configured port is taken, ConfigError for a host that is none of this machine's.
    """
    if config.port:
        return _listening(config.host, config.port)
    if known:
        with contextlib.suppress(PortError):
            return _listening(config.host, known)
    if config.port is None and known != PORT:
        try:
            return _listening(config.host, PORT)
        except PortError:
            free = _listening(config.host, 0)
            log.info("port %d is in use by somebody else; the page is at port %d", PORT, free.getsockname()[1])
            return free
    return _listening(config.host, 0)


def _listening(host: str, port: int) -> socket.socket:
    bound = bind(host, port, share=False, key=KEY)
    try:
        # Bound alone it is not ours yet: with SO_REUSEADDR two may bind, and only one can listen.
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise PortError(
            f"{KEY}.port: {port} on {host} is in use by somebody else; stop that, or set another {KEY}.port (0: a free "
            "one)"
        ) from None
    bound.setblocking(False)
    return bound
