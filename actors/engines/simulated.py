"""An engine without a model: deterministic tokens at a chosen pace, for scale, drills and tests.

Time to first token, time between tokens, the next token (`simulated_model`), KV blocks and the prefix cache
(`simulated_pool`) are simulated; one step serves every running stream, as in a real engine. Prefill and decode meet
over TCP (`rendezvous`), so that the death of one is felt by the other. The prefix cache's changes are told as SGLang
tells them (`kv_publisher`). As an encoder it turns token ids into deterministic unit vectors, at the pace of the time
to first token.
"""

import asyncio
import time
from collections import deque
from typing import Any, Final

from actors.engines.engine import (
    FAKE_HOST,
    Disaggregation,
    Emit,
    Encoding,
    Engine,
    EngineDiedError,
    EngineInfo,
    Figures,
    Generation,
    Report,
    encode_one,
    generate_one,
)
from actors.engines.kv_publisher import KvPublisher
from actors.engines.places import Places, prepare
from actors.engines.rendezvous import BrokenRendezvousError, DecodeSide, PrefillSide
from actors.engines.simulated_faults import Faults
from actors.engines.simulated_model import SimulatedModel, unit_vector
from actors.engines.simulated_pool import Pool
from actors.engines.simulated_stream import Stream
from actors.engines.simulated_tongue import SimulatedTongue
from actors.engines.tongue import Tongue
from actors.setup import Setup
from messages import leftovers
from messages.codec import token_count
from messages.embed import pack_floats
from messages.frames import Finish
from messages.lifecycle import Child, RankLoad
from messages.work import Conversation

VERSION: Final = "1"
CONTEXT: Final = 32_768
MAX_RUNNING: Final = 1 << 16
HELLO: Final = Conversation(messages=[{"role": "user", "content": "Hi"}])


