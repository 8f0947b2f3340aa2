"""An engine without a model: deterministic tokens at a chosen pace, for scale, drills and tests.

The next token is a function of the whole sequence so far, so a stream that is continued elsewhere from prompt and
tokens so far goes on exactly as it would have. Time to first token, time between tokens, KV blocks and the prefix
cache are simulated; one step serves every running stream, as in a real engine. Prefill and decode meet over TCP
(`rendezvous`), so that the death of one is felt by the other. The prefix cache's changes are told
as SGLang tells them (`kv_publisher`). As an encoder it turns token ids into deterministic unit vectors, at the pace of
the time to first token.
"""

import asyncio
import hashlib
import json
import math
import os
import random
import signal
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from actors.actor import Setup
from actors.engines.engine import (
    FAKE_HOST,
    ConfigurationError,
    Disaggregation,
    Emit,
    Encoding,
    Engine,
    EngineDiedError,
    EngineInfo,
    Figures,
    Generation,
    LoadError,
    Report,
    encode_one,
    generate_one,
)
from actors.engines.kv_publisher import KvPublisher
from actors.engines.places import Places, prepare
from actors.engines.rendezvous import BrokenRendezvousError, DecodeSide, PrefillSide
from actors.engines.simulated_tongue import SimulatedTongue
from actors.engines.tongue import Tongue
from actors.kv_wire import GPU, BlockRemoved, BlockStored
from messages import leftovers
from messages.codec import Ranked, pack_logprobs, token_count, unpack_tokens
from messages.embed import pack_floats
from messages.frames import Finish
from messages.lifecycle import Child, RankLoad
from messages.work import Conversation

VERSION: Final = "1"
CONTEXT: Final = 32_768
MAX_RUNNING: Final = 1 << 16
HIGHEST_BIAS: Final = 100.0
HELLO: Final = Conversation(messages=[{"role": "user", "content": "Hi"}])
FAULTS: Final = ("hang", "spin", "crash", "slow")


class Stream:
    """One running stream: `crc` is the state from which its next token follows; a seed is where it begins.

    `forced` are the tokens with the highest possible bias, of which alone it chooses, `banned` those with the lowest.
    """

    __slots__ = (
        "aborted",
        "banned",
        "blocks",
        "cached",
        "crc",
        "done",
        "emit",
        "forced",
        "key",
        "least",
        "length",
        "limit",
        "made",
        "prompt",
        "rank",
        "rank_prompt",
        "ranks",
        "stops",
    )

    def __init__(self, asked: Generation, emit: Emit, done: "asyncio.Future[None]", stops: frozenset[int]) -> None:
        self.key = asked.key
        self.prompt = asked.prompt
        self.emit = emit
        self.done = done
        self.stops = stops
        sampling = asked.sampling
        seed = 0 if sampling.seed is None else zlib.crc32(str(sampling.seed).encode())
        self.crc = zlib.crc32(asked.prompt, seed)
        self.forced = [at for at, bias in sampling.logit_bias.items() if bias >= HIGHEST_BIAS]
        self.banned = {at for at, bias in sampling.logit_bias.items() if bias <= -HIGHEST_BIAS}
        self.least = sampling.min_tokens
        self.ranks = sampling.logprobs or 0
        self.rank = asked.rank
        self.rank_prompt = sampling.prompt_logprobs
        self.length = token_count(asked.prompt)
        self.limit = asked.sampling.max_tokens
        self.made = 0
        self.cached = 0
        self.blocks = 0
        self.aborted = False

    def finish(self, tokens: bytes, reason: str, code: int = 0, message: str = "", matched: int | None = None) -> None:
        """Say the last word; the first one counts."""
        if not self.done.done():
            self.done.set_result(None)
            self.emit(tokens, Finish(reason, code, message, self.length, self.made, self.cached, matched))


