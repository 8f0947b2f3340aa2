"""The history of a drill: one JSON line for each thing that a client, or the observer beside them, has seen.

Times are seconds of the host's monotonic clock, which all its processes share. What `evt.*` says carries the wall clock
of whoever said it; the observer turns that into the same seconds, by the difference that the head line has.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from messages import codec
from supervisor.drills.records import Record


class Head(Struct, tag="head", tag_field="line", kw_only=True):
    """What was rehearsed, on what; the first line of a history.

    `wall` less `monotonic` turns a line's time into seconds since 1970. `budgets` has for each slot how many crashes
    (`intensity`) within how many seconds (`period`) are allowed. `targets` are the slots that the fault is meant for.
    `may_close`: a processor is among them, so HTTP connections may be closed. `lossy`: messages may be lost on the way.
    `held_up` are incarnations whose messages were kept on their way, and may arrive after their senders' end.
    `itl_p99` is the objective for streams that were not hit, in seconds; None where everything is hit.
    """

    run: str
    drill: str
    wall: float
    monotonic: float
    command: str = ""
    seed: int = 0
    model: str = ""
    alias: str = ""
    budgets: dict[str, tuple[int, float]] = {}
    targets: list[str] = []
    may_close: bool = False
    lossy: bool = False
    may_give_up: list[str] = []
    held_up: list[str] = []
    itl_p99: float | None = None
    gpus: int = 0
    facts: dict[str, str] = {}


class Mark(Struct, tag="mark", tag_field="line", kw_only=True):
    """Something that the drill itself did or found: load, injected, proven, healed, recovered, finished."""

    at: float
    name: str
    text: str = ""


class Happened(Struct, tag="event", tag_field="line", kw_only=True, omit_defaults=True):
    """One event of `evt.*` (`messages.lifecycle.Event`)."""

    at: float
    topic: str
    of: str
    what: str
    generation: int = 0
    reason: str = ""
    planned: bool = False
    detail: dict[str, Any] = {}


class Registered(Struct, tag="registered", tag_field="line", kw_only=True, omit_defaults=True):
    """A registration as the observer found it in the registry; `state` is empty where it was deleted."""

    at: float
    slot: str
    generation: int = 0
    state: str = ""


class GateSeen(Struct, tag="gate", tag_field="line", kw_only=True):
    """A gate as the observer read it at `at`; `since` is when its supervisor decided so."""

    at: float
    alias: str
    open: bool
    epoch: int
    since: float


class Beats(Struct, tag="beats", tag_field="line", kw_only=True):
    """The first and the last heartbeat of one incarnation."""

    slot: str
    generation: int
    first: float
    last: float


class Worked(Struct, tag="worked", tag_field="line", kw_only=True):
    """The first and the last frame that one GPU actor's incarnation has sent, and how many."""

    slot: str
    generation: int
    first: float
    last: float
    frames: int


class Moved(Struct, tag="moved", tag_field="line", kw_only=True):
    """The first frame of a later attempt of a request, at an actor of this slot: it has gone on elsewhere.

    HTTP clients are not told of attempts, so for their requests this is the only sign of it.
    """

    at: float
    request: str
    attempt: int
    slot: str


class Memory(Struct, tag="memory", tag_field="line", kw_only=True):
    """How much of a GPU's memory was used, in MiB."""

    at: float
    gpu: int
    used: int


Line = Head | Mark | Happened | Registered | GateSeen | Beats | Worked | Moved | Memory | Record


def write(path: Path, lines: Iterable[Line]) -> None:
    """Add lines to a file."""
    with path.open("ab") as file:
        for line in lines:
            file.write(codec.to_json(line) + b"\n")


def read(path: Path) -> list[Line]:
    """Read a history; a last line that was cut off by its writer's death is left out. Raises ValueError for others."""
    lines = path.read_bytes().split(b"\n")
    found: list[Line] = []
    for number, text in enumerate(lines[:-1], 1):
        try:
            line: Line = codec.from_json(text, Line)  # type: ignore[arg-type]
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        found.append(line)
    return found
