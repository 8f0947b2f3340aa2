"""All that an actor is told at its start."""

from pathlib import Path

from msgspec import Struct

from messages.config import Cluster, Model, Nats, Part
from messages.ids import Slot


class Setup(Struct, frozen=True, kw_only=True):
    """All that an actor is told at its start; `folder` is its slot's own, `http_port` a processor's alone.

    `gpus` are the indices it was given, `memory_fraction` what of their memory that is free now its engine may take.
    """

    cluster: Cluster
    model: Model
    part: Part
    slot: Slot
    generation: int
    nats: Nats
    folder: Path
    http_port: int = 0
    gpus: list[int] = []
    memory_fraction: float | None = None
