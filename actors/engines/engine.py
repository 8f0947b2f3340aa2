"""The contract of an engine: token ids in, token ids (or vectors) out, and nothing else about how they are made.

An engine is loaded in its process's main thread with no event loop running (SGLang wants it so), then used from the
actor's loop. Everything above it, the base class, the router, the supervisor, cannot tell which engine it is.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from messages.codec import pack_tokens, unpack_tokens
from messages.frames import Finish
from messages.lifecycle import Child, KvSource, RankLoad, StageName
from messages.work import Bootstrap, Sampling

if TYPE_CHECKING:
    from actors.engines.tongue import Tongue

Disaggregation = Literal["null", "prefill", "decode"]

Report = Callable[[StageName, str], None]
"""Called while loading, at the begin of each stage, with a word on it."""

Emit = Callable[[bytes, Finish | None], None]
"""Called with packed token ids as they come, and with the finish exactly once, last; never after it.

An embedding engine gives packed floats (`embed.pack_floats`) instead: whole vectors, in the order of the inputs.
"""


Rank = Callable[[bytes], None]
"""Called with the log-probabilities (`codec.pack_logprobs`) of the tokens that the next `Emit` brings."""


class LoadError(Exception):
    """The engine cannot be loaded; the text says why in one line (no such model, out of memory, ...)."""


class ConfigurationError(LoadError):
    """The engine's own arguments are wrong: starting again cannot mend it."""


class EngineDiedError(Exception):
    """The engine's own process is gone; the actor must end."""


class VerbError(Exception):
    """An engine does not do what it was told (pause, flush, ...); the text says why, and what would help."""


class ProbeError(Exception):
    """A health probe was answered with a failure; the text says which."""


FAKE_HOST: Final = "2.2.2.2"
"""SGLang's name (`FAKE_BOOTSTRAP_HOST`) for a hand-over that nobody takes part in: for warm-up and health probes."""


class EngineInfo(Struct, kw_only=True):
    """What is known of an engine once it is loaded; the registration carries it on. Blocks are KV blocks.

    `metrics` is the folder with the engine's Prometheus files, empty for none. `dimensions` is how long an embedding
    engine's vectors are, 0 for an engine that generates. `grammars` says whether it can hold an answer to one.
    """

    name: str
    version: str
    context_length: int
    vocab_size: int
    block_size: int
    total_blocks: int
    max_running: int
    dp_ranks: int = 1
    bootstrap_port: int | None = None
    kv_sources: list[KvSource] = []
    metrics: str = ""
    dimensions: int = 0
    grammars: bool = False


class Figures(Struct, kw_only=True):
    """How loaded an engine is now; `steps` counts the batch outputs received from it."""

    steps: int
    queued: int
    kv_used: int
    kv_total: int


class Generation(Struct, kw_only=True):
    """One stream asked of an engine; `prompt` is packed token ids, `key` unique among those under way.

    `dp_rank` is the DP rank that it must run on, None for any.


    `rank` gets log-probabilities, where the sampling asks for them; those of the prompt before any others, by the side
    that computes it, with an `emit` that brings no tokens.
    """

    key: str
    prompt: bytes
    sampling: Sampling
    bootstrap: Bootstrap | None = None
    dp_rank: int | None = None
    rank: Rank | None = None


class Encoding(Struct, kw_only=True):
    """Vectors asked of an embedding engine: for each input's packed token ids one, of its first `dimensions` numbers.

    0 dimensions are all of them; what is cut is brought to length 1 again. `key` is unique among those under way.
    """

    key: str
    inputs: list[bytes]
    dimensions: int = 0


