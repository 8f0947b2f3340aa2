"""An embedding model's processor with its doors on a real bus, and encoders that do what the test says."""

import asyncio
import io
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import msgspec
from nats.aio.msg import Msg

from actors.processor.embeddings.doors import EmbedHttpDoor, EmbedNatsDoor
from actors.processor.embeddings.intake import EmbedIntake
from actors.processor.embeddings.service import EmbedService
from actors.processor.intake import Intake
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.bus import Bus
from messages.config import Model, Nats
from messages.embed import Answer, Vectors, pack_floats, unpack_floats
from messages.frames import Finish, Item
from messages.gate import Gate, Missing
from messages.lifecycle import HEARTBEAT_PERIOD, Registration, State
from messages.subjects import Subjects
from messages.submit import Accepted, Done, Error
from messages.work import Encode
from tests.conftest import eventually
from tests.harness import ROOT
from tests.processor.stage import Act, Gpu, accept

TINY = str(ROOT / "models" / "tiny")
SECONDS = 5.0
SIZE = 4


def vector(tokens: list[int], size: int = SIZE) -> list[float]:
    """What the tests' encoders make of token ids: exact in 32 bits, and another one for other ids."""
    chance = random.Random(repr(tokens))
    return [chance.randrange(-1_024, 1_024) / 64 for _ in range(size)]


class Enc(Gpu):
    """An encoder in the test's hands; `steps` is what its heartbeats say."""

    steps = 0

    def registration(self, state: State = State.READY) -> Registration:
        return msgspec.structs.replace(super().registration(state), dimensions=SIZE)

    async def part(self) -> Encode:
        """Wait for the next part."""
        job: Any = await self.got()
        assert isinstance(job, Encode)
        return job

    async def answer(self, part: Encode, upto: int | None = None, finish: Finish | None = None) -> None:
        """Send the vectors of a part's first inputs (all of them, with the good end, if no number is given)."""
        tokens, inputs = codec.unpack_tokens(part.prompt), []
        for length in part.lengths:
            inputs.append(tokens[:length])
            tokens = tokens[length:]
        data = b"".join(pack_floats(vector(ids, part.dimensions or SIZE)) for ids in inputs[:upto])
        last = finish if finish is not None or upto is not None else Finish("encoded", prompt_tokens=sum(part.lengths))
        key = f"{part.request}:{part.attempt}"
        position = self.sent.get(key, 0)
        self.sent[key] = position + len(data) // 4
        item = Item(part.request, part.attempt, position, data, last)
        await self.bus.publish(self.subjects.out(part.out), codec.to_msgpack(self.frame(item)))

    async def beat_on(self) -> None:
        """Send heartbeats, for ever."""
        while True:
            await self.beat(steps=self.steps)
            await asyncio.sleep(HEARTBEAT_PERIOD)

    async def answer_all(self) -> None:
        """Answer whatever comes, for ever."""
        while True:
            await self.answer(await self.work.get())  # type: ignore[arg-type]


class Talk:
    """One request of a client on NATS, with all that it was answered."""

    def __init__(self, request: str) -> None:
        self.id = request
        self.answers: list[Answer] = []
        self._changed = asyncio.Event()

    async def take(self, msg: Msg) -> None:
        self.answers.append(codec.json_decoder(Answer).decode(msg.data))
        self._changed.set()

    async def last(self, seconds: float = SECONDS) -> Done | Error:
        """Wait for the last word."""
        async with asyncio.timeout(seconds):
            while not self.answers or not isinstance(self.answers[-1], Done | Error):
                await self._changed.wait()
                self._changed.clear()
        last = self.answers[-1]
        assert isinstance(last, Done | Error)
        return last

    async def accepted(self) -> None:
        """Wait for the first answer."""
        async with asyncio.timeout(SECONDS):
            while not self.answers:
                await self._changed.wait()
                self._changed.clear()
        assert isinstance(self.answers[0], Accepted), self.answers

    @property
    def vectors(self) -> list[list[float]]:
        """All vectors that came, which must have come in order."""
        found: list[list[float]] = []
        for answer in self.answers:
            if isinstance(answer, Vectors):
                assert answer.index == len(found)
                numbers = unpack_floats(answer.data).tolist()
                size = answer.dimensions
                found += [numbers[at : at + size] for at in range(0, len(numbers), size)]
        return found


