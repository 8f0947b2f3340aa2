"""The stages of loading: how long each took, told to whoever reads the slot's pipe while it goes on."""

import contextlib
import os
import time
from pathlib import Path

from messages import codec
from messages.lifecycle import Stage, StageName


class Stages:
    """Stages in the order in which they began; times in seconds."""

    def __init__(self, pipe: Path, generation: int) -> None:
        self._pipe = pipe
        self._generation = generation
        self._began = time.monotonic()
        self._begins: dict[str, float] = {}
        self._ended: float | None = None

    def report(self, stage: StageName, detail: str) -> None:
        """Note the begin of a stage, or how far it is, and write it to the pipe if somebody has it open."""
        seconds = time.monotonic() - self._began
        self._begins.setdefault(stage, seconds)
        line = codec.to_json(Stage(generation=self._generation, stage=stage, seconds=round(seconds, 3), detail=detail))
        with contextlib.suppress(OSError):
            pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, line + b"\n")
            finally:
                os.close(pipe)

    def end(self) -> None:
        """Loading is over; the first call counts."""
        if self._ended is None:
            self._ended = self.total

    @property
    def total(self) -> float:
        """From the start to the end of loading, or until now while it goes on."""
        return time.monotonic() - self._began if self._ended is None else self._ended

    @property
    def lengths(self) -> dict[str, float]:
        """How long each stage took."""
        begins = list(self._begins.items())
        ends = [begin for _, begin in begins[1:]] + [self.total]
        return {name: round(end - begin, 3) for (name, begin), end in zip(begins, ends, strict=True)}
