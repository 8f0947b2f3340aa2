"""What a GPU actor remembers of work that is over or unwanted, so that the same words heard again begin nothing.

A processor that was cut off from NATS asks again whatever had not been answered, because it cannot know what arrived.
So work may be asked a second time when it is long done; run again, it would wait for somebody to meet who has gone on.
"""

import time
from collections import OrderedDict
from typing import Final, NamedTuple

from messages.bus import ServiceError
from messages.lifecycle import Control
from messages.work import Encode, Job

REMEMBERED: Final = 5.0
"""Seconds for which an abort that found nothing is remembered: the work that it means may still stand in the queue, for
each subscription has its own, and one that is blocked for a while reads them in any order."""
MOST_REMEMBERED: Final = 4_096
"""A question is open for a second of the time in which NATS is there, and is asked again however long NATS was away;
meanwhile nothing new comes. So a number bounds this, not a time: more than an actor takes on in such a second."""


class Ended(NamedTuple):
    """An attempt that is over: the words that asked for it, and the answer to them; None if it was not wanted."""

    words: int
    accept: bytes | None


class Aborted(NamedTuple):
    """An abort that found nothing: of the attempts up to this one, of one processor or (if empty) of all, and when."""

    attempt: int
    out: str
    at: float


class Past:
    """The memory of one actor; both halves are bounded, and forget the oldest first."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._aborted: OrderedDict[str, Aborted] = OrderedDict()

    def end(self, key: str, words: int, accept: bytes | None) -> None:
        """Note that an attempt is over. `words` stands for the message that asked for it: another one is new work."""
        self._ended[key] = Ended(words, accept)
        self._ended.move_to_end(key)
        if len(self._ended) > MOST_REMEMBERED:
            self._ended.popitem(last=False)

    def abort(self, asked: Control) -> None:
        """Note an abort that has found nothing to stop."""
        if asked.attempt is None:
            return
        self._aborted[asked.request] = Aborted(asked.attempt, asked.out, time.monotonic())
        if len(self._aborted) > MOST_REMEMBERED:
            self._aborted.popitem(last=False)

    def answer(self, job: Job | Encode, key: str, words: int) -> bytes | None:
        """Give the answer to work that is done, None for new work. Raises ServiceError 409 for what was aborted."""
        ended = self._ended.get(key)
        if ended is not None and ended.words == words:
            if ended.accept is None:
                raise aborted(job)
            return ended.accept
        early = self._aborted.get(job.request)
        if early is None or time.monotonic() - early.at > REMEMBERED:
            return None
        if job.attempt <= early.attempt and early.out in ("", job.out):
            raise aborted(job)
        return None


def aborted(job: Job | Encode) -> ServiceError:
    """Make the refusal of an attempt that nobody wants any more."""
    return ServiceError(409, f"attempt {job.attempt} of request {job.request} has been aborted")