class Engine(ABC):
    """One engine in one process: one that generates or, where its slot's role is encoder, one that embeds."""

    @abstractmethod
    def load(self, report: Report) -> EngineInfo:
        """Load, blocking, in the main thread, with no loop running. Raises LoadError or ConfigurationError."""

    @abstractmethod
    async def warm_up(self) -> None:
        """Generate real tokens once on every DP rank, so that the first client pays for nothing.

        A prefill or decode engine does it against SGLang's fake bootstrap host. Raises LoadError if no token came.
        """

    @abstractmethod
    async def generate(self, asked: Generation, emit: Emit) -> None:
        """Run one stream to its end, emitting as tokens come; return after the finish has been emitted.

        A failure is a finish with the reason "error" and a code, never an exception; cancelling the task aborts.
        A decode engine that dies midway raises EngineDiedError.
        """

    @abstractmethod
    async def encode(self, asked: Encoding, emit: Emit) -> None:
        """Turn inputs into vectors, emitting as they come; the rest is as with `generate`, the good end "encoded"."""

    @abstractmethod
    def abort(self, key: str) -> None:
        """Stop one stream; its finish has the reason "abort". Does nothing if it is unknown."""

    @abstractmethod
    def figures(self) -> Figures:
        """Tell how loaded the engine is; cheap, for heartbeats."""

    @abstractmethod
    def children(self) -> list[Child]:
        """Tell how the engine's own processes are, from /proc; none if it has none."""

    @abstractmethod
    async def watch(self) -> None:
        """Run for as long as the engine can generate; raise EngineDiedError the moment its own processes are gone."""

    @abstractmethod
    async def close(self) -> None:
        """Free everything; the process ends afterwards."""

    @abstractmethod
    async def probe(self, rank: int) -> None:
        """Have one DP rank do the smallest possible request; return when it has been done.

        A prefill or decode engine does it against SGLang's fake bootstrap host. Cancelling gives it up. Raises
        ProbeError for an answer that is a failure.
        """

    def tongue(self) -> "Tongue | None":
        """Give the engine's own template and tokenizer, once it is loaded; None where processors have them."""
        return None

    def loads(self) -> list[RankLoad]:
        """Tell how loaded each DP rank is by the engine's own account; cheap, for heartbeats; empty if it has none."""
        return []

    async def pause(self) -> None:
        """Stop between two steps: streams stand still, new ones wait. Raises VerbError if it cannot."""
        raise VerbError(self._cannot("pause"))

    async def resume(self) -> None:
        """Go on after `pause`. Raises VerbError if it cannot."""
        raise VerbError(self._cannot("resume"))

    async def flush(self) -> None:
        """Empty the prefix cache. Raises VerbError, also for an engine that is busy."""
        raise VerbError(self._cannot("flush"))

    async def profile(self, folder: Path, seconds: float) -> list[str]:
        """Record a trace for so long; return the names of the files in `folder`. Raises VerbError if it cannot."""
        raise VerbError(self._cannot("profile"))

    async def sleep(self) -> None:
        """Give the GPU's memory back, weights kept in the host's; it must be idle. Raises VerbError if it cannot."""
        raise VerbError(self._cannot("sleep"))

    async def wake(self) -> None:
        """Take the memory again after `sleep`. Raises VerbError if it cannot."""
        raise VerbError(self._cannot("wake"))

    def _cannot(self, verb: str) -> str:
        return f"this engine has no {verb}"

    def inject(self, fault: str, seconds: float) -> None:
        """Show a fault on purpose (drills only). Raises ValueError for one that this engine cannot show."""
        raise ValueError(f"this engine cannot show the fault {fault!r}")

    def check(self, asked: Generation) -> str | None:
        """Say why this engine cannot run a stream that fits, or None if it can."""
        return None


def misfit(asked: Generation, info: EngineInfo) -> str | None:
    """Say why a stream does not fit an engine, or None: a single id outside the vocabulary would kill all of SGLang."""
    if len(asked.prompt) % 4:
        return f"{len(asked.prompt)} bytes of prompt are no whole number of packed token ids"
    if (sampling := asked.sampling).logit_bias and (worst := max(sampling.logit_bias)) >= info.vocab_size:
        return f"logit_bias: token id {worst} is outside the vocabulary of {info.vocab_size}"
    if sampling.grammar is not None and not info.grammars:
        return f"{sampling.grammar}: this engine has no grammars"
    return _misfit(memoryview(asked.prompt).cast("I"), info, "the prompt", "prompt tokens leave no room in")


def misfit_inputs(asked: Encoding, info: EngineInfo) -> str | None:
    """Say why inputs do not fit an embedding engine, or None."""
    if not asked.inputs:
        return "there are no inputs"
    if asked.dimensions > info.dimensions:
        return f"{asked.dimensions} dimensions are more than the {info.dimensions} that there are"
    for at, tokens in enumerate(asked.inputs):
        where = f"input {at}"
        if (why := _misfit(memoryview(tokens).cast("I"), info, where, f"tokens of {where} do not fit in")) is not None:
            return why
    return None


def _misfit(tokens: "memoryview[int]", info: EngineInfo, what: str, too_many: str) -> str | None:
    if not tokens:
        return f"{what} is empty"
    if (worst := max(tokens)) >= info.vocab_size:
        return f"token id {worst} is outside the vocabulary of {info.vocab_size}"
    if len(tokens) >= info.context_length:
        return f"{len(tokens)} {too_many} a context of {info.context_length}"
    return None


async def generate_one(engine: Engine, prompt: list[int], rank: int, side: Disaggregation) -> list[int]:
    """Have an engine generate one token, greedily: `Engine.probe` for engines that generate. Prefill tells none."""
    room = Bootstrap(host=FAKE_HOST, port=8998, room=rank) if side != "null" else None
    sampling = Sampling(max_tokens=1, temperature=0, ignore_eos=True)
    packed = pack_tokens(prompt)
    asked = Generation(key=f"probe-{uuid.uuid4()}", prompt=packed, sampling=sampling, bootstrap=room, dp_rank=rank)
    return unpack_tokens(await _until_finished(partial(engine.generate, asked)))


async def encode_one(engine: Engine, token: int) -> None:
    """Have an engine embed one token: `Engine.probe` for engines that embed."""
    asked = Encoding(key=f"probe-{uuid.uuid4()}", inputs=[token.to_bytes(4, "little")])
    await _until_finished(partial(engine.encode, asked))


async def _until_finished(work: Callable[[Emit], Coroutine[object, object, None]]) -> bytes:
    finishes: list[Finish] = []
    got = []

    def see(data: bytes, finish: Finish | None) -> None:
        got.append(data)
        if finish is not None:
            finishes.append(finish)

    await work(see)
    finish = finishes[0]
    if finish.reason not in ("length", "stop", "prefilled", "encoded"):
        raise ProbeError(f"{finish.reason} {finish.code}: {finish.message}")
    return b"".join(got)
