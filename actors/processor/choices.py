"""Several choices as one request: each is a job of its own, and all together have one last word.

Life: the service begins a job for each choice, with the group's `member` as its sink, and then calls `begun`. The jobs
run, are moved and end as any other. The first error is the error of the whole request, and ends the others; so does
whatever ends the request itself: the client's leaving, another processor's claim.
"""

import time
import uuid
from collections.abc import Callable

from actors.processor.journal import Job, Journal, Outcome, Piece, Sink
from messages.submit import Done, Error, Usage


def choice_id(request: str, index: int) -> str:
    """Name one choice's job, the same in every processor that takes the request on."""
    return str(uuid.uuid5(uuid.UUID(request), str(index)))


class Member:
    """The sink of one choice's job."""

    __slots__ = ("_group",)

    def __init__(self, group: "Group") -> None:
        self._group = group

    def accepted(self, job: Outcome) -> None:
        """Say nothing: the request is accepted when all its choices are."""

    def grown(self, job: Outcome) -> None:
        """Tell the client that there is something to take."""
        self._group.grown()

    def ended(self, job: Outcome) -> None:
        """See what that means for the request."""
        self._group.ended(job.last)

    def left(self, job: Outcome) -> None:
        """Say nothing: the group has been left as a whole."""


class Group:
    """One request with several choices; `each` is how many there are of one prompt, which stand next to each other.

    `on_over` is called once, when the request has had its last word or is somebody else's.
    """

    def __init__(
        self, request: str, sink: Sink, journal: Journal, each: int, on_over: Callable[["Group"], None]
    ) -> None:
        self.id = request
        self.sink = sink
        self.last: Done | Error | None = None
        self.over = False
        self.started = time.time()
        self.jobs: list[Job] = []
        self.member = Member(self)
        self._journal = journal
        self._each = each
        self._on_over = on_over
        self._told: list[bool] = []
        self._next = 0
        self._begun = False

    @property
    def attempt(self) -> int:
        """The highest attempt of its jobs: what the client must fence by."""
        return max(job.attempt for job in self.jobs)

    @property
    def claim(self) -> int:
        """The attempt with which the client's submission began."""
        return self.jobs[0].claim

    def begun(self) -> None:
        """All choices have begun: from here on the client hears of them."""
        self._begun = True
        self._told = [False] * len(self.jobs)
        self.sink.accepted(self)
        self.ended(None)

    def grown(self) -> None:
        """A choice has something to take."""
        if self._begun and not self.over:
            self.sink.grown(self)

    def ended(self, last: Done | Error | None) -> None:
        """A choice may have ended: the request has, if that was an error or the last one."""
        if self.over or not self._begun:
            return
        failed = last if isinstance(last, Error) else None
        for job in self.jobs:
            failed = failed or (job.last if isinstance(job.last, Error) else None)
        if failed is not None:
            self.end(self.error(failed.code, failed.message, failed.retry_after))
        elif all(job.over for job in self.jobs):
            self.end(self._done())
        elif last is not None:
            self.sink.grown(self)

    def end(self, last: Done | Error) -> None:
        """Say the last word, and stop what is still being done."""
        if self.over:
            return
        self.over = True
        self.last = last
        self.stop()
        self._on_over(self)
        self.sink.ended(self)

    def leave(self) -> None:
        """Let go of the request without a word: somebody else owns it now."""
        if not self.over:
            self.over = True
            for job in self.jobs:
                self._journal.leave(job)
            self._on_over(self)
            self.sink.left(self)

    def stop(self) -> None:
        """End the jobs that are left."""
        for job in self.jobs:
            self._journal.end(job, job.error(499, "the request has ended"))

    def take(self) -> Piece | None:
        """Give what one choice has for the client, each in turn; with the last of it, its finish."""
        for step in range(len(self.jobs)):
            index = (self._next + step) % len(self.jobs)
            job = self.jobs[index]
            piece = job.take()
            if isinstance(job.last, Done) and not self._told[index]:
                self._told[index] = True
                piece = piece or Piece(len(job.tokens), [], "", "", [])
                piece.finish_reason = job.last.finish_reason
            if piece is not None:
                piece.index = index
                self._next = index + 1
                return piece
        return None

    def error(self, code: int, message: str, retry_after: float | None = None) -> Error:
        """Make the last word of a request that did not end well."""
        return Error(id=self.id, code=code, message=message, attempt=self.attempt, retry_after=retry_after)

    def _done(self) -> Done:
        ends = [job.last for job in self.jobs if isinstance(job.last, Done)]
        return Done(
            id=self.id,
            attempt=self.attempt,
            finish_reason=ends[0].finish_reason,
            usage=Usage(
                prompt_tokens=sum(end.usage.prompt_tokens for end in ends[:: self._each]),
                completion_tokens=sum(end.usage.completion_tokens for end in ends),
                cached_tokens=sum(end.usage.cached_tokens for end in ends[:: self._each]),
            ),
            resumed=any(end.resumed for end in ends),
            finish_reasons=[end.finish_reason for end in ends],
        )
