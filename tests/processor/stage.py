"""A processor's service with its doors on a real bus, GPU actors that do what the test says, and plain clients."""

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import msgspec
from nats.aio.msg import Msg

from actors.processor import parsers
from actors.processor.door_http import HttpDoor
from actors.processor.door_nats import NatsDoor
from actors.processor.facts import Facts
from actors.processor.intake import Intake
from actors.processor.service import Service
from actors.processor.template import Template
from actors.processor.text_intake import TextIntake
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.bus import Bus, error_headers
from messages.config import Model, Nats
from messages.frames import Finish, Frame, Item, Receipt, Said
from messages.gate import Gate, Missing
from messages.ids import Role, incarnation_of
from messages.lifecycle import Answer as ControlAnswer
from messages.lifecycle import Control, Heartbeat, Registration, State
from messages.subjects import Subjects
from messages.submit import Accepted, Answer, Delta, Done, Error
from messages.work import Accept, Job, Work
from tests.conftest import eventually
from tests.harness import ROOT

TINY = str(ROOT / "models" / "tiny")
SECONDS = 5.0

Act = Callable[["Gpu", Job], int | None]
"""What a GPU actor does with work: returns None to accept, 0 to stay silent, or the code of a refusal."""


def accept(gpu: "Gpu", job: Job) -> int | None:
    return None


def silent(gpu: "Gpu", job: Job) -> int | None:
    return 0


def refuse(code: int) -> Act:
    return lambda gpu, job: code


