"""The life of an actor in messages: its states, registration, heartbeat, loading stages, events and exit codes."""

from enum import IntEnum, StrEnum
from typing import Any, Final, Literal

from msgspec import Struct

from messages.ids import Role

LEASE: Final = 3.0
HEARTBEAT_PERIOD: Final = 0.5


class State(StrEnum):
    """Where an actor is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    REGISTERING = "registering"
    STANDBY = "standby"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.STARTING: frozenset({State.LOADING, State.STOPPED, State.FAILED}),
    State.LOADING: frozenset({State.REGISTERING, State.STOPPED, State.FAILED}),
    State.REGISTERING: frozenset({State.READY, State.STANDBY, State.STOPPED, State.FAILED}),
    State.STANDBY: frozenset({State.REGISTERING, State.DRAINING, State.FAILED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.STOPPED, State.FAILED}),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
}


class Exit(IntEnum):
    """Why an actor's process ended, as its exit code; anything else, or a signal, is a crash of unknown cause."""

    OK = 0
    INTERNAL = 1
    CONFIG = 10
    BUS = 11
    LOAD = 12
    WARM_UP = 13
    REGISTER = 14
    BUS_LOST = 15
    ENGINE_DIED = 16
    DRAIN_DEADLINE = 17
    ABORTED = 18
    LOAD_DEADLINE = 19


NOT_RETRIED: Final = frozenset({Exit.CONFIG, Exit.WARM_UP})
"""Exits that starting again cannot mend: they need a person."""


class ExitNote(Struct, kw_only=True):
    """What an actor writes to `exit.json` in its slot's folder before every exit that it means."""

    generation: int
    code: int
    reason: str


StageName = Literal["start", "download", "import", "weights", "kv_pool", "warm_up", "register"]


class Stage(Struct, kw_only=True, omit_defaults=True):
    """One line of JSON on the pipe from a loading actor to whoever started it; `seconds` is the time since its start.

    The pipe is a named one in the slot's folder, so that a supervisor that comes later can go on reading.
    """

    generation: int

    stage: StageName
    seconds: float
    detail: str = ""


class KvSource(Struct, kw_only=True, omit_defaults=True):
    """Where one DP rank of an engine publishes its KV events in SGLang's wire format, by ZMQ.

    `endpoint` is a PUB socket, `replay` a ROUTER socket that says again what is asked for, empty if there is none.
    """

    dp_rank: int = 0
    endpoint: str
    replay: str = ""


class Registration(Struct, kw_only=True, omit_defaults=True):
    """What a slot's owner says of itself in the registry; the routers and the gate go by it.

    `capacity` is the number of requests it takes at once. `bootstrap` is (host, port), prefill's alone. `http` is the
    address of a processor's door, or of the publisher's metrics. `block_size` is in tokens, `total_blocks` the KV
    pool. `started` is wall-clock time. `events` says where KV events are to be had: "nats" (as `kv.<slot>`), "zmq" (at
    `kv_sources` themselves) or "" for none. `metrics` is the folder on its host with the engine's Prometheus files.
    `grammars` says whether the engine can hold an answer to one (a JSON schema, a regular expression, EBNF).
    `dimensions` is the length of an encoder's vectors.
    """

    slot: str
    role: Role
    generation: int
    state: State
    host: str
    pid: int
    model: str = ""
    alias: str = ""
    capacity: int = 0
    context_length: int = 0
    vocab_size: int = 0
    block_size: int = 0
    total_blocks: int = 0
    dp_ranks: int = 1
    bootstrap: tuple[str, int] | None = None
    http: str | None = None
    engine: str = ""
    engine_version: str = ""
    gpus: list[int] = []
    load_seconds: float = 0.0
    stages: dict[str, float] = {}
    started: float = 0.0
    events: str = ""
    kv_sources: list[KvSource] = []
    metrics: str = ""
    dimensions: int = 0
    grammars: bool = False


class Child(Struct, array_like=True):
    """One process of the engine: its state as /proc has it (R, S, D, T, Z; X for gone) and its CPU time so far."""

    pid: int
    state: str
    cpu_seconds: float


class RankLoad(Struct, array_like=True):
    """How loaded one DP rank is by the engine's own account, which is `age` seconds old; KV use is in blocks."""

    dp_rank: int
    running: int
    queued: int
    kv_used: int
    kv_total: int
    age: float = 0.0


class Probed(Struct, kw_only=True, omit_defaults=True):
    """How an engine's last health probe went, `age` seconds ago.

    `result`: ok (answered within `seconds`), failed (the engine said so, in `message`), or silent (no answer within the
    deadline). `failures` counts those since the last good one.
    """

    result: str
    age: float = 0.0
    seconds: float = 0.0
    failures: int = 0
    message: str = ""


class Heartbeat(Struct, kw_only=True, omit_defaults=True):
    """The renewal of a lease, with what the routers and the watchers need.

    `steps` counts the batch outputs received from the engine; `prefilling` the requests admitted that have no token
    yet, `prefill_tokens` the length of their prompts together; `queued` those that the engine holds back; KV use is in
    blocks. `loads` is the engine's own account for each DP rank, where it gives one. `unanswerable` counts a
    processor's requests whose reply subject is none that may be answered: all that is ever said of these. `probe` is
    an engine's last health probe, None before the first. `bus_dropped` counts messages that the actor was too slow for.
    `tokens` counts those that its engine has generated. `resting` says that its engine was told to do nothing:
    "paused", or "asleep" without its GPU's memory; or that a trace of it is recorded, "profiling". Empty as a rule.
    """

    slot: str
    generation: int
    state: State
    in_flight: int = 0
    queued: int = 0
    prefilling: int = 0
    prefill_tokens: int = 0
    capacity: int = 0
    steps: int = 0
    kv_used: int = 0
    kv_total: int = 0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    children: list[Child] = []
    loads: list[RankLoad] = []
    bus_reconnects: int = 0
    unanswerable: int = 0
    probe: Probed | None = None
    bus_dropped: int = 0
    tokens: int = 0
    resting: str = ""


class Event(Struct, kw_only=True, omit_defaults=True):
    """Something that happened, as the event stream keeps it; `at` is wall-clock time in seconds since 1970.

    `what` for the topic actor is the new state; for restart: died, respawn, gave_up, stalled, ...; for gate: opened,
    closed, degraded; for drill: its own words. `planned` tells what was asked for from what befell us. `detail` of a
    crash has `exit`, `code` and `last_lines`; of the `ready` after it `recovery`, seconds by stage (docs/watching.md).
    """

    topic: str
    of: str
    what: str
    at: float
    generation: int = 0
    reason: str = ""
    planned: bool = False
    detail: dict[str, Any] = {}


class Control(Struct, kw_only=True, omit_defaults=True):
    """A control verb's arguments: the request to abort, the fault to show, the deadline in seconds.

    `out` is the processor whose attempts are meant, as `work.Job` has it; all of them where it is left out. `reason` is
    why an exit is asked for. `level` is how much is to be logged.
    """

    request: str = ""
    attempt: int | None = None
    seconds: float = 0.0
    fault: str = ""
    generation: int = 0
    out: str = ""
    reason: str = ""
    level: str = ""


class Answer(Struct, kw_only=True, omit_defaults=True):
    """A slot's answer to a control verb."""

    slot: str
    generation: int
    state: State
    done: bool = True
    message: str = ""
