"""Where an engine's telemetry goes: sockets for its KV events and a folder for its Prometheus files.

While only the host's publisher listens, the sockets are Unix ones in a folder that nobody else may enter: KV events
hold the prompts' token ids, and no port can be taken by somebody else. Where others are to listen (`publisher.events:
zmq`, or a publisher for the whole cluster), they are TCP ports on the address that the cast advertises.
"""

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

from msgspec import Struct

from actors.engines.engine import ConfigurationError
from actors.setup import Setup
from messages import leftovers
from messages.lifecycle import KvSource

PATH_LIMIT: Final = 105
"""Bytes that the name of a Unix socket may have: the kernel's limit is 107, and a rank may have three digits."""
FOLDER: Final = "kv"
EVENTS: Final = "tcp:0"
REPLAY: Final = "tcp-r:0"
PORT_TRIES: Final = 64


class Places(Struct, frozen=True, kw_only=True):
    """The first DP rank's endpoints, as SGLang's `kv_events_config` has them, and the folder for Prometheus files.

    `folder` is that of the Unix sockets, None where they are TCP ports.
    """

    endpoint: str
    replay: str
    metrics: str
    folder: Path | None = None

    def clear(self) -> None:
        """Remove the sockets: a folder elsewhere is not the slot's, and nobody else would."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def sources(self, dp_ranks: int) -> list[KvSource]:
        """List the endpoints of every DP rank."""
        return [
            KvSource(dp_rank=rank, endpoint=of_rank(self.endpoint, rank), replay=of_rank(self.replay, rank))
            for rank in range(dp_ranks)
        ]


def of_rank(endpoint: str, rank: int) -> str:
    """Return a DP rank's endpoint by SGLang's rule: the rank is added to the number behind the last colon.

    The rule is for ports, but holds for every endpoint with "tcp" in it: hence the names of our Unix sockets.
    """
    base, _, number = endpoint.rpartition(":")
    return f"{base}:{int(number) + rank}" if rank else endpoint


def prepare(setup: Setup, dp_ranks: int = 1) -> Places | None:
    """Make the places for one life of an engine, empty, in place of an earlier life's; None with no publisher.

    Raises ConfigurationError where the advertised address is none of this machine's.
    """
    if not setup.cluster.publisher.enabled:
        return None
    home, folder = setup.folder.resolve(), None
    metrics = home / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir(mode=0o700, exist_ok=True)
    if setup.cluster.publisher.events == "zmq" or setup.cluster.publisher.engines == "cluster":
        host = setup.part.advertise
        try:
            events = free_ports(host, 2 * dp_ranks)
        except OSError as error:
            raise ConfigurationError(f"advertise: {host}: no port for KV events can be had there: {error}") from None
        endpoint, replay = tcp(host, events), tcp(host, events + dp_ranks)
    else:
        folder = _private(home / FOLDER)
        endpoint, replay = f"ipc://{folder / EVENTS}", f"ipc://{folder / REPLAY}"
    return Places(endpoint=endpoint, replay=replay, metrics=str(metrics), folder=folder)


def tcp(host: str, port: int) -> str:
    """Write a TCP endpoint; an IPv6 address stands in brackets."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def free_ports(host: str, count: int) -> int:
    """Find `count` ports in a row that are free now; return the first. Raises OSError if there are none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(PORT_TRIES):
        probes = [socket.socket(family) for _ in range(count)]
        try:
            probes[0].bind((host, 0))
            first: int = probes[0].getsockname()[1]
            for offset, probe in enumerate(probes[1:], 1):
                probe.bind((host, first + offset))
        except (OSError, OverflowError):
            continue
        else:
            return first
        finally:
            for probe in probes:
                probe.close()
    raise OSError(f"no {count} ports in a row are free on {host}")


def _private(folder: Path) -> Path:
    """Make a folder for Unix sockets that only we may enter; where its name is too long, a link leads to one elsewhere.

    What an earlier life left is removed first.
    """
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if len(str(folder / REPLAY).encode()) <= PATH_LIMIT:
        folder.mkdir(mode=0o700)
        return folder
    made = Path(tempfile.mkdtemp(prefix="troupe-"))
    leftovers.note(folder.parent, [made])
    folder.symlink_to(made)
    return made
