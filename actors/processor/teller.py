"""Tells what a processor has counted: at most once a second, and nothing while nothing changes."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from actors.processor.post import Post
from messages import codec
from messages.subjects import Subjects
from messages.telemetry import Traffic

PERIOD: Final = 1.0
SLACK: Final = 0.05
"""Seconds by which a tick may come early and still count as a period later."""


class Teller:
    """The voice of one processor's meter; `look` says what has been counted until now."""

    def __init__(self, post: Post, subjects: Subjects, look: Callable[[], Traffic]) -> None:
        self._post = post
        self._subjects = subjects
        self._look = look
        self._said = b""
        self._said_at = -PERIOD

    def tick(self) -> None:
        """Tell if there is something new, and the last time is long enough ago; called a few times a second."""
        if time.monotonic() - self._said_at >= PERIOD - SLACK:
            self.tell(again=False)

    def tell(self, *, again: bool = True) -> None:
        """Tell now; with `again` also what has been told already."""
        told = self._look()
        known = codec.to_msgpack(msgspec.structs.replace(told, at=0.0))
        if again or known != self._said:
            self._said, self._said_at = known, time.monotonic()
            self._post.send(self._subjects.traffic(told.slot), codec.to_msgpack(told))