class SimulatedEngine(Engine):
    """The simulated engine; see the file's head."""

    def __init__(self, setup: Setup, disaggregation: Disaggregation) -> None:
        self._setup = setup
        self._config = setup.model
        self._model = SimulatedModel(setup.model)
        self._pace = setup.model.simulated
        self._side = disaggregation
        self._host = setup.part.advertise
        self._running: dict[str, Stream] = {}
        self._encoding: dict[str, asyncio.Task[Any]] = {}
        self._waiting: deque[Stream] = deque()
        self._wake = asyncio.Event()
        self._stepper: asyncio.Task[None] | None = None
        self._steps = 0
        self._pool = Pool(self._pace.total_blocks, self._pace.block_size)
        self._faults = Faults()
        self._prefill_side: PrefillSide | None = None
        self._decode_side: DecodeSide | None = None
        self._places: Places | None = None
        self._kv: KvPublisher | None = None

    def load(self, report: Report) -> EngineInfo:
        """Read the tokenizer's vocabulary and take as long as the configuration says."""
        report("weights", "simulated")
        self._model.read()
        time.sleep(self._pace.load)
        report("kv_pool", f"{self._pace.total_blocks} blocks")
        port = None
        if self._side == "prefill":
            self._prefill_side = PrefillSide(self._host)
            port = self._prefill_side.port
        if self._side == "decode":
            self._decode_side = DecodeSide()
        leftovers.clear(self._setup.folder)
        self._places = prepare(self._setup)
        return EngineInfo(
            name="simulated",
            version=VERSION,
            context_length=self._config.context_length or CONTEXT,
            vocab_size=self._model.size,
            block_size=self._pace.block_size,
            total_blocks=self._pace.total_blocks,
            max_running=MAX_RUNNING,
            bootstrap_port=port,
            kv_sources=self._places.sources(1) if self._places is not None else [],
            dimensions=self._pace.dimensions if self._setup.slot.role == "encoder" else 0,
        )

    async def warm_up(self) -> None:
        """Start the engine's own task, its meeting place and its KV events."""
        if self._places is not None:
            self._kv = KvPublisher(self._places.sources(1)[0])
            self._kv.open()
            self._pool.tell = self._kv.add
        self._stepper = asyncio.get_running_loop().create_task(self._run())
        if self._prefill_side is not None:
            await self._prefill_side.open()

    async def generate(self, asked: Generation, emit: Emit) -> None:
        """Run one stream to its end."""
        stops = frozenset() if asked.sampling.ignore_eos else frozenset(asked.sampling.stop_token_ids)
        stream = Stream(asked, emit, asyncio.get_running_loop().create_future(), stops)
        self._running[stream.key] = stream
        try:
            await self._run_stream(stream, asked)
        except BrokenRendezvousError as error:
            stream.finish(b"", "error", 503, str(error))
        finally:
            self._running.pop(stream.key, None)
            self._pool.release(stream)
            stream.aborted = True

    async def encode(self, asked: Encoding, emit: Emit) -> None:
        """Turn inputs into vectors, in one step."""
        task = asyncio.current_task()
        assert task is not None
        self._encoding[asked.key] = task
        length = sum(token_count(tokens) for tokens in asked.inputs)
        try:
            await self._wait(self._seconds(length))
            for tokens in asked.inputs:
                emit(pack_floats(unit_vector(tokens, self._pace.dimensions, asked.dimensions)), None)
            emit(b"", Finish("encoded", prompt_tokens=length))
        except asyncio.CancelledError:
            emit(b"", Finish("abort", 499, "aborted"))
        finally:
            del self._encoding[asked.key]

    async def probe(self, rank: int) -> None:
        """Generate one token, or one vector."""
        if self._setup.slot.role == "encoder":
            await encode_one(self, self._model.tokens[0])
        else:
            tongue = self.tongue()
            prompt = self._model.tokens[:1] if tongue is None else tongue.render(HELLO)
            await generate_one(self, prompt, rank, self._side)

    async def _run_stream(self, stream: Stream, asked: Generation) -> None:
        meeting = asked.bootstrap if asked.bootstrap is None or asked.bootstrap.host != FAKE_HOST else None
        if self._side == "prefill" and self._prefill_side is not None and meeting is not None:
            async with self._prefill_side.room(meeting.room) as room:
                await self._until(stream, room.reserved())
                await self._until(stream, self._compute(stream))
                if not stream.done.done():
                    room.transferred()
                    self._model.rank_prompt(stream)
                    stream.finish(b"", "prefilled")
            return
        if self._side == "decode" and self._decode_side is not None and meeting is not None:
            await self._until(stream, self._decode_side.meet(meeting))
            stream.cached = stream.length
        else:
            await self._until(stream, self._compute(stream))
            if stream.rank_prompt and not stream.done.done():
                self._model.rank_prompt(stream)
                stream.emit(b"", None)
        if self._side == "prefill" and not stream.done.done():
            stream.finish(b"", "prefilled")
        if not stream.done.done():
            self._waiting.append(stream)
            self._wake.set()
            await stream.done

    async def _until(self, stream: Stream, work: "asyncio.Future[None] | None") -> None:
        """Wait for a part of the work, or for the stream's end if that comes first (an abort)."""
        if work is None or stream.done.done():
            return
        await asyncio.wait({work, stream.done}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        else:
            work.cancel()

    def _compute(self, stream: Stream) -> "asyncio.Future[None] | None":
        """Simulate the prompt's computation; what the prefix cache holds costs nothing."""
        stream.cached = self._pool.admit(stream)
        seconds = self._seconds(stream.length - stream.cached)
        if seconds <= 0:
            self._steps += 1
            return None
        return asyncio.ensure_future(self._wait(seconds))

    def _seconds(self, tokens: int) -> float:
        """How long so many tokens take to compute."""
        return (self._pace.ttft + self._pace.prefill_per_token * tokens) * self._faults.factor()

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if (hang := self._faults.hangs_for()) > 0:
            await self._wait(hang)
        else:
            self._steps += 1

    async def _run(self) -> None:
        """The engine's loop: each step gives every running stream one token."""
        batch: list[Stream] = []
        while True:
            if not batch and not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            pause = self._pace.itl * self._faults.factor()
            if (hang := self._faults.hangs_for()) > 0:
                pause = max(pause, hang)
            await asyncio.sleep(pause)
            while self._waiting:
                batch.append(self._waiting.popleft())
            self._steps += 1
            for stream in batch:
                self._model.step(stream)
            batch = [stream for stream in batch if not stream.done.done()]

    def abort(self, key: str) -> None:
        """Stop one stream."""
        if (stream := self._running.get(key)) is not None:
            stream.finish(b"", "abort", 499, "aborted")
        elif (task := self._encoding.get(key)) is not None:
            task.cancel()

    def check(self, asked: Generation) -> str | None:
        """Refuse what the KV pool could never hold."""
        needed = self._pool.blocks_for(token_count(asked.prompt))
        if needed > self._pool.total:
            return f"the prompt needs {needed} KV blocks of {self._pool.total}"
        return None

    def figures(self) -> Figures:
        """Tell how loaded it is."""
        return Figures(
            steps=self._steps, queued=len(self._waiting), kv_used=self._pool.used, kv_total=self._pace.total_blocks
        )

    def tongue(self) -> Tongue | None:
        """Give a tongue of numbers, for a model that leaves its tokenizer to the engine."""
        return SimulatedTongue(self._model.tokens) if self._config.text else None

    def loads(self) -> list[RankLoad]:
        """Tell how loaded its one rank is."""
        queued = len(self._waiting)
        return [
            RankLoad(
                0, len(self._running) + len(self._encoding) - queued, queued, self._pool.used, self._pace.total_blocks
            )
        ]

    def children(self) -> list[Child]:
        """It has no process of its own."""
        return []

    async def watch(self) -> None:
        """It lives as long as its stepping task does."""
        assert self._stepper is not None
        await asyncio.wait({self._stepper})
        raise EngineDiedError("the simulated engine's task has ended")

    async def close(self) -> None:
        """End every stream and the meeting place."""
        for stream in list(self._running.values()):
            stream.finish(b"", "abort", 499, "the engine closes")
        for task in list(self._encoding.values()):
            task.cancel()
        if self._stepper is not None:
            self._stepper.cancel()
        if self._prefill_side is not None:
            await self._prefill_side.close()
        if self._decode_side is not None:
            await self._decode_side.close()
        if self._kv is not None:
            self._kv.close()
        if self._places is not None:
            self._places.clear()

    def inject(self, fault: str, seconds: float) -> None:
        """Hang (no steps), spin (the loop blocked), crash (SIGKILL to itself), slow (ten times)."""
        self._faults.inject(fault, seconds)
