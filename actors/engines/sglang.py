"""The real engine: SGLang in this process, its scheduler and detokenizer below it, fed ids and read as ids.

Versions differ; what was found to differ between the tried ones is handled where it shows and marked with "0.5.17".
"""

import asyncio
import atexit
import contextlib
import inspect
import logging
import os
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

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
from actors.engines.model_files import find_model, repetition_penalty
from actors.engines.places import Places, prepare
from actors.engines.sglang_arguments import arguments
from actors.engines.sglang_embedding import cut, vectors
from actors.engines.sglang_files import files_of
from actors.engines.sglang_form import beginning, finish_of, meeting_place, ranked, ranked_prompt, sampling_params
from actors.engines.sglang_telemetry import Loads, sources_of, use_metrics_folder
from actors.engines.sglang_tongue import SglangTongue
from actors.engines.sglang_verbs import SglangVerbs
from actors.engines.tongue import Tongue
from actors.setup import Setup
from messages import leftovers, procfs
from messages.codec import pack_logprobs, pack_tokens, token_count, unpack_tokens
from messages.embed import FLOAT_BYTES, pack_floats
from messages.frames import Finish
from messages.lifecycle import Child, RankLoad
from messages.work import Bootstrap, Sampling

log = logging.getLogger("troupe.sglang")

TRIED: Final = ("0.5.17", "0.5.23")
WARM_UP_TOKENS: Final = 4
ABORT_SECONDS: Final = 2.0


