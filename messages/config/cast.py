"""The roles of a model's cast: how many slots each has, what a slot takes, and how it is started and started again."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from messages.config.written import Count, Port, Seconds, Written

Spawn = Literal["auto", "prefork", "plain", "external"]
"""Who starts a slot, and how: the supervisor by forking a warm parent or plainly, or another manager."""


class Http(Written, kw_only=True):
    """Where a model's processors answer HTTP; they share the port (0: a free one), off with `enabled: false`."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8000


class Restart(Written, kw_only=True):
    """When a slot is started again, in OTP's words; every time in seconds.

    At most `intensity` restarts within `period`, after which the slot is failed. Between two starts `backoff`,
    doubled each time up to `backoff_max`, with a jitter of a fifth; forgotten after `forget` in ready.
    `crashes_before_ready` counts apart those that never became ready.
    """

    type: Literal["permanent", "transient", "temporary"] = "permanent"
    intensity: Count = 5
    period: Seconds | None = None
    backoff: Seconds = 0.2
    backoff_max: Seconds = 30.0
    forget: Seconds = 60.0
    crashes_before_ready: Count = 3


class Part(Written, kw_only=True):
    """One role in a model's cast: how many slots, what each takes, and how it is started.

    `capacity` is how many requests a slot takes at once. `load_deadline` and `drain_deadline` are in seconds.
    `args` are SGLang's own arguments (any name of its ServerArgs) for this role; `gpus` are the indices a slot
    owns, one list for each slot; left out, it is given a free one. `share_gpus: true` lets slots that all say so
    have a GPU together; `memory_share` is what a slot takes of each one's memory for weights and KV cache
    (docs/gpu.md). `near_cpus` binds it to the CPUs near its GPUs. `min_ready` is how many must be ready for the
    gate to stay open. `advertise` is the address at which other hosts reach this one (decode reaches prefill's
    bootstrap server there): an address, a host's name, or `auto` for whatever the name of the actor's own host
    stands for. `spawn: external` says that another manager starts the slots (docs/external.md); left at `auto`, the
    model's `spawn` counts. `understudies` (of prefill, decode and encoder) are warm spares beyond `count`: loaded, with
    slots and GPUs of their own, and at work as soon as one of the others is gone (docs/restarts.md).
    """

    count: Count = 1
    capacity: Annotated[int, Meta(ge=1)] = 64
    min_ready: Count = 1
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    gpus: list[list[Count]] = []
    share_gpus: bool = False
    memory_share: Annotated[float, Meta(gt=0, lt=1)] | None = None
    near_cpus: bool = True
    spawn: Spawn = "auto"
    advertise: str = "127.0.0.1"
    load_deadline: Seconds | None = None
    drain_deadline: Seconds = 30.0
    restart: Restart | None = None
    http: Http | None = None
    understudies: Count = 0

    @property
    def slots(self) -> int:
        """How many slots there are, understudies included."""
        return self.count + self.understudies
