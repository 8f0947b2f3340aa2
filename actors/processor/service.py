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
from actors.processor.choices import Group, Member
from actors.processor.continuing import ranked_bytes, work_bytes
from actors.processor.dispatch import Dispatcher
from actors.processor.inbox import Inbox
from actors.processor.intake import Intake
from actors.processor.journal import Asked, Job, Journal, Outcome, Sink
from actors.processor.line import Line
from actors.processor.meter import Meter, Trail
from actors.processor.post import Post
from actors.processor.refusal import RefusalError
from actors.processor.suspicion import TICK
from actors.processor.teller import Teller
from actors.processor.view import ROUTED, Seat, View
from messages import codec
from messages.bus import Bucket, Bus
from messages.config import Model, Watch
from messages.lifecycle import Heartbeat
from messages.subjects import Subjects, last_token
from messages.submit import Asked as Body
from messages.submit import Done
from messages.telemetry import Traffic
from messages.work import Own

log = logging.getLogger("troupe.processor")

THREADS: Final = 2
LONG_WAITING: Final = 256

Owner = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs background work whose failure is the actor's."""


class Service:
    """One processor's work: from a body to a job, and from frames to its sink."""

    def __init__(
        self,
        *,
        bus: Bus,
        subjects: Subjects,
        model: Model,
        incarnation: str,
        intake: Intake,
        own: Owner,
        watch: Watch | None = None,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._incarnation = incarnation
        self._own = own
        self.model = model
        self.intake = intake
        self.loop = asyncio.get_running_loop()
        self.post = Post(bus)
        self.meter = Meter(incarnation, model.name)
        self.teller = Teller(self.post, subjects, self.traffic)
        self.asks = Asks(bus, self.post)
        self.journal = Journal(self._on_end)
        self.view = View(
            model.slug,
            on_lost=self._on_lost,
            on_change=self._on_change,
            on_gate=lambda: self.line.gate_changed(),
            on_doubt=self._on_doubt,
            watch=watch,
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
        self._groups: dict[str, Group] = {}
        self._preparing: set[str] = set()
        self._prepared = asyncio.Event()
        self._cancelled: set[str] = set()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._long = 0
        self.draining = False

    @property
    def in_flight(self) -> int:
        """How many requests have not had their last word."""
        return len(self.journal)

    async def open(self, registry: Bucket, gates: Bucket) -> None:
        """Listen to the others; returns when the registry and the gate have been read once."""
        self._own(self.post.run)
        await self.asks.open()
        await self.inbox.open()
        self._bus.after_reading(self.dispatcher.read)
        await self._bus.subscribe(self._subjects.heartbeats, self._on_heartbeat)
        await self._bus.take_at_once(self._subjects.owns, self._on_own)
        self._bus.on_lost(self.view.away)
        self._bus.on_back(lambda: self.view.back(self.loop.time()))
        self._own(self._look)
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

    def reserve(self, body: Body) -> Outcome | None:
        """Check who is asking for what and reserve its id; the caller goes on with `prepare` and `begin`.

        Returns the job that has this id already, for the caller to judge whether the same client asks again; then
        nothing is reserved. Raises RefusalError 400, 404, 409, 429 or 503.
        """
        self.intake.name(body)
        if self.draining:
            raise RefusalError(503, "this processor is draining", retry_after=self.model.limits.retry_after)
        if body.id in self._preparing:
            raise RefusalError(409, f"request {body.id} is being prepared already", param="id")
        if (known := self._find(body.id)) is not None:
            if body.resume is None or body.resume.attempt + 1 <= known.claim:
                return known
            body.resume.attempt = max(body.resume.attempt, known.attempt)
            self._leave(known)
        limit = self.model.limits.in_flight
        if len(self.journal) + len(self._preparing) >= limit:
            again = self.model.limits.retry_after
            raise RefusalError(429, f"{limit} requests are in flight here, and no more may be", retry_after=again)
        self._preparing.add(body.id)
        self.meter.arrived(body.id)
        self._prepared.clear()
        return None

    def release(self, body: Body) -> None:
        """Give a reserved id back."""
        self._preparing.discard(body.id)
        self.meter.forget(body.id)
        self._cancelled.discard(body.id)
        if not self._preparing:
            self._prepared.set()

    async def prepare(self, body: Body) -> list[Asked]:
        """Make the prompts, off the loop if they are long. Raises RefusalError 400 or 429."""
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

    def begin(self, body: Body, choices: list[Asked], sink: Sink) -> Outcome:
        """Accept a request: from here on it is ours and gets its last word. Raises RefusalError."""
        if body.id in self._cancelled:
            raise RefusalError(499, "cancelled by the client")
        for asked in choices:
            if (size := work_bytes(len(asked.prompt), asked.sampling, asked.chat_bytes)) > self._bus.max_payload:
                what = "this chat" if asked.chat is not None else f"a prompt of {len(asked.prompt)} tokens"
                message = f"{what} makes a message of {size} bytes"
                raise RefusalError(413, f"{message}; NATS takes {self._bus.max_payload}")
            if (size := ranked_bytes(len(asked.prompt), asked.sampling)) > self._bus.max_payload:
                message = f"the log-probabilities of a prompt of {len(asked.prompt)} tokens take {size} bytes"
                raise RefusalError(413, f"{message}; NATS takes {self._bus.max_payload}")
        if len(choices) > 1:
            return self._begin_several(body, choices, sink)
        trail = self.meter.trail(body.id, choices[0].kind, len(choices[0].prompt))
        job, last = self._begin(choices[0], sink, trail)
        self.meter.admitted(trail)
        self._claim(job)
        sink.accepted(job)
        if last is not None:
            self.journal.end(job, last)
        return job

    def _begin(self, asked: Asked, sink: Sink, trail: Trail) -> tuple[Job, Done | None]:
        """Take in one job; where its client has all of it, return the last word that is still to be said."""
        job = Job(asked, sink, self.loop.time(), trail)
        last = job.last_word_again()
        if last is None:
            self.line.admit(job)
            if job.decode is None:
                trail.note("queued", why="no actor can take it now" if self.view.open else "the gate is closed")
        self.journal.begin(job)
        return job, last

    def _begin_several(self, body: Body, choices: list[Asked], sink: Sink) -> Group:
        """Take in all choices of a request, or none."""
        limit, count = self.model.limits.in_flight, len(choices)
        if len(self.journal) + count > limit:
            message = f"{count} choices are too many now: {limit} may be in flight here, and {len(self.journal)} are"
            raise RefusalError(429, message, retry_after=self.model.limits.retry_after)
        each = count // len({id(asked.prompt) for asked in choices})
        group = Group(body.id, sink, self.journal, each, lambda over: self._forget(over))
        trail = self.meter.trail(body.id, choices[0].kind, sum(len(asked.prompt) for asked in choices[::each]))
        lasts = []
        try:
            for asked in choices:
                job, last = self._begin(asked, group.member, trail)
                group.jobs.append(job)
                lasts.append(last)
        except RefusalError:
            group.over = True
            group.stop()
            raise
        self._groups[group.id] = group
        self.meter.admitted(trail)
        self._claim(group)
        for job, last in zip(group.jobs, lasts, strict=True):
            if last is not None:
                self.journal.end(job, last)
        group.begun()
        return group

    def _claim(self, job: Outcome) -> None:
        """Tell the other processors that a request is ours."""
        claim = Own(request=job.id, attempt=job.claim, owner=self._incarnation)
        self.post.send(self._subjects.own(job.id), codec.to_msgpack(claim))

    def _find(self, request: str) -> Outcome | None:
        return self.journal.get(request) or self._groups.get(request)

    def _leave(self, job: Outcome) -> None:
        if isinstance(job, Group):
            job.leave()
        elif isinstance(job, Job):
            self.journal.leave(job)

    def _forget(self, group: Group) -> None:
        self._groups.pop(group.id, None)
        group.jobs[0].trail.over(group.last)

    def has(self, request: str) -> bool:
        """Whether a request is ours and has not had its last word."""
        return request in self._preparing or self._find(request) is not None

    def cancel(self, request: str) -> None:
        """The client wants no more."""
        if (job := self.journal.get(request)) is not None:
            self.journal.end(job, job.error(499, "cancelled by the client"))
        elif (group := self._groups.get(request)) is not None:
            group.end(group.error(499, "cancelled by the client"))
        elif request in self._preparing:
            self._cancelled.add(request)

    # What we hear.

    async def _look(self) -> None:
        """Look who is not heard any more."""
        while True:
            await asyncio.sleep(TICK)
            self.view.tick(self.loop.time(), lambda sender: self.inbox.frames(sender))

    async def _on_heartbeat(self, msg: Msg) -> None:
        self.view.heard(self.loop.time())
        if not any(f".{role}." in msg.subject for role in ROUTED):
            return
        try:
            beat = codec.from_json(msg.data, Heartbeat)
            self.view.heartbeat(beat, self.loop.time())
        except msgspec.DecodeError as error:
            log.warning("a heartbeat on %s that cannot be read: %s", msg.subject, error)
        except Exception:
            log.exception("a heartbeat could not be handled")

    def _on_own(self, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        """Let go of a request that somebody else has taken on at a higher attempt, or an older one at the same."""
        job = self._find(last_token(subject))
        if job is None:
            return
        try:
            own = codec.from_msgpack(data, Own)
        except msgspec.DecodeError as error:
            log.warning("a claim that cannot be read: %s", error)
            return
        if own.owner == self._incarnation:
            return
        if own.attempt > job.claim or (own.attempt == job.claim and own.owner < self._incarnation):
            log.info("request %s is %s's now, at attempt %d", job.id, own.owner, own.attempt)
            self._leave(job)
        else:
            # A client that had not heard of us has asked again, and whoever took it then has not heard our claim.
            self._claim(job)

    def _on_lost(self, seat: Seat) -> None:
        self.dispatcher.lost(seat)
        self.inbox.forget(seat.incarnation)

    def _on_doubt(self, seat: Seat) -> None:
        self.dispatcher.doubted(seat)

    def _on_change(self) -> None:
        for seat in self.view.seats.values():
            context, vocab = seat.registration.context_length, seat.registration.vocab_size
            if context and not 0 < self.intake.context_length <= context:
                self.intake.context_length = context
            if vocab and vocab < self.intake.vocab_size:
                self.intake.vocab_size = vocab
        seats = [seat.registration for seat in self.view.seats.values()]
        if engines := [one for one in seats if one.engine and one.role in ("prefill", "decode")]:
            self.intake.grammars = all(engine.grammars for engine in engines)
        self.dispatcher.retry()

    def _on_end(self, job: Job) -> None:
        self.line.over(job)
        self.dispatcher.over(job)
        if not isinstance(job.sink, Member):
            job.trail.over(job.last)

    # What we tell.

    def traffic(self) -> Traffic:
        """What has been counted until now."""
        return self.meter.traffic(
            queued=len(self.line),
            in_flight=self.in_flight,
            suspicions=self.view.suspicions,
            false_alarms=self.view.false_alarms,
            frames=self.inbox.taken,
            missed=self.inbox.gaps,
            repeated=self.inbox.repeats,
        )

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
