"""What one host has beside its models: the publisher with its metrics, the dashboard, and logs."""

import socket
from typing import Annotated, Literal

from msgspec import Meta, field

from messages.config.cast import Restart
from messages.config.written import Port, Written
from messages.ids import Slot, alias_of
from messages.logs import Format, Level


class Metrics(Written, kw_only=True):
    """Where a host's publisher answers Prometheus; a port left out is 9400, or a free one where that is taken."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port | None = None


class Publisher(Written, kw_only=True):
    """The publisher, one a host: KV events and load figures of the host's engines, and its metrics.

    `name` stands for the host in the slot `<name>-publisher-0`; left out, it is the host's own. `events: zmq` leaves KV
    events on the engines' own ZMQ sockets; the engines' registrations say where. `engines: cluster` takes in all
    engines of the cluster, not only this host's: for containers, each of which is a host of its own.
    """

    enabled: bool = True
    name: str | None = None
    http: Metrics = field(default_factory=Metrics)
    events: Literal["nats", "zmq"] = "nats"
    engines: Literal["host", "cluster"] = "host"
    spawn: Literal["plain", "external"] = "plain"
    restart: Restart | None = None

    @property
    def slot(self) -> Slot:
        """The slot of this host's publisher."""
        return Slot(self.name if self.name is not None else alias_of(socket.gethostname()), "publisher", 0)


class Dashboard(Written, kw_only=True):
    """The supervisor's page: how everything stands, what happened, and buttons for those who have its token.

    A port left out is 7070, or a free one where that is taken; 0 is a free one; a port that is given must be free.
    Everyone who reaches `host` can look; actions need the token of `troupe status` (docs/dashboard.md). `names` are the
    host names by which browsers may ask for it (a proxy's), besides addresses, localhost and this host's own name.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port | None = None
    names: list[str] = []


class Logs(Written, kw_only=True):
    """What is logged, and how it is written.

    `format`: auto is text on a terminal and lines of JSON elsewhere, the log files of slots and supervisor included;
    `troupe logs` shows both as text, and what `troupe up` says on its own terminal is text unless json is asked for.
    `level` left out is `log_level`; `troupe log-level` changes it while things run. `max_bytes` bounds the log of each
    slot, what its engine itself writes included: one that has grown beyond it goes on as a new one, and five earlier
    ones are kept. Prompts, answers and secrets are logged at no level.
    """

    format: Format = "auto"
    level: Level | None = None
    max_bytes: Annotated[int, Meta(ge=65_536)] = 16 << 20
