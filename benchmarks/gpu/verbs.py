"""What people tell engines, and what engines tell: `troupe handle`, health probes, KV events and load figures.

`whole` is one engine that can sleep (SGLang's memory saver: a fresh process), `apart` a pair forked from the parent.
Every verb goes through the command line, and a request afterwards must be answered as before.
"""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from benchmarks.gpu.casts import DOOR, RESTART, engines, registered
from benchmarks.gpu.cluster import Cluster, NotReadyError, cluster
from benchmarks.gpu.context import Context, Result
from benchmarks.gpu.memory import Memory, watched
from benchmarks.gpu.streams import Stream, prompts
from messages import codec
from messages.bus import Bus
from messages.client import Client
from messages.config import Nats
from messages.subjects import Subjects, last_token
from messages.submit import Delta, Done
from messages.supervise import Status

SAVER = {"enable_memory_saver": True, "enable_weights_cpu_backup": True}
PAUSED = 3.0
"""Seconds of a pause: twice what an engine without a step is otherwise given."""
PROBE = {"idle": 2.0, "deadline": 30.0}


class Heard:
    """How many messages came for each slot, by the kind that stands in their subject."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    async def hear(self, msg: Msg) -> None:
        """Count one."""
        kind = msg.subject.split(".")[2]
        key = f"{kind} {last_token(msg.subject)}"
        self.counts[key] = self.counts.get(key, 0) + 1


@dataclass
class Place:
    """Where the verbs are tried."""

    context: Context
    troupe: Cluster
    client: Client
    memory: Memory
    slots: dict[str, str]
    """Which to try, with the model of each."""

    async def handle(self, slot: str, *words: str) -> str:
        """Tell a slot; what is said, be it a refusal."""
        try:
            return (await self.troupe.troupe("handle", slot, *words, wait=120)).strip()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return f"refused: {error}"

    async def ask(self, model: str, prompt: list[int], tokens: int = 16) -> tuple[list[int], int]:
        """An answer, and how much of its prompt came out of the cache."""
        got, cached = list[int](), 0
        async for event in self.client.generate(model, prompt, max_tokens=tokens, temperature=0, ignore_eos=True):
            if isinstance(event, Delta):
                got += event.token_ids
            if isinstance(event, Done):
                cached = event.usage.cached_tokens
        return got, cached


Step = Callable[[Place], Awaitable[Any]]


async def measure(context: Context, result: Result) -> None:
    """Try all of it, of the pair first; a sleeper that does not start takes none of that with it.

    Raises RuntimeError in the end where something did not start or went wrong.
    """
    share = {"0.6b": 0.08, "8b": 0.25}[context.size]
    args: dict[str, Any] = {"cuda_graph_max_bs_decode": 8}
    apart = {"processor": DOOR, "prefill": engines(context, share), "decode": engines(context, share)}
    whole = {"processor": DOOR, "decode": engines(context, share)}
    saver = SAVER if context.cuda else {}
    slots = {"apart-prefill-0": "apart", "apart-decode-0": "apart"}
    pair = context.model("apart", apart, args=args, probe=PROBE)
    one = context.model("whole", whole, args=args | saver, probe=PROBE)
    await _try(context, result, "pair", pair, slots, [_probes, _flush, _pause, _profile])
    await _try(context, result, "whole", one, {"whole-decode-0": "whole"}, [_probes, _flush, _pause, _sleep, _profile])
    failed = [f"{name}: {step}" for name in ("pair", "whole") for step in _failures(result.data[name])]
    if failed:
        raise RuntimeError("; ".join(failed))


def _failures(found: dict[str, Any]) -> list[str]:
    """What went wrong with one cluster."""
    return [step for step, said in found.items() if step == "failed" or str(said).startswith("failed: ")]


async def _try(
    context: Context, result: Result, name: str, model: dict[str, Any], slots: dict[str, str], steps: list[Step]
) -> None:
    config = context.config([model], restart=RESTART)
    found: dict[str, Any] = {}
    result.data[name] = found
    try:
        async with (
            watched(context.gpus[0]) as memory,
            cluster(context.scratch / name, config, wait=min(150.0, context.left - 30)) as troupe,
            Client(troupe.status.nats) as client,
        ):
            await _steps(Place(context, troupe, client, memory, slots), result, found, steps)
    except (NotReadyError, OSError, TimeoutError) as error:
        found["failed"] = f"{type(error).__name__}: {error}"[:8_000]
    result.save()


async def _steps(place: Place, result: Result, found: dict[str, Any], steps: list[Step]) -> None:
    troupe, heard, subjects = place.troupe, Heard(), Subjects()
    found["start s"] = troupe.seconds
    found["first lives"] = {name: [one.load_seconds, one.stages] for name, one in (await registered(troupe)).items()}
    bus = await Bus.connect(Nats(url=troupe.status.nats), name="heard", wait=5)
    await bus.subscribe(subjects.kvs, heard.hear)
    await bus.subscribe(subjects.loads, heard.hear)
    try:
        for step in steps:
            name = step.__name__.strip("_")
            try:
                found[name] = await asyncio.wait_for(step(place), max(10.0, place.context.left))
            except Exception as error:
                found[name] = f"failed: {type(error).__name__}: {error}"[:2_000]
            found["heard"] = heard.counts
            print(name, found[name], flush=True)
            result.save()
        found["generations at the end"] = {name: one.generation for name, one in (await registered(troupe)).items()}
    finally:
        await bus.close()


async def _probes(place: Place) -> dict[str, Any]:
    """Wait until a health probe of each slot has been answered."""
    found: dict[str, Any] = {}
    deadline = time.monotonic() + 30
    while len(found) < len(place.slots) and time.monotonic() < deadline:
        status = codec.from_json((await place.troupe.troupe("status", "--json")).encode(), Status)
        for slot in status.slots:
            if slot.slot in place.slots and slot.probe is not None:
                found[slot.slot] = {"result": slot.probe.result, "seconds": slot.probe.seconds}
        await asyncio.sleep(0.5)
    return found


async def _flush(place: Place) -> dict[str, Any]:
    """A prompt that is in the prefix cache is not any more."""
    found = {}
    for number, (slot, model) in enumerate(place.slots.items()):
        [prompt] = prompts(40 + number, 1, 200, 200, place.context.vocabulary)
        first, _ = await place.ask(model, prompt)
        again, cached = await place.ask(model, prompt)
        said = await place.handle(slot, "flush")
        after, cached_after = await place.ask(model, prompt)
        same = first == again == after
        found[slot] = {"said": said, "cached before": cached, "cached after": cached_after, "same answers": same}
    return found


async def _pause(place: Place) -> dict[str, Any]:
    """A stream stands still and goes on; a request that comes meanwhile waits."""
    found = {}
    for number, (slot, model) in enumerate(place.slots.items()):
        tokens = 1_500 if place.context.cuda else 150
        [prompt, other] = prompts(60 + number, 2, 100, 100, place.context.vocabulary)
        expected, _ = await place.ask(model, other)
        stream, begun = Stream(time.perf_counter()), asyncio.Event()
        task = asyncio.create_task(_run(place, model, prompt, tokens, stream, begun))
        await asyncio.wait_for(begun.wait(), 60)
        said = [await place.handle(slot, "pause")]
        begin, under_way = time.perf_counter(), len(stream.tokens)
        waiting = asyncio.create_task(place.ask(model, other))
        await asyncio.sleep(PAUSED)
        came, early = len(stream.tokens) - under_way, waiting.done()
        said.append(await place.handle(slot, "resume"))
        paused = time.perf_counter() - begin
        await asyncio.wait_for(task, 60)
        answer, _ = await asyncio.wait_for(waiting, 60)
        found[slot] = {
            "said": said,
            "paused s": round(paused, 2),
            "tokens in the pause": came,
            "longest gap s": round(max(stream.gaps), 2),
            "stream whole": len(stream.tokens) == tokens,
            "one that came meanwhile was answered in it": early,
            "and answered as before": answer == expected,
        }
    return found


async def _run(place: Place, model: str, prompt: list[int], tokens: int, stream: Stream, begun: asyncio.Event) -> None:
    async for event in place.client.generate(model, prompt, max_tokens=tokens, temperature=0, ignore_eos=True):
        if isinstance(event, Delta):
            stream.add(event.token_ids)
            begun.set()


async def _sleep(place: Place) -> dict[str, Any]:
    """GPU memory is given back and taken again; a request sent meanwhile is answered afterwards, and as before."""
    [prompt] = prompts(80, 1, 300, 300, place.context.vocabulary)
    expected, _ = await place.ask("whole", prompt)
    awake = place.memory.at(time.time())
    began = time.monotonic()
    said = [await place.handle("whole-decode-0", "sleep")]
    slept = time.monotonic() - began
    waiting = asyncio.create_task(place.ask("whole", prompt))
    await asyncio.sleep(PAUSED)
    asleep, early = place.memory.at(time.time()), waiting.done()
    began = time.monotonic()
    said.append(await place.handle("whole-decode-0", "wake"))
    woke = time.monotonic() - began
    answer, cached = await asyncio.wait_for(waiting, 60)
    return {
        "said": said,
        "free MiB awake, asleep, awake again": [awake, asleep, place.memory.at(time.time())],
        "seconds to sleep and wake, the command line's start included": [round(slept, 2), round(woke, 2)],
        "answered while asleep": early,
        "answer as before": answer == expected,
        "cached tokens after it": cached,
    }


async def _profile(place: Place) -> dict[str, Any]:
    """A trace is recorded while something is generated."""
    found = {}
    for number, (slot, model) in enumerate(place.slots.items()):
        [prompt] = prompts(90 + number, 1, 200, 200, place.context.vocabulary)
        recording = asyncio.create_task(place.handle(slot, "profile", "--seconds", "2"))
        while not recording.done():
            await place.ask(model, prompt, 32)
        said = recording.result()
        found[slot] = {"said": said, "bytes": _sizes(place.troupe.state, slot)}
    return found


def _sizes(state: Path, slot: str) -> list[int]:
    return sorted(path.stat().st_size for path in state.rglob(f"*{slot}*/profile/*"))
