"""What the supervisor and a prefork parent say to each other, one JSON line each, over a Unix socket.

The parent has imported everything and touched no device; it forks actors on command, waits for those it forked, and
tells whichever supervisor is connected. An exit that nobody was there to hear is kept and told on the next connection.
"""

from msgspec import Struct


class Ready(Struct, kw_only=True, tag="ready"):
    """First line to a supervisor that connects: the parent's pid and how long its imports took, in seconds."""

    pid: int
    import_seconds: float


class Spawn(Struct, kw_only=True, tag="spawn"):
    """Fork an actor: `argv` as `python -m actors` would get it, `env` on top of the parent's, its output to `log`."""

    slot: str
    generation: int
    argv: list[str]
    env: dict[str, str]
    log: str


class Spawned(Struct, kw_only=True, tag="spawned"):
    """The actor runs, in a session of its own; `start_time` is the 22nd field of /proc/<pid>/stat, in clock ticks."""

    slot: str
    generation: int
    pid: int
    start_time: int


class Failed(Struct, kw_only=True, tag="failed"):
    """The actor could not be forked, and why (CUDA initialised, extra threads, ...); start it the plain way."""

    slot: str
    generation: int
    reason: str


class Exited(Struct, kw_only=True, tag="exited"):
    """A forked actor has ended: its exit code, or minus the signal that ended it."""

    slot: str
    generation: int
    pid: int
    status: int


class Heard(Struct, kw_only=True, tag="heard"):
    """The supervisor has taken in the exit of this pid; it need not be told again."""

    pid: int


ToParent = Spawn | Heard
FromParent = Ready | Spawned | Failed | Exited