class Gpu:
    """A GPU actor in the test's hands: it registers, takes work as `act` says, and sends what the test has it send."""

    def __init__(self, bus: Bus, subjects: Subjects, role: Role, index: int, generation: int = 1) -> None:
        self.bus = bus
        self.subjects = subjects
        self.role = role
        self.slot = f"demo-{role}-{index}"
        self.generation = generation
        self.incarnation = incarnation_of(self.slot, generation)
        self.act: Act = accept
        self.capacity = 8
        self.work: asyncio.Queue[Job] = asyncio.Queue()
        self.aborts: asyncio.Queue[Control] = asyncio.Queue()
        self.receipts: list[Receipt] = []
        self.sent: dict[str, int] = {}
        self.seq = 0
        self._replies: dict[str, str] = {}
        self.engine, self.grammars = "", False
        self._subscriptions: list[Any] = []

    def registration(self, state: State = State.READY) -> Registration:
        return Registration(
            slot=self.slot,
            role=self.role,
            generation=self.generation,
            state=state,
            host="here",
            pid=1,
            model="demo",
            alias="demo",
            capacity=self.capacity,
            context_length=4096,
            vocab_size=512,
            bootstrap=("127.0.0.1", 9) if self.role == "prefill" else None,
            engine=self.engine,
            grammars=self.grammars,
        )

    async def register(self, state: State = State.READY) -> None:
        registry = await self.bus.bucket(self.subjects.registry_bucket)
        key = self.subjects.registration_key(self.role, self.slot)
        await registry.put(key, codec.to_json(self.registration(state)))

    async def start(self) -> None:
        for subject, call in (
            (self.subjects.work("demo", self.role, self.slot), self._on_work),
            (self.subjects.controls(self.slot), self._on_control),
            (self.subjects.ack(self.incarnation), self._on_receipt),
        ):
            self._subscriptions.append(await self.bus.subscribe(subject, call))
        await self.bus.flush()
        await self.register()

    async def deafen(self) -> None:
        """Go without a word: nobody listens any more, the registration is still there."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self.bus.flush()

    async def take_no_work(self) -> None:
        """Listen to controls alone, as one that drains."""
        await self._subscriptions.pop(0).unsubscribe()
        await self.bus.flush()

    async def die(self) -> None:
        """Go, and have the registration taken away, as a supervisor does when it sees a process end."""
        await self.deafen()
        await self.bury()

    async def bury(self) -> None:
        """Have the registration of one that has gone taken away."""
        registry = await self.bus.bucket(self.subjects.registry_bucket)
        await registry.delete(self.subjects.registration_key(self.role, self.slot))

    async def beat(self, **figures: Any) -> None:
        beat = Heartbeat(
            slot=self.slot, generation=self.generation, state=State.READY, capacity=self.capacity, **figures
        )
        await self.bus.publish(self.subjects.heartbeat(self.role, self.slot), codec.to_json(beat))

    async def _on_work(self, msg: Msg) -> None:
        job = codec.msgpack_decoder(Work).decode(msg.data)
        said = self.act(self, job)
        self._replies[f"{job.request}:{job.attempt}"] = msg.reply
        if said is None:
            await self.accept_late(job)
        elif said:
            await self.bus.publish(msg.reply, b"", headers=error_headers(said, f"{self.slot} says {said}"))
        self.work.put_nowait(job)

    def reply_to(self, job: Job) -> str:
        """Where the answer goes to the last message that asked for this attempt."""
        return self._replies[f"{job.request}:{job.attempt}"]

    async def accept_late(self, job: Job) -> None:
        """Accept work, at once or only now."""
        payload = codec.to_msgpack(Accept(request=job.request, attempt=job.attempt, by=self.incarnation))
        await self.bus.publish(self._replies[f"{job.request}:{job.attempt}"], payload)

    async def _on_control(self, msg: Msg) -> None:
        self.aborts.put_nowait(codec.from_json(msg.data, Control))
        answer = ControlAnswer(slot=self.slot, generation=self.generation, state=State.READY)
        await self.bus.publish(msg.reply, codec.to_json(answer))

    async def _on_receipt(self, msg: Msg) -> None:
        self.receipts.append(codec.msgpack_decoder(Receipt).decode(msg.data))

    async def got(self) -> Job:
        """Wait for the next work."""
        async with asyncio.timeout(SECONDS):
            return await self.work.get()

    async def aborted(self) -> Control:
        """Wait for the next abort."""
        async with asyncio.timeout(SECONDS):
            return await self.aborts.get()

    def item(
        self,
        job: Job,
        tokens: list[int],
        finish: Finish | None = None,
        ranked: list[codec.Ranked] | None = None,
        said: Said | None = None,
    ) -> Item:
        key = f"{job.request}:{job.attempt}"
        position = self.sent.get(key, 0)
        self.sent[key] = position + len(tokens)
        logprobs = None if ranked is None else codec.pack_logprobs(ranked)
        return Item(job.request, job.attempt, position, codec.pack_tokens(tokens), finish, logprobs, said)

    def frame(self, *items: Item, base: int = 1) -> Frame:
        self.seq += 1
        return Frame(self.incarnation, self.seq, base, list(items))

    async def send(self, job: Job, frame: Frame) -> None:
        await self.bus.publish(self.subjects.out(job.out), codec.to_msgpack(frame))

    async def emit(self, job: Job, tokens: list[int], finish: str | None = None, code: int = 0, text: str = "") -> None:
        """Send tokens of one stream, and its finish if one is named."""
        done = None if finish is None else Finish(finish, code, text, len(job.prompt) // 4, 0, 3)
        await self.send(job, self.frame(self.item(job, tokens, done)))


class Conversation:
    """One request of a client on NATS, with all that it was answered."""

    def __init__(self, stage: "Stage", reply: str, request: str) -> None:
        self._stage = stage
        self.reply = reply
        self.id = request
        self.answers: list[Answer] = []
        self._changed = asyncio.Event()
        self.bodyless = False

    async def take(self, msg: Msg) -> None:
        if msg.data:
            self.answers.append(codec.json_decoder(Answer).decode(msg.data))
        else:
            self.bodyless = True
        self._changed.set()

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not check():
                await self._changed.wait()
                self._changed.clear()

    async def accepted(self) -> Accepted:
        await self.until(lambda: bool(self.answers))
        first = self.answers[0]
        assert isinstance(first, Accepted), first
        return first

    async def last(self) -> Done | Error:
        """Wait for the last word, and see that there is one and nothing after it."""
        await self.until(lambda: any(isinstance(answer, Done | Error) for answer in self.answers))
        await self._stage.bus.flush()
        last = self.answers[-1]
        assert isinstance(last, Done | Error), self.answers
        assert sum(isinstance(answer, Done | Error) for answer in self.answers) == 1
        return last

    async def tokens_come(self, count: int) -> None:
        await self.until(lambda: len(self.token_ids) >= count)

    @property
    def deltas(self) -> list[Delta]:
        return [answer for answer in self.answers if isinstance(answer, Delta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> list[int]:
        ids: list[int] = []
        for delta in self.deltas:
            assert delta.position == len(ids), self.answers
            ids += delta.token_ids
        return ids


class Stage:
    """One processor, as many GPU actors as the test wants, and clients."""

    def __init__(self, bus: Bus, model: Model, subjects: Subjects) -> None:
        self.bus = bus
        self.model = model
        self.subjects = subjects
        self.service: Service
        self.nats: NatsDoor
        self.http: HttpDoor
        self.tokenizer = Tokenizer(TINY, parsers.marks(model.reasoning_parser, model.tool_call_parser))
        self.session: aiohttp.ClientSession

    async def gpu(self, role: Role, index: int = 0, generation: int = 1, act: Act = accept, capacity: int = 8) -> Gpu:
        """Add a GPU actor and wait until the processor knows it."""
        gpu = Gpu(self.bus, self.subjects, role, index, generation)
        gpu.act, gpu.capacity = act, capacity
        await gpu.start()
        await eventually(lambda: self.knows(gpu))
        return gpu

    def knows(self, gpu: Gpu) -> bool:
        seat = self.service.view.seats.get(gpu.slot)
        return seat is not None and seat.incarnation == gpu.incarnation

    async def gate(self, is_open: bool, epoch: int = 1) -> None:
        """Write the gate, and wait until the processor has seen it."""
        gates = await self.bus.bucket(self.subjects.gate_bucket)
        missing = [] if is_open else [Missing(what="demo-decode-0", why="loading")]
        gate = Gate(model="demo", alias="demo", open=is_open, epoch=epoch, since=0.0, missing=missing)
        await gates.put("demo", codec.to_json(gate))
        await eventually(lambda: self.service.view.gate is not None and self.service.view.gate.open is is_open)

    async def submit(self, kind: str, body: dict[str, Any] | bytes, **options: Any) -> Conversation:
        """Submit as JSON (or as the bytes given) and collect the answers."""
        request = str(uuid.uuid4())
        if isinstance(body, dict):
            request = body.setdefault("id", request)
            body = msgspec.json.encode(body)
        talk = Conversation(self, options.get("reply") or self.bus.inbox(), request)
        if "reply" not in options:
            await self.bus.subscribe(talk.reply, talk.take)
        alias = options.get("alias", "demo")
        subject = f"troupe.v1.submit.{alias}.{kind}"
        await self.bus.publish(subject, body, reply=talk.reply, headers=options.get("headers"))
        return talk

    async def generate(self, token_ids: list[int], **fields: Any) -> Conversation:
        return await self.submit("generate", {"token_ids": token_ids, **fields})

    async def complete(self, prompt: str, **fields: Any) -> Conversation:
        return await self.submit("completion", {"prompt": prompt, **fields})

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """POST; return (status, JSON, headers)."""
        data = body if isinstance(body, bytes | io.BytesIO) else msgspec.json.encode(body)
        async with self.session.post(f"{self.http.address}{path}", data=data, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers


@asynccontextmanager
async def raised(url: str, **settings: Any) -> AsyncIterator[Stage]:
    """Put a processor on a stage of its own; `settings` are fields of `Model`."""
    prefill = settings.pop("prefill", False)
    cast: dict[str, Any] = {"processor": {}, "decode": {}} | ({"prefill": {}} if prefill else {})
    plain = {"name": "demo", "engine": "simulated", "path": TINY, "cast": cast}
    model = msgspec.convert(plain | settings, Model)
    ours = await Bus.connect(Nats(url=url), name="processor", wait=5)
    theirs = await Bus.connect(Nats(url=url), name="others", wait=5)
    subjects = Subjects()
    # A processor reads its files before its loop runs; here the loop runs already.
    stage = await asyncio.to_thread(Stage, theirs, model, subjects)
    kept = stage.tokenizer
    template = await asyncio.to_thread(Template.load, kept.folder, kept.settings, kept.special, model.chat_template)
    facts = await asyncio.to_thread(Facts.read, kept.folder)
    intake = TextIntake(model, facts) if model.text else Intake(model, kept, template)
    try:
        # The task group is the inner one: awaiting anything in its cancelled scope would swallow the test's failure.
        async with aiohttp.ClientSession() as stage.session, anyio.create_task_group() as tasks:
            incarnation = "demo-processor-0-g1"

            def own(work: Callable[[], Awaitable[None]]) -> None:
                async def owned() -> None:
                    await work()

                tasks.start_soon(owned)

            stage.service = Service(
                bus=ours,
                subjects=subjects,
                model=model,
                incarnation=incarnation,
                intake=intake,
                own=own,
            )
            await stage.service.open(
                await ours.bucket(subjects.registry_bucket), await ours.bucket(subjects.gate_bucket)
            )
            stage.nats = NatsDoor(ours, subjects, stage.service, incarnation, own)
            await stage.nats.open()
            stage.http = HttpDoor(stage.service, "127.0.0.1", 0)
            await stage.http.open()
            await ours.flush()
            try:
                yield stage
            finally:
                await stage.http.shut()
                await stage.http.close()
                tasks.cancel_scope.cancel()
    finally:
        await ours.close()
        await theirs.close()