class SglangEngine(Engine):
    """One SGLang engine."""

    def __init__(self, setup: Setup, side: Disaggregation) -> None:
        self._setup = setup
        self._side = side
        self._embeds = setup.slot.role == "encoder"
        self._device = device_of(setup.model.device)
        self._engine: Any = None
        self._manager: Any = None
        self._info: EngineInfo
        self._live: dict[str, _Live] = {}
        self._steps = 0
        self._penalty = 1.0
        self._last_output = 0.0
        self._pids: list[int] = []
        self._loads: Loads | None = None
        self._places: Places | None = None
        self._tongue: SglangTongue | None = None
        self._verbs: SglangVerbs
        self._died: asyncio.Event

    def load(self, report: Report) -> EngineInfo:
        """Import SGLang, check the arguments, start the engine."""
        model, part = self._setup.model, self._setup.part
        assert model.path is not None
        model = msgspec.structs.replace(model, path=str(find_model(model.path, report)))
        report("import", "")
        sglang, server_args = _import(self._device)
        version = str(sglang.__version__)
        if version not in TRIED:
            log.warning("SGLang %s has not been tried with this; tried are %s", version, ", ".join(TRIED))
        known = inspect.signature(server_args).parameters
        asked = model.args | part.args
        leftovers.clear(self._setup.folder)
        places = self._places = prepare(self._setup, int(asked.get("dp_size") or 1))
        merged = arguments(
            model,
            part,
            self._side,
            self._device,
            known,
            _child_failed,
            places,
            embeds=self._embeds,
            gpus=len(self._setup.gpus),
            memory_fraction=self._setup.memory_fraction,
        )
        if places is not None and merged.get("enable_metrics"):
            use_metrics_folder(places.metrics)
        self._penalty = repetition_penalty(Path(merged["model_path"]))
        report("weights", str(model.path))
        try:
            self._engine = sglang.Engine(**merged)
        except LoadError:
            raise
        except (ValueError, AssertionError, TypeError, NotImplementedError) as error:
            raise ConfigurationError(f"SGLang refuses its configuration: {error}") from error
        except Exception as error:
            raise LoadError(f"SGLang did not start: {type(error).__name__}: {error}") from error
        leftovers.note(self._setup.folder, files_of(self._engine))
        atexit.unregister(self._engine.shutdown)
        self._manager = self._engine.tokenizer_manager
        known = inspect.signature(self._engine.async_generate).parameters
        # 0.5.17 has only the older name.
        self._rank_field = "routed_dp_rank" if "routed_dp_rank" in known else "data_parallel_rank"
        self._manager.signal_handler_class = _NoSignals
        if "enable_metrics" not in asked:
            # The scheduler's figures are free; those of each token that passes here cost a third of its time.
            self._manager.enable_metrics = False
        self._verbs = SglangVerbs(
            self._manager, can_sleep=bool(merged.get("enable_memory_saver") and merged.get("enable_weights_cpu_backup"))
        )
        self._pids = procfs.descendants(os.getpid())
        self._info = self._describe(version, merged, places)
        if model.text:
            self._tongue = SglangTongue(self._manager.tokenizer)
        if places is not None:
            self._loads = Loads(self._engine, self._info.block_size)
        return self._info

    def _describe(self, version: str, merged: dict[str, Any], places: Places | None) -> EngineInfo:
        config = self._manager.model_config
        scheduler = _scheduler_info(self._engine)
        page = int(merged.get("page_size") or 1)
        dp_ranks = int(merged.get("dp_size") or 1)
        most = scheduler.get("max_running_requests") or merged.get("max_running_requests") or 1 << 16
        return EngineInfo(
            name="sglang",
            version=version,
            context_length=int(config.context_len),
            vocab_size=int(config.vocab_size),
            block_size=page,
            total_blocks=int(scheduler["max_total_num_tokens"]) // page,
            max_running=int(most),
            dp_ranks=dp_ranks,
            bootstrap_port=merged["disaggregation_bootstrap_port"] if self._side == "prefill" else None,
            kv_sources=sources_of(merged, places, self._setup.part.advertise, dp_ranks),
            metrics=places.metrics if places is not None and merged.get("enable_metrics") else "",
            dimensions=int(config.hidden_size) if self._embeds else 0,
            grammars=not merged["skip_tokenizer_init"] and merged.get("grammar_backend") != "none",
        )

    async def warm_up(self) -> None:
        """Generate on every DP rank, a disaggregated engine against SGLang's fake bootstrap host; or embed.

        With the model's own repetition penalty, if it has one: on a GPU SGLang compiles that at its first use, and no
        stream of the engine goes on meanwhile.
        """
        self._died = asyncio.Event()
        if self._embeds:
            await self._warm_up_embedding()
            return
        for rank in range(self._info.dp_ranks):
            finishes: list[Finish] = []

            def see(tokens: bytes, finish: Finish | None, seen: list[Finish] = finishes) -> None:
                if finish is not None:
                    seen.append(finish)

            room = Bootstrap(host=FAKE_HOST, port=8998, room=rank) if self._side != "null" else None
            sampling = Sampling(
                max_tokens=WARM_UP_TOKENS, temperature=0, ignore_eos=True, repetition_penalty=self._penalty
            )
            prompt = pack_tokens(range(10, 14))
            await self.generate(
                Generation(key=f"warm-up-{rank}", prompt=prompt, sampling=sampling, bootstrap=room, dp_rank=rank), see
            )
            if finishes[0].reason not in ("length", "prefilled"):
                raise LoadError(f"no token came while warming up DP rank {rank}: {finishes[0].message}")
        self._watch_pids()

    async def _warm_up_embedding(self) -> None:
        """Embed on every DP rank, since requests go to them in turn; the first vector shows how long vectors are."""
        got: list[bytes] = []
        finishes: list[Finish] = []

        def see(vectors: bytes, finish: Finish | None) -> None:
            got.append(vectors)
            if finish is not None:
                finishes.append(finish)

        inputs = [pack_tokens(range(10, 14))] * self._info.dp_ranks
        await self.encode(Encoding(key="warm-up", inputs=inputs), see)
        if finishes[0].reason != "encoded":
            raise LoadError(f"no vector came while warming up: {finishes[0].message}")
        self._info.dimensions = len(got[0]) // FLOAT_BYTES
        self._watch_pids()

    async def encode(self, asked: Encoding, emit: Emit) -> None:
        """Turn inputs into vectors."""
        length = sum(token_count(tokens) for tokens in asked.inputs)
        live = self._live[asked.key] = _Live(length, asyncio.current_task())
        coming = vectors(self._manager, asked.key, asked.inputs, self._count_step)
        try:
            async with contextlib.aclosing(coming):
                async for vector in coming:
                    emit(pack_floats(cut(vector, asked.dimensions)), None)
            live.finish(emit, Finish("encoded", prompt_tokens=length))
        except asyncio.CancelledError:
            live.finish(emit, Finish("abort", 499, "aborted"))
        except (ValueError, TypeError) as error:
            live.finish(emit, Finish("error", 400, f"SGLang refuses: {error}"))
        except Exception as error:
            log.exception("request %s failed in SGLang", asked.key)
            live.finish(emit, Finish("error", 500, f"{type(error).__name__}: {error}"))
        finally:
            del self._live[asked.key]

    async def probe(self, rank: int) -> None:
        """Generate one token after the one that begins texts, or embed it; embeddings SGLang spreads over its ranks.

        Where the tokenizer is SGLang's, the probe is a text, and what comes is made one.
        """
        if self._tongue is not None:
            self._tongue.show(await generate_one(self, self._tongue.one_word(), rank, self._side))
            return
        token = beginning(self._manager.model_config.hf_config, self._info.vocab_size)
        if self._embeds:
            await encode_one(self, token)
        else:
            await generate_one(self, [token], rank, self._side)

    def _count_step(self) -> None:
        if self._manager.last_receive_tstamp != self._last_output:
            self._last_output = self._manager.last_receive_tstamp
            self._steps += 1

    async def generate(self, asked: Generation, emit: Emit) -> None:
        """Run one stream to its end."""
        live = self._live[asked.key] = _Live(token_count(asked.prompt), asyncio.current_task())
        try:
            await self._generate(asked, emit, live)
        except asyncio.CancelledError:
            live.finish(emit, Finish("abort", 499, "aborted"))
        except (ValueError, TypeError) as error:
            live.finish(emit, Finish("error", 400, f"SGLang refuses: {error}"))
        except Exception as error:
            log.exception("request %s failed in SGLang", asked.key)
            live.finish(emit, Finish("error", 500, f"{type(error).__name__}: {error}"))
        finally:
            if live.timer is not None:
                live.timer.cancel()
            del self._live[asked.key]

    async def _generate(self, asked: Generation, emit: Emit, live: "_Live") -> None:
        fields: dict[str, Any] = {
            "input_ids": unpack_tokens(asked.prompt),
            "sampling_params": sampling_params(asked.sampling, prefills=self._side == "prefill"),
            "stream": True,
            "rid": asked.key,
        }
        of_prompt = asked.sampling.prompt_logprobs and self._side != "decode"
        if (ranks := asked.sampling.logprobs) is not None:
            # From a start of 0 SGLang gives those of the prompt, too, for which it computes the whole of it again.
            fields |= {"return_logprob": True, "top_logprobs_num": ranks, "logprob_start_len": 0 if of_prompt else -1}
        if asked.bootstrap is not None:
            fields |= meeting_place(asked.bootstrap, prefills=self._side == "prefill")
        if asked.dp_rank is not None and self._info.dp_ranks > 1:
            fields[self._rank_field] = asked.dp_rank
        async for chunk in await self._engine.async_generate(**fields):
            self._count_step()
            tokens, meta = chunk["output_ids"], chunk["meta_info"]
            live.made += len(tokens)
            finish = finish_of(meta, prefills=self._side == "prefill", aborted=live.timer is not None)
            if self._side == "prefill":
                tokens = []
            if asked.rank is not None and of_prompt:
                of_prompt = False
                asked.rank(pack_logprobs(ranked_prompt(meta)))
                if self._side != "prefill":
                    emit(b"", None)
            if asked.rank is not None and tokens:
                asked.rank(pack_logprobs(ranked(meta, len(tokens))))
            if finish is not None:
                live.finish(emit, finish, pack_tokens(tokens))
            elif tokens:
                emit(pack_tokens(tokens), None)
        live.finish(emit, Finish("error", 500, "SGLang's stream ended without a finish"))

    def abort(self, key: str) -> None:
        """Stop one stream: through SGLang where it knows the request, else by cancelling its task."""
        live = self._live.get(key)
        if live is None or live.timer is not None:
            return
        if key in self._manager.rid_to_state:
            self._manager.abort_request(rid=key)
            live.timer = asyncio.get_running_loop().call_later(ABORT_SECONDS, live.cancel)
        else:
            live.cancel()

    def check(self, asked: Generation) -> str | None:
        """Refuse what SGLang cannot do without its own tokenizer."""
        if not self._setup.model.engine_tokenizer and asked.sampling.min_tokens:
            return "min_tokens needs the engine's own tokenizer, which is off (engine_tokenizer: false)"
        return None

    def figures(self) -> Figures:
        """Tell how loaded it is, by the streams under way."""
        page = self._info.block_size
        used = sum(-(-(live.prompt + live.made) // page) for live in self._live.values())
        queued = max(0, len(self._live) - self._info.max_running)
        return Figures(steps=self._steps, queued=queued, kv_used=used, kv_total=self._info.total_blocks)

    def tongue(self) -> Tongue | None:
        """Give SGLang's own tokenizer, for a model that leaves it to the engine."""
        return self._tongue

    def loads(self) -> list[RankLoad]:
        """Tell how loaded SGLang's schedulers say they are."""
        return self._loads.read() if self._loads is not None else []

    def children(self) -> list[Child]:
        """Tell how scheduler and detokenizer are."""
        found = [(pid, procfs.process(pid)) for pid in self._pids]
        return [
            Child(pid, process.state, round(process.cpu_seconds, 2)) if process is not None else Child(pid, "X", 0.0)
            for pid, process in found
        ]

    async def pause(self) -> None:
        """Stop between two steps."""
        await self._verbs.pause()

    async def resume(self) -> None:
        """Go on after a pause."""
        await self._verbs.resume()

    async def flush(self) -> None:
        """Empty the prefix cache."""
        await self._verbs.flush()

    async def profile(self, folder: Path, seconds: float) -> list[str]:
        """Record a trace of the scheduler."""
        return await self._verbs.profile(folder, seconds)

    async def sleep(self) -> None:
        """Give back the GPU's memory."""
        await self._verbs.sleep()

    async def wake(self) -> None:
        """Take it again."""
        await self._verbs.wake()

    async def watch(self) -> None:
        """Wait for the death of scheduler or detokenizer: SGLang itself notices late, or never when idle."""
        await self._died.wait()
        raise EngineDiedError("a process of SGLang (scheduler or detokenizer) has died")

    def _watch_pids(self) -> None:
        loop = asyncio.get_running_loop()
        for pid in self._pids:
            descriptor = os.pidfd_open(pid)

            def died(descriptor: int = descriptor) -> None:
                loop.remove_reader(descriptor)
                os.close(descriptor)
                self._died.set()

            loop.add_reader(descriptor, died)

    async def close(self) -> None:
        """Stop SGLang's own watching of its children; the caller kills them."""
        if self._manager is not None:
            watchdog = getattr(self._manager, "_subprocess_watchdog", None)
            if watchdog is not None:
                watchdog.stop()
        if self._loads is not None:
            self._loads.close()
        if self._places is not None:
            self._places.clear()
        for live in list(self._live.values()):
            live.cancel()


class _Live:
    """One stream under way."""

    __slots__ = ("finished", "made", "prompt", "task", "timer")

    def __init__(self, prompt: int, task: "asyncio.Task[Any] | None") -> None:
        self.prompt = prompt
        self.made = 0
        self.task = task
        self.timer: asyncio.TimerHandle | None = None
        self.finished = False

    def finish(self, emit: Emit, finish: Finish, tokens: bytes = b"") -> None:
        """Say the last word; the first one counts."""
        if not self.finished:
            self.finished = True
            emit(tokens, finish)

    def cancel(self) -> None:
        if self.task is not None and not self.finished:
            self.task.cancel()


class _NoSignals:
    """In place of SGLang's own handlers, which would drain or kill the process over our heads."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def sigterm_handler(self, signum: int | None = None, frame: object = None) -> None:
        """Leave SIGTERM to the actor, which takes it again after the warm-up."""

    def running_phase_sigquit_handler(self, signum: int | None = None, frame: object = None) -> None:
        """Note that a child of SGLang has failed; `watch` sees it go."""
        log.error("a process of SGLang says that it failed")


def device_of(asked: str) -> str:
    """Decide between "cpu" and "cuda" without loading torch: by whether the driver's device file is there."""
    if asked != "auto":
        return asked
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _import(device: str) -> tuple[Any, Any]:
    """Import SGLang, on a CPU behind the shims; raise ConfigurationError if it is not installed."""
    if device == "cpu":
        from actors.engines import cpu_shims

        cpu_shims.activate()
    try:
        import sglang
        from sglang.srt.server_args import ServerArgs
    except ImportError as error:
        raise ConfigurationError(f"SGLang cannot be imported ({error}); `make setup` installs it") from error
    return sglang, ServerArgs


def _scheduler_info(engine: Any) -> dict[str, Any]:
    """What the scheduler said of itself; 0.5.17 keeps it as `scheduler_info`."""
    result = getattr(engine, "_scheduler_init_result", None)
    info: dict[str, Any] = result.scheduler_infos[0] if result is not None else engine.scheduler_info
    return info


def _child_failed(signum: int, frame: object) -> NoReturn:
    """SIGQUIT while loading: SGLang's scheduler could not start; its own last words are in the log."""
    raise LoadError("SGLang's scheduler failed while loading; its error stands above in this slot's log")
