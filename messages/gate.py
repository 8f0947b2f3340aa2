"""The readiness gate of a model, as the leading supervisor writes it and everybody reads it."""

from msgspec import Struct


class Missing(Struct, kw_only=True):
    """One slot, or one role, that the cast wants and has not got, and why."""

    what: str
    why: str


class Gate(Struct, kw_only=True):
    """Whether new requests for a model are admitted; `epoch` is the number of its last change.

    An open gate is `degraded` while slots are missing of which the roles do not need all. `since` is the wall-clock
    time of the last change, in seconds since 1970, for people to read. `opened` says that the whole cast has been
    ready once: from then on the gate needs only as many of each role as `min_ready` says.
    """

    model: str
    alias: str
    open: bool
    epoch: int
    since: float
    degraded: bool = False
    opened: bool = False
    missing: list[Missing] = []
    http: list[str] = []
