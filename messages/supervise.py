"""What the command line asks of a supervisor, and what it is told: the state of a cluster as people want to see it."""

from typing import Literal

from msgspec import Struct

from messages.gate import Gate
from messages.ids import Role
from messages.lifecycle import Probed


class Order(Struct, kw_only=True, omit_defaults=True):
    """Ask for something to be done to one slot; or to a whole `model`, by name or alias, or to its slots of one `role`.

    `halt` asks that a rolling restart of the model goes no further. `level` is how much a supervisor is to log.
    """

    slot: str = ""
    model: str = ""
    role: str = ""
    halt: bool = False
    level: str = ""


class Said(Struct, kw_only=True, omit_defaults=True):
    """What became of an order; `done` is false where it was refused, and `message` says why.

    `roll` is the id of the rolling restart that was begun.
    """

    done: bool
    message: str
    roll: str = ""


class Rolling(Struct, kw_only=True, omit_defaults=True):
    """A model's last rolling restart: `done` of `total` slots, `at` the slot whose turn it is.

    `state`: going, done or stopped, and `why`. `role` is empty where all roles are meant.
    """

    id: str
    model: str
    role: str = ""
    at: str = ""
    done: int = 0
    total: int = 0
    state: str = "going"
    why: str = ""


class SlotStatus(Struct, kw_only=True, omit_defaults=True):
    """One slot as its supervisor sees it.

    `state`: waiting, starting, loading, standby, ready, draining, killing, stopped or failed; `seconds` for how long;
    `live` whether requests may be sent there. `reason` is the last reason for a restart or a stop, `planned` whether
    it was asked for. `stage` is what a loading slot is at. The figures are those of the last heartbeat. `http` is the
    address of a processor's door or of the publisher's metrics; `events` are the ZMQ endpoints of KV events that stay
    there. An external slot's `host` and `pid` are those that its actor has registered. `probe` is the last health
    probe of an engine that has been idle long enough for one. `recovery` has the seconds from its last death to its
    next ready by stage (`supervisor.recovery.STAGES`), `recovered` how long ago that was; empty while there was none.
    `standby` says that it is an understudy, warm and without work. `tokens` counts those that its engine has generated
    in this life.
    """

    slot: str
    role: Role
    model: str
    state: str
    seconds: float
    live: bool = False
    generation: int = 0
    restarts: int = 0
    reason: str = ""
    planned: bool = False
    pid: int | None = None
    gpus: list[int] = []
    spawn: Literal["prefork", "plain", "external"] = "plain"
    stage: str = ""
    load_seconds: float = 0.0
    in_flight: int = 0
    queued: int = 0
    capacity: int = 0
    kv_used: int = 0
    kv_total: int = 0
    rss_bytes: int = 0
    http: str = ""
    events: list[str] = []
    host: str = ""
    probe: Probed | None = None
    recovery: dict[str, float] = {}
    recovered: float = 0.0
    standby: bool = False
    tokens: int = 0


class Status(Struct, kw_only=True, omit_defaults=True):
    """A whole cluster; `supervisor` is its pid, None if none lives, `nats_pid` that of an embedded server.

    `dashboard` is the address of the supervisor's page, empty if there is none.
    """

    cluster: str
    host: str
    supervisor: int | None = None
    uptime: float = 0.0
    nats: list[str] = []
    nats_up: bool = False
    nats_pid: int | None = None
    http: dict[str, str] = {}
    gates: list[Gate] = []
    slots: list[SlotStatus] = []
    dashboard: str = ""
    rolling: list[Rolling] = []