class Stage:
    """One processor, as many encoders as the test wants, and clients."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self.bus = bus
        self.subjects = subjects
        self.service: EmbedService
        self.http: EmbedHttpDoor
        self.session: aiohttp.ClientSession
        self.tasks: anyio.abc.TaskGroup
        self.tokenizer: Tokenizer

    async def encoder(self, index: int = 0, act: Act = accept, *, answers: bool = False, generation: int = 1) -> Enc:
        """Add an encoder and wait until the processor knows it; one that `answers` needs no more help."""
        encoder = Enc(self.bus, self.subjects, "encoder", index, generation)
        encoder.act = act
        await encoder.start()
        await eventually(lambda: self.knows(encoder))
        self.tasks.start_soon(encoder.beat_on)
        if answers:
            self.tasks.start_soon(encoder.answer_all)
        return encoder

    def knows(self, encoder: Enc) -> bool:
        seat = self.service.view.seats.get(encoder.slot)
        return seat is not None and seat.incarnation == encoder.incarnation

    async def gate(self, is_open: bool) -> None:
        """Write the gate, and wait until the processor has seen it."""
        gates = await self.bus.bucket(self.subjects.gate_bucket)
        missing = [] if is_open else [Missing(what="demo-encoder-0", why="loading")]
        gate = Gate(model="demo", alias="demo", open=is_open, epoch=1, since=0.0, missing=missing)
        await gates.put("demo", codec.to_json(gate))
        view = self.service.view
        await eventually(lambda: view.gate is not None and view.gate.open is is_open)

    async def submit(self, given: Any, kind: str = "embed", **fields: Any) -> Talk:
        """Submit an input over NATS as JSON."""
        talk = Talk(fields.setdefault("id", str(uuid.uuid4())))
        reply = self.bus.inbox()
        await self.bus.subscribe(reply, talk.take)
        body = msgspec.json.encode({"input": given} | fields)
        await self.bus.publish(f"troupe.v1.submit.demo.{kind}", body, reply=reply)
        return talk

    async def post(self, body: Any, path: str = "/v1/embeddings") -> tuple[int, Any]:
        """POST; return (status, JSON)."""
        data = io.BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
        async with self.session.post(f"{self.http.address}{path}", data=data) as answer:
            return answer.status, await answer.json()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=True)


@asynccontextmanager
async def raised(url: str, **settings: Any) -> AsyncIterator[Stage]:
    """Put a processor on a stage of its own; `settings` are fields of `Model`."""
    plain = {"name": "demo", "engine": "simulated", "path": TINY, "cast": {"processor": {}, "encoder": {"count": 2}}}
    model = msgspec.convert(plain | settings, Model)
    ours = await Bus.connect(Nats(url=url), name="processor", wait=5)
    theirs = await Bus.connect(Nats(url=url), name="others", wait=5)
    stage = Stage(theirs, Subjects())

    def read() -> tuple[Intake, EmbedIntake]:
        stage.tokenizer = kept = Tokenizer(TINY)
        intake = Intake(model, kept, Template.load(kept.folder, kept.settings, kept.special, None))
        return intake, EmbedIntake(model, kept, intake)

    intake, embed_intake = await asyncio.to_thread(read)
    try:
        async with aiohttp.ClientSession() as stage.session, anyio.create_task_group() as stage.tasks:
            incarnation = "demo-processor-0-g1"

            def own(work: Callable[[], Awaitable[None]]) -> None:
                async def owned() -> None:
                    await work()

                stage.tasks.start_soon(owned)

            service = stage.service = EmbedService(
                bus=ours,
                subjects=stage.subjects,
                model=model,
                incarnation=incarnation,
                intake=intake,
                embed_intake=embed_intake,
                own=own,
            )
            await service.open(
                await ours.bucket(stage.subjects.registry_bucket), await ours.bucket(stage.subjects.gate_bucket)
            )
            await EmbedNatsDoor(ours, stage.subjects, service, incarnation, own).open()
            stage.http = EmbedHttpDoor(service, "127.0.0.1", 0)
            await stage.http.open()
            await ours.flush()
            try:
                yield stage
            finally:
                await stage.http.shut()
                await stage.http.close()
                stage.tasks.cancel_scope.cancel()
    finally:
        await ours.close()
        await theirs.close()
