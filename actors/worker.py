"""The GPU actors: a prefill, a decode and an encoder actor are one engine each, and do with it what processors ask.

Work is decoded, checked, accepted and handed to a task of its own; the engine's deltas go into the outbox as they
come. Each accepted attempt gets exactly one finish. The scheduler's death ends the actor at once.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from actors.actor import Actor
from actors.controls import respond
from actors.ending import Ending
from actors.engines.choose import make_engine
from actors.engines.engine import (
    ConfigurationError,
    Disaggregation,
    Emit,
    EngineDiedError,
    EngineInfo,
    Generation,
    LoadError,
    misfit,
)
from actors.engines.tongue import speak
from actors.outbox import Outbox
from actors.past import Past, aborted
from actors.probing import Prober
from actors.setup import Setup
from actors.verbs import VERBS, Handling
from messages import codec, procfs
from messages.bus import QUEUE, ServiceError, error_headers
from messages.frames import Finish, Said
from messages.ids import Role, short
from messages.lifecycle import Control, Exit, Heartbeat, Registration, State
from messages.work import Accept, Decode, Encode, Job, Prefill, Work

log = logging.getLogger("troupe.worker")

ACK_GRACE: Final = 15.0
WARM_UP_SECONDS: Final = 600.0


Doing = Callable[[Emit], Coroutine[Any, Any, None]]
"""What the engine does for one attempt, given where it says what comes."""


class Running:
    """One attempt that this actor has accepted."""

    __slots__ = (
        "accept",
        "began",
        "finished",
        "job",
        "key",
        "length",
        "ranked",
        "said",
        "sent",
        "task",
        "timer",
        "unwanted",
        "words",
    )

    def __init__(self, job: Job | Encode, accept: bytes, words: int) -> None:
        self.job = job
        self.key = key_of(job)
        self.accept = accept
        self.words = words
        self.began = time.monotonic()
        self.sent = 0
        self.finished = False
        self.length = codec.token_count(job.prompt)
        self.ranked: bytes | None = None
        self.said: Said | None = None
        self.unwanted = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


def key_of(job: Job | Encode) -> str:
    """Name a piece of work: where two processors have taken on one request, for a moment, each has its own."""
    return f"{job.request}:{job.attempt}:{job.out}"


def _has_begun(task: asyncio.Task[None]) -> bool:
    """Whether a task has had its first turn of the loop."""
    doing: Any = task.get_coro()
    return inspect.getcoroutinestate(doing) != inspect.CORO_CREATED


class Worker(Actor):
    """An engine that does what processors ask; `Prefiller`, `Decoder` and `Encoder` say what that is."""

    kind: ClassVar[type[Job | Encode]]
    """The message that it takes."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._engine = make_engine(setup, self.disaggregation())
        self._info: EngineInfo
        self._outbox: Outbox
        self._running: dict[str, Running] = {}
        self._past = Past()
        self._subscriptions: list[Subscription] = []
        self._idle: asyncio.Event
        self._leaving = False
        self._generated = 0
        self._handling = Handling(self._engine, setup.folder / "profile")

    @abstractmethod
    def disaggregation(self) -> Disaggregation:
        """Say which side of the hand-over of KV blocks the engine is, if any."""

    def load(self) -> None:
        """Load the engine."""
        try:
            self._info = self._engine.load(self.report)
        except ConfigurationError as error:
            raise Ending(Exit.CONFIG, str(error)) from error
        except LoadError as error:
            raise Ending(Exit.LOAD, str(error)) from error

    async def warm_up(self) -> None:
        """Generate real tokens; an engine that cannot do that never registers."""
        self._idle = asyncio.Event()
        self._idle.set()
        try:
            async with asyncio.timeout(WARM_UP_SECONDS):
                await self._engine.warm_up()
        except TimeoutError:
            raise Ending(Exit.WARM_UP, f"no token within {WARM_UP_SECONDS:g} s of warming up") from None
        except (LoadError, EngineDiedError) as error:
            raise Ending(Exit.WARM_UP, str(error)) from error
        self.take_signals()

    def registration(self) -> Registration:
        """Say what the engine can."""
        base = self.plain_registration()
        info = self._info
        port = info.bootstrap_port
        return msgspec.structs.replace(
            base,
            capacity=min(self.part.capacity, info.max_running),
            context_length=info.context_length,
            vocab_size=info.vocab_size,
            block_size=info.block_size,
            total_blocks=info.total_blocks,
            dp_ranks=info.dp_ranks,
            bootstrap=(self.part.advertise, port) if port is not None else None,
            engine=info.name,
            engine_version=info.version,
            gpus=self.setup.gpus,
            events=self.cluster.publisher.events if info.kv_sources else "",
            kv_sources=info.kv_sources,
            metrics=info.metrics,
            dimensions=info.dimensions,
            grammars=info.grammars,
        )

    async def stand_by(self) -> None:
        """Look after the engine, which is loaded, whether there is work or not."""
        self._outbox = self.make_outbox()
        await self._outbox.open()
        self.own(self._outbox.run)
        self.own(self._watch_engine)
        self._capacity = min(self.part.capacity, self._info.max_running)
        self._prober = Prober(self._engine, self._info.dp_ranks, self.model.probe, self._busy)
        if self._info.kv_sources and self.cluster.publisher.events == "zmq":
            where = ", ".join(f"{at.endpoint} (replay {at.replay or 'none'})" for at in self._info.kv_sources)
            log.info("KV events stay on ZMQ: %s", where)

    async def open(self) -> None:
        """Subscribe to work: from here on requests come."""
        alias = self.model.slug
        for subject, queue in (
            (self.subjects.work(alias, self.role, self.slot), ""),
            (self.subjects.work(alias, self.role), QUEUE),
        ):
            self._subscriptions.append(await self.bus.subscribe(subject, self._on_work, queue=queue))

    def _busy(self) -> bool:
        resting = bool(self._handling.resting)
        return resting or bool(self._running) or self.state not in (State.READY, State.STANDBY)

    def make_outbox(self) -> Outbox:
        """Make what sends to the processors."""
        return Outbox(self.bus, self.subjects, self.incarnation, grace=ACK_GRACE, on_gone=self.forget_processor)

    async def _on_work(self, msg: Msg) -> None:
        """Decode, check, accept, start a task, return: the subscription runs one callback at a time."""
        try:
            job: Job | Encode = codec.msgpack_decoder(Work).decode(msg.data)
            accept = self._accept(job, hash(msg.data))
        except msgspec.DecodeError as error:
            await respond(self.bus, msg, b"", error_headers(400, f"not work: {error}"))
        except ServiceError as error:
            await respond(self.bus, msg, b"", error_headers(error.code, error.message))
        else:
            await respond(self.bus, msg, accept)

    def _accept(self, job: Job | Encode, words: int) -> bytes:
        """Take an attempt, or raise ServiceError saying why not. Asked again for the same one, say the same again.

        `words` stands for the message that asks, byte for byte.
        """
        if type(job) is not self.kind:
            raise ServiceError(400, f"{self.slot} does {self.role}, not {type(job).__name__.lower()}")
        if job.generation and job.generation != self.generation:
            raise ServiceError(409, f"this is {short(self.slot, self.generation)}, not #{job.generation}")
        key = key_of(job)
        if (known := self._running.get(key)) is not None:
            if known.unwanted:
                raise aborted(job)
            return known.accept
        if (answer := self._past.answer(job, key, words)) is not None:
            return answer
        if self.state is not State.READY:
            raise ServiceError(503, f"{self.slot} is {self.state}")
        if len(self._running) >= self._capacity:
            raise ServiceError(429, f"{self.slot} is full: {self._capacity} requests")
        if job.ttl <= 0:
            raise ServiceError(408, "the deadline has passed")
        self._start(job, self.work(job, key), words)
        return self._running[key].accept

    def work(self, job: Job | Encode, key: str) -> Doing:
        """Make of a job what the engine is to do. Raises ServiceError 400 for what does not fit it."""
        assert isinstance(job, Job)
        rank = partial(self._rank, key) if job.sampling.logprobs is not None else None
        asked = Generation(key=key, prompt=job.prompt, sampling=job.sampling, bootstrap=job.bootstrap, rank=rank)
        if job.chat is not None:
            if (tongue := self._engine.tongue()) is None:
                raise ServiceError(
                    400, f"{self.slot} takes token ids, not chats; `text: true` is not what it runs with"
                )
            begin, tell = partial(self._began, key), partial(self._tell, key)
            return partial(speak, self._engine, tongue, self._info, job.chat, asked, begin, tell)
        if (why := misfit(asked, self._info) or self._engine.check(asked)) is not None:
            raise ServiceError(400, why)
        return partial(self._engine.generate, asked)

    def _start(self, job: Job | Encode, work: Doing, words: int) -> None:
        accept = codec.to_msgpack(Accept(request=job.request, attempt=job.attempt, by=self.incarnation))
        running = Running(job, accept, words)
        self._running[running.key] = running
        self._idle.clear()
        self._prober.work_came()
        loop = asyncio.get_running_loop()
        running.timer = loop.call_later(job.ttl, self._stop, running)
        running.task = loop.create_task(work(partial(self.emit, running)))
        running.task.add_done_callback(partial(self._on_done, running))

    def emit(self, running: Running, tokens: bytes, finish: Finish | None) -> None:
        """Send what came for an attempt."""
        job = running.job
        if finish is not None and finish.reason == "abort" and self._leaving:
            # No fault of the request's: whoever asked goes on elsewhere, and does not count it against the request.
            if tokens:
                self.emit(running, tokens, None)
            tokens, finish = b"", Finish("error", 503, f"{short(self.slot, self.generation)} ends")
        self._outbox.add(job.out, job.request, job.attempt, running.sent, tokens, finish, running.ranked, running.said)
        running.ranked = running.said = None
        running.sent += len(tokens) // 4
        self._generated += len(tokens) // 4
        if finish is not None:
            running.finished = True

    def _rank(self, key: str, logprobs: bytes) -> None:
        """Keep the log-probabilities of the tokens that come next."""
        self._running[key].ranked = logprobs

    def _tell(self, key: str, said: Said) -> None:
        """Keep the text of the token that comes next."""
        self._running[key].said = said

    def _began(self, key: str, length: int) -> bool:
        """Note how long a chat has become; say whether it is still wanted."""
        running = self._running[key]
        running.length = length
        return not running.unwanted

    def _stop(self, running: Running) -> None:
        """Stop an attempt, also one of which the engine does not know yet."""
        if not running.unwanted and running.task is not None and not _has_begun(running.task):
            # Nothing can be aborted in the engine, and this must not begin there any more.
            running.task.cancel()
            self.emit(running, b"", Finish("abort", 499, "aborted"))
        running.unwanted = True
        self._engine.abort(running.key)

    def _on_done(self, running: Running, task: asyncio.Task[None]) -> None:
        """See to it that each accepted attempt has had its finish, and that no failure stays unnoticed."""
        del self._running[running.key]
        self._past.end(running.key, running.words, None if running.unwanted else running.accept)
        if running.timer is not None:
            running.timer.cancel()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EngineDiedError):
            self._fail(Ending(Exit.ENGINE_DIED, str(error)))
        elif error is not None:
            log.error("request %s failed in the engine", running.job.request, exc_info=error)
        if not running.finished:
            finish = Finish("abort" if task.cancelled() else "error", 500, str(error or "the engine gave no finish"))
            self.emit(running, b"", finish)
        if not self._running:
            self._idle.set()

    def _fail(self, ending: Ending) -> None:
        async def fail() -> None:
            raise ending

        self.own(fail)

    def forget_processor(self, processor: str) -> None:
        """Stop what is being done for a processor that is gone."""
        for running in [running for running in self._running.values() if running.job.out == processor]:
            self._stop(running)

    async def control(self, verb: str, asked: Control) -> str | Struct:
        """Abort a request; show a fault; handle the engine."""
        if verb in VERBS:
            if self.state is not State.READY:
                raise ServiceError(409, f"{verb}: {self.slot} is {self.state}")
            return await self._handling.carry_out(verb, asked, len(self._running))
        if verb == "abort":
            return self._abort(asked)
        if verb == "fault":
            return self._fault(asked)
        return await super().control(verb, asked)

    def _abort(self, asked: Control) -> str:
        """Abort a request's attempts up to the one named, a processor's own if it says so; none is no error."""
        hit = [
            running
            for running in self._running.values()
            if running.job.request == asked.request
            and (asked.attempt is None or running.job.attempt <= asked.attempt)
            and asked.out in ("", running.job.out)
        ]
        for running in hit:
            self._stop(running)
        if not hit:
            self._past.abort(asked)
        return f"{len(hit)} aborted"

    def _fault(self, asked: Control) -> str:
        try:
            self._engine.inject(asked.fault, asked.seconds)
        except ValueError as error:
            raise ServiceError(400, str(error)) from None
        return f"{asked.fault} for {asked.seconds:g} s"

    def heartbeat(self) -> Heartbeat:
        """Say how loaded the engine is."""
        figures = self._engine.figures()
        prefilling = [running for running in self._running.values() if running.sent == 0]
        return msgspec.structs.replace(
            self.plain_heartbeat(),
            capacity=self._capacity,
            in_flight=len(self._running),
            prefilling=len(prefilling),
            prefill_tokens=sum(running.length for running in prefilling),
            queued=figures.queued,
            steps=figures.steps,
            tokens=self._generated,
            kv_used=figures.kv_used,
            kv_total=figures.kv_total,
            children=self._engine.children(),
            loads=self._engine.loads(),
            probe=self._prober.told(),
            resting=self._handling.resting,
        )

    def tick(self) -> None:
        """Look after unacknowledged frames, and after the engine when it has nothing to do."""
        self._outbox.look_after()
        self._prober.tick()

    async def _watch_engine(self) -> None:
        try:
            await self._engine.watch()
        except EngineDiedError as error:
            raise Ending(Exit.ENGINE_DIED, str(error)) from None

    async def drain(self) -> None:
        """Take nothing new, finish what is there, wait for the last frames to be acknowledged."""
        for subscription in self._subscriptions:
            await self.bus.finish(subscription)
        await self._idle.wait()
        await self._outbox.drained()

    async def abort(self) -> None:
        """End what is left, each with its finish."""
        self._leaving = True
        for running in list(self._running.values()):
            self._stop(running)
        try:
            async with asyncio.timeout(2):
                await self._idle.wait()
                await self._outbox.drained()
        except TimeoutError:
            log.warning("%d requests did not end when aborted", len(self._running))

    async def close(self) -> None:
        """Close the engine; whatever of it is still there afterwards is killed."""
        for running in list(self._running.values()):
            if running.task is not None:
                running.task.cancel()
        try:
            async with asyncio.timeout(2):
                await self._engine.close()
        finally:
            _end_children()


def _end_children() -> None:
    """Kill whatever the engine has started, and wait for what is our own, so that no zombie is left to init."""
    for pid in procfs.descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 1
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)


class Decoder(Worker):
    """Generates: after a hand-over from prefill where the cast has prefill actors, else from the prompt."""

    role: ClassVar[Role] = "decode"
    kind: ClassVar[type[Job]] = Decode

    def disaggregation(self) -> Disaggregation:
        """Decode side where the cast has prefill actors, else a whole engine."""
        return "decode" if "prefill" in self.model.cast else "null"


class Prefiller(Worker):
    """Computes prompts and hands the KV blocks to decode."""

    role: ClassVar[Role] = "prefill"
    kind: ClassVar[type[Job]] = Prefill

    def disaggregation(self) -> Disaggregation:
        """Always the prefill side."""
        return "prefill"
