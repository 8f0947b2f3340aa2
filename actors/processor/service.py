"""The parts of a processor put together, and the one way in for a request, whichever door it came by."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from nats.aio.msg import Msg

from actors.processor.asks import Asks
from actors.processor.continuing import work_bytes
from actors.processor.dispatch import Dispatcher
from actors.processor.inbox import Inbox
from actors.processor.intake import Intake
from actors.processor.journal import Asked, Job, Journal, Sink
from actors.processor.line import Line
from actors.processor.post import Post
from actors.processor.refusal import RefusalError
from actors.processor.view import Seat, View
from messages import codec
from messages.bus import Bucket, Bus
from messages.config import Model
from messages.lifecycle import Heartbeat
from messages.subjects import Subjects, last_token
from messages.submit import Asked as Body
from messages.work import Own

log = logging.getLogger("troupe.processor")

THREADS: Final = 2
LONG_WAITING: Final = 256

Owner = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs background work whose failure is the actor's."""


class Service:
    """One processor's work: from a body to a job, and from frames to its sink."""

    def __init__(
        self, *, bus: Bus, subjects: Subjects, model: Model, incarnation: str, intake: Intake, own: Owner
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._incarnation = incarnation
        self._own = own
        self.model = model
        self.intake = intake
        self.loop = asyncio.get_running_loop()
        self.post = Post(bus)
        self.asks = Asks(bus, self.post)
        self.journal = Journal(self._on_end)
        self.view = View(
            model.slug, on_lost=self._on_lost, on_change=self._on_change, on_gate=lambda: self.line.gate_changed()
        )
        self.dispatcher = Dispatcher(
            view=self.view,
            journal=self.journal,
            asks=self.asks,
            subjects=subjects,
            alias=model.slug,
            incarnation=incarnation,
            max_payload=bus.max_payload,
            disaggregated="prefill" in model.cast,
            now=self.loop.time,
        )
        self.line = Line(self.view, self.dispatcher, model.limits)
        self.inbox = Inbox(bus, self.post, subjects, incarnation, self.dispatcher.receive)
        self._preparing: set[str] = set()
        self._prepared = asyncio.Event()
        self._cancelled: set[str] = set()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._long = 0
        self.draining = False

    async def open(self, registry: Bucket, gates: Bucket) -> None:
        """Listen to the others; returns when the registry and the gate have been read once."""
        self._own(self.post.run)
        await self.asks.open()
        await self.inbox.open()
        await self._bus.subscribe(self._subjects.heartbeats, self._on_heartbeat)
        await self._bus.subscribe(self._subjects.owns, self._on_own)
        self._bus.on_back(lambda: self.view.back(self.loop.time()))
        seen = asyncio.Event(), asyncio.Event()
        view, now = self.view, self.loop.time

        def registry_read(values: dict[str, bytes]) -> None:
            view.registry(values, now())
            seen[0].set()

        def gates_read(values: dict[str, bytes]) -> None:
            view.gates(values.values())
            seen[1].set()

        self._own(lambda: registry.keep(">", registry_read, lambda key, value: view.registry_change(key, value, now())))
        self._own(lambda: gates.keep(">", gates_read, lambda key, value: view.gate_change(value)))
        async with asyncio.timeout(10):
            for event in seen:
                await event.wait()

    # Requests in.

    def reserve(self, body: Body) -> Job | None:
        """Check who is asking for what and reserve its id; the caller goes on with `prepare` and `begin`.

        Returns the job that has this id already, for the caller to judge whether the same client asks again; then
        nothing is reserved. Raises RefusalError 400, 404, 409, 429 or 503.
        """
        self.intake.name(body)
        if self.draining:
            raise RefusalError(503, "this processor is draining", retry_after=self.model.limits.retry_after)
        if body.id in self._preparing:
            raise RefusalError(409, f"request {body.id} is being prepared already", param="id")
        if (job := self.journal.get(body.id)) is not None:
            if body.resume is None or body.resume.attempt + 1 <= job.claim:
                return job
            body.resume.attempt = max(body.resume.attempt, job.attempt)
            self.journal.leave(job)
        limit = self.model.limits.in_flight
        if len(self.journal) + len(self._preparing) >= limit:
            again = self.model.limits.retry_after
            raise RefusalError(429, f"{limit} requests are in flight here, and no more may be", retry_after=again)
        self._preparing.add(body.id)
        self._prepared.clear()
        return None

    def release(self, body: Body) -> None:
        """Give a reserved id back."""
        self._preparing.discard(body.id)
        self._cancelled.discard(body.id)
        if not self._preparing:
            self._prepared.set()

    async def prepare(self, body: Body) -> Asked:
        """Make the prompt, off the loop if it is long. Raises RefusalError 400 or 429."""
        if not self.intake.is_long(body):
            return self.intake.prepare(body)
        if self._long >= LONG_WAITING:
            again = self.model.limits.retry_after
            raise RefusalError(429, f"{self._long} long prompts wait to be tokenised already", retry_after=again)
        self._long += 1
        try:
            return await anyio.to_thread.run_sync(self.intake.prepare, body, limiter=self._threads)
        finally:
            self._long -= 1

    def begin(self, asked: Asked, sink: Sink) -> Job:
        """Accept a request: from here on it is ours and gets its last word. Raises RefusalError."""
        if asked.id in self._cancelled:
            raise RefusalError(499, "cancelled by the client")
        if (size := work_bytes(len(asked.prompt))) > self._bus.max_payload:
            message = f"a prompt of {len(asked.prompt)} tokens makes a message of {size} bytes"
            raise RefusalError(413, f"{message}; NATS takes {self._bus.max_payload}")
        job = Job(asked, sink, self.loop.time())
        last = job.last_word_again()
        if last is None:
            self.line.admit(job)
        self.journal.begin(job)
        self._claim(job)
        sink.accepted(job)
        if last is not None:
            self.journal.end(job, last)
        return job

    def _claim(self, job: Job) -> None:
        """Tell the other processors that a job is ours."""
        claim = Own(request=job.id, attempt=job.claim, owner=self._incarnation)
        self.post.send(self._subjects.own(job.id), codec.to_msgpack(claim))

    def has(self, request: str) -> bool:
        """Whether a request is ours and has not had its last word."""
        return request in self._preparing or self.journal.get(request) is not None

    def cancel(self, request: str) -> None:
        """The client wants no more."""
        if (job := self.journal.get(request)) is not None:
            self.journal.end(job, job.error(499, "cancelled by the client"))
        elif request in self._preparing:
            self._cancelled.add(request)

    # What we hear.

    async def _on_heartbeat(self, msg: Msg) -> None:
        if ".decode." not in msg.subject and ".prefill." not in msg.subject:
            return
        try:
            beat = codec.from_json(msg.data, Heartbeat)
            self.view.heartbeat(beat, self.loop.time())
        except msgspec.DecodeError as error:
            log.warning("a heartbeat on %s that cannot be read: %s", msg.subject, error)
        except Exception:
            log.exception("a heartbeat could not be handled")

    async def _on_own(self, msg: Msg) -> None:
        """Let go of a request that somebody else has taken on at a higher attempt, or an older one at the same."""
        job = self.journal.get(last_token(msg.subject))
        if job is None:
            return
        try:
            own = codec.from_msgpack(msg.data, Own)
        except msgspec.DecodeError as error:
            log.warning("a claim that cannot be read: %s", error)
            return
        if own.owner == self._incarnation:
            return
        if own.attempt > job.claim or (own.attempt == job.claim and own.owner < self._incarnation):
            log.info("request %s is %s's now, at attempt %d", job.id, own.owner, own.attempt)
            self.journal.leave(job)
        else:
            # A client that had not heard of us has asked again, and whoever took it then has not heard our claim.
            self._claim(job)

    def _on_lost(self, seat: Seat) -> None:
        self.dispatcher.lost(seat)
        self.inbox.forget(seat.incarnation)

    def _on_change(self) -> None:
        for seat in self.view.seats.values():
            context, vocab = seat.registration.context_length, seat.registration.vocab_size
            if context and not 0 < self.intake.context_length <= context:
                self.intake.context_length = context
            if vocab and vocab < self.intake.vocab_size:
                self.intake.vocab_size = vocab
        self.dispatcher.retry()

    def _on_end(self, job: Job) -> None:
        self.line.over(job)
        self.dispatcher.over(job)

    # The end.

    async def drain(self) -> None:
        """Finish what is there; the doors take nothing new any more."""
        self.draining = True
        while self._preparing or len(self.journal):
            await (self._prepared if self._preparing else self.journal.empty).wait()
        self.inbox.acknowledge()
        await self.post.flush()

    async def abort(self) -> None:
        """End what is left, each with its error."""
        for job in self.journal:
            self.journal.end(job, job.error(503, "this processor was stopped", self.model.limits.retry_after))
        await self.post.flush()