class SimulatedEngine(Engine):
    """The simulated engine; see the file's head."""

    def __init__(self, setup: Setup, disaggregation: Disaggregation) -> None:
        self._setup = setup
        self._model = setup.model
        self._pace = setup.model.simulated
        self._side = disaggregation
        self._host = setup.part.advertise
        self._tokens: list[bytes] = []
        self._token_ids: list[int] = []
        self._vocab_size = 0
        self._eos = -1
        self._running: dict[str, Stream] = {}
        self._encoding: dict[str, asyncio.Task[Any]] = {}
        self._waiting: deque[Stream] = deque()
        self._wake = asyncio.Event()
        self._stepper: asyncio.Task[None] | None = None
        self._steps = 0
        self._pool = Pool(self._pace.total_blocks, self._pace.block_size)
        self._hang_until = 0.0
        self._slow = (1.0, 0.0)
        self._prefill_side: PrefillSide | None = None
        self._decode_side: DecodeSide | None = None
        self._places: Places | None = None
        self._kv: KvPublisher | None = None

    def load(self, report: Report) -> EngineInfo:
        """Read the tokenizer's vocabulary and take as long as the configuration says."""
        report("weights", "simulated")
        self._read_vocabulary()
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
            context_length=self._model.context_length or CONTEXT,
            vocab_size=self._vocab_size,
            block_size=self._pace.block_size,
            total_blocks=self._pace.total_blocks,
            max_running=MAX_RUNNING,
            bootstrap_port=port,
            kv_sources=self._places.sources(1) if self._places is not None else [],
            dimensions=self._pace.dimensions if self._setup.slot.role == "encoder" else 0,
        )

    def _read_vocabulary(self) -> None:
        """Choose the ids to generate: all but the special ones, so that every stream is text."""
        special: set[int] = set()
        size = self._pace.vocab_size
        folder = self._model.tokenizer or self._model.path
        if size is None:
            if folder is None:
                raise ConfigurationError("the simulated engine needs a tokenizer or simulated.vocab_size")
            path = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
            try:
                data = json.loads(path.read_bytes())
                special = {token["id"] for token in data["added_tokens"]}
                size = max([*data["model"]["vocab"].values(), *special]) + 1
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise LoadError(f"{path}: no tokenizer: {error}") from None
        self._vocab_size = size
        self._token_ids = [token for token in range(size) if token not in special]
        self._tokens = [token.to_bytes(4, "little") for token in self._token_ids]
        self._eos = min(special, default=-1)

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
            await self._wait((self._pace.ttft + self._pace.prefill_per_token * length) * self._factor())
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
            await encode_one(self, self._token_ids[0])
        else:
            tongue = self.tongue()
            prompt = self._token_ids[:1] if tongue is None else tongue.render(HELLO)
            await generate_one(self, prompt, rank, self._side)

    async def _run_stream(self, stream: Stream, asked: Generation) -> None:
        meeting = asked.bootstrap if asked.bootstrap is None or asked.bootstrap.host != FAKE_HOST else None
        if self._side == "prefill" and self._prefill_side is not None and meeting is not None:
            async with self._prefill_side.room(meeting.room) as room:
                await self._until(stream, room.reserved())
                await self._until(stream, self._compute(stream))
                if not stream.done.done():
                    room.transferred()
                    self._rank_prompt(stream)
                    stream.finish(b"", "prefilled")
            return
        if self._side == "decode" and self._decode_side is not None and meeting is not None:
            await self._until(stream, self._decode_side.meet(meeting))
            stream.cached = stream.length
        else:
            await self._until(stream, self._compute(stream))
            if stream.rank_prompt and not stream.done.done():
                self._rank_prompt(stream)
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
        seconds = (self._pace.ttft + self._pace.prefill_per_token * (stream.length - stream.cached)) * self._factor()
        if seconds <= 0:
            self._steps += 1
            return None
        return asyncio.ensure_future(self._wait(seconds))

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if (hang := self._hang_until - time.monotonic()) > 0:
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
            pause = self._pace.itl * self._factor()
            if (hang := self._hang_until - time.monotonic()) > 0:
                pause = max(pause, hang)
            await asyncio.sleep(pause)
            while self._waiting:
                batch.append(self._waiting.popleft())
            self._steps += 1
            for stream in batch:
                self._step(stream)
            batch = [stream for stream in batch if not stream.done.done()]

    def _step(self, stream: Stream) -> None:
        if stream.done.done():
            return
        eos_every = self._pace.eos_every
        stream.made += 1
        may_stop = stream.made > stream.least
        if eos_every and may_stop and stream.stops and (stream.length + stream.made) % eos_every == 0:
            matched = min(stream.stops)
            self._rank(stream, matched)
            stream.finish(matched.to_bytes(4, "little"), "stop", matched=matched)
            return
        at = stream.crc % len(self._tokens)
        if stream.forced or stream.banned or not may_stop:
            at = self._allowed(stream, at, may_stop)
        token = self._tokens[at]
        self._rank(stream, self._token_ids[at])
        stream.crc = zlib.crc32(token, stream.crc)
        if self._token_ids[at] in stream.stops:
            stream.finish(token, "stop", matched=self._token_ids[at])
        elif stream.made >= stream.limit:
            stream.finish(token, "length")
        else:
            stream.emit(token, None)

    def _allowed(self, stream: Stream, at: int, may_stop: bool) -> int:
        """Find the first token from a place on that the biases, and the least number of tokens, allow."""
        if stream.forced:
            wanted = stream.forced[at % len(stream.forced)]
            return self._token_ids.index(wanted) if wanted in self._token_ids else at
        refused = stream.banned if may_stop else stream.banned | stream.stops
        for step in range(len(self._token_ids)):
            place = (at + step) % len(self._token_ids)
            if self._token_ids[place] not in refused:
                return place
        return at

    def _rank(self, stream: Stream, token: int) -> None:
        """Make up how likely a token was, and the next likeliest: a function of what stands before it."""
        if stream.rank is not None:
            stream.rank(pack_logprobs([self._made_up(stream.crc, token, stream.ranks)]))

    def _rank_prompt(self, stream: Stream) -> None:
        """Make up how likely the prompt's tokens were, all but the first."""
        if stream.rank is None or not stream.rank_prompt:
            return
        made, crc = [], 0
        for at in range(0, len(stream.prompt), 4):
            token = stream.prompt[at : at + 4]
            made.append(self._made_up(crc, int.from_bytes(token, "little"), stream.ranks))
            crc = zlib.crc32(token, crc)
        stream.rank(pack_logprobs(made[1:]))

    def _made_up(self, crc: int, token: int, ranks: int) -> Ranked:
        first = 0.5 + (crc % 400) / 1_000
        likeliest = [(token, math.log(first))]
        at, left = token, 1.0 - first
        for _ in range(1, min(ranks, self._vocab_size)):
            at, left = (at + 1) % self._vocab_size, left / 2
            likeliest.append((at, math.log(left)))
        return likeliest[0][1], likeliest[:ranks]

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
        return SimulatedTongue(self._token_ids) if self._model.text else None

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
        if fault not in FAULTS:
            raise ValueError(f"the simulated engine cannot show {fault!r}; it can {', '.join(FAULTS)}")
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            self._hang_until = time.monotonic() + seconds
        if fault == "slow":
            self._slow = (10.0, time.monotonic() + seconds)
        if fault == "spin":
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass

    def _factor(self) -> float:
        factor, until = self._slow
        return factor if time.monotonic() < until else 1.0


class Pool:
    """The KV pool in blocks, with a prefix cache: whole blocks of prompts stay until room is needed, oldest first.

    `tell`, if set, is called with each change of the cache as SGLang's event.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.used = 0
        self._size = block_size * 4
        self._block = block_size
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.tell: Callable[[Any], None] | None = None

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-tokens // self._block)

    def admit(self, stream: Stream) -> int:
        """Take blocks for a prompt; return how many of its tokens were in the cache."""
        prompt, size = stream.prompt, self._size
        stream.blocks = self.blocks_for(stream.length)
        self.used += stream.blocks
        hits, parent, matching = 0, 0, True
        for begin in range(0, len(prompt) - size + 1, size):
            block = _chained(parent, prompt[begin : begin + size])
            if block in self._cached:
                self._cached.move_to_end(block)
                hits += matching
            else:
                matching = False
                self._cached[block] = None
                if self.tell is not None:
                    tokens = unpack_tokens(prompt[begin : begin + size])
                    self.tell(BlockStored([block], parent or None, tokens, self._block, None, GPU))
            parent = block
        self._evict()
        return min(hits * self._block, stream.length - 1)

    def _evict(self) -> None:
        removed = []
        while self._cached and len(self._cached) + self.used > self.total:
            removed.append(self._cached.popitem(last=False)[0])
        if removed and self.tell is not None:
            self.tell(BlockRemoved(removed, GPU))

    def release(self, stream: Stream) -> None:
        """Give a stream's blocks back."""
        self.used -= stream.blocks
        stream.blocks = 0


def unit_vector(tokens: bytes, length: int, dimensions: int = 0) -> list[float]:
    """Make the vector of packed token ids: `length` numbers, cut to the first `dimensions` if any, of length 1."""
    chance = random.Random(tokens)
    values = [chance.gauss() for _ in range(length)][: dimensions or None]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]


def _chained(parent: int, block: bytes) -> int:
    """Hash a block together with all that stands before it, as a signed 64-bit number: the same in every process."""
    digest = hashlib.blake2b(parent.to_bytes(8, "little", signed=True) + block, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
