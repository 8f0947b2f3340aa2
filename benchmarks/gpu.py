"""Does it hold on a GPU? One model whole and apart on one card: start, equality, throughput, restarts by stage.

    python -m benchmarks.gpu [--out FILE] [--budget 330]

No weights are needed: `load_format: dummy` with the configuration of Qwen3-0.6B runs the real scheduler, kernels, KV
transfer and graphs; only the text means nothing. Restarts are timed from the kill to the registration's ready.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.rig import ROOT, machine, median, percentile
from messages import codec, procfs
from messages.bus import Bus
from messages.client import Client
from messages.config import Nats
from messages.lifecycle import Registration, State
from messages.subjects import Subjects
from messages.submit import Delta
from messages.supervise import Status

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "use_cache": True,
}
SLOTS = ("whole-decode-0", "apart-prefill-0", "apart-decode-0")


def configuration(folder: Path, device: str) -> Path:
    """Write the model's folder and the cluster's YAML; on a CPU (a rehearsal of this file) with the tiny model."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(QWEN3_06B))
    tiny = str(ROOT / "models" / "tiny")
    base: dict[str, Any] = {"tokenizer": tiny, "engine": "sglang", "device": device, "load_deadline": 300}
    if device == "cuda":
        args = {"load_format": "dummy", "random_seed": 1, "cuda_graph_max_bs_decode": 128}
        base |= {"path": str(model), "engine_tokenizer": False, "context_length": 8_192, "args": args}
    else:
        base |= {"path": tiny, "context_length": 2_048}
    door = {"processor": {"http": {"port": 0}}}
    part = {"capacity": 256, "share_gpus": True, "memory_share": 0.2}
    models = [
        base | {"name": "whole", "cast": door | {"decode": part}},
        base | {"name": "apart", "cast": door | {"prefill": part, "decode": part}},
    ]
    path = folder / "gpu.yaml"
    path.write_bytes(msgspec.yaml.encode({"models": models, "drills": "allowed"}))
    return path


@contextlib.asynccontextmanager
async def cluster(folder: Path, device: str, wait: float) -> AsyncIterator[tuple[Status, Path, float]]:
    """Run the cluster; gives its status, its state folder, and how long it took to be ready."""
    state = folder / "state"
    troupe = [sys.executable, "-m", "supervisor.cli"]
    began = time.monotonic()
    with (folder / "up.log").open("wb") as log:
        up = await asyncio.create_subprocess_exec(
            *troupe, "up", str(configuration(folder, device)), "--state", str(state), cwd=ROOT, stdout=log, stderr=log
        )
    try:
        deadline = began + wait
        while True:
            command = [*troupe, "status", "--json", "--wait-ready", "10", "--state", str(state)]
            said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=ROOT)
            if said.returncode == 0:
                break
            if time.monotonic() > deadline or up.returncode is not None:
                raise SystemExit(f"not ready after {wait} s\n{(folder / 'up.log').read_text()[-4000:]}\n{said.stdout}")
        yield codec.from_json(said.stdout.encode(), Status), state, time.monotonic() - began
    finally:
        up.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(30):
                await up.wait()
        except TimeoutError:
            ending = await asyncio.create_subprocess_exec(*troupe, "down", "--now", "--state", str(state), cwd=ROOT)
            await ending.wait()


async def generate(client: Client, model: str, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """One greedy stream: its tokens, and when each delta came."""
    got: list[int] = []
    times = [time.perf_counter()]
    async for event in client.generate(model, prompt, max_tokens=tokens, temperature=0, ignore_eos=True):
        if isinstance(event, Delta):
            got += event.token_ids
            times.append(time.perf_counter())
    return got, times


def prompts(count: int, low: int, high: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(10, 500) for _ in range(chance.randint(low, high))] for _ in range(count)]


async def equality(client: Client, count: int) -> dict[str, Any]:
    """One at a time, so that batch sizes move no sums: whole against apart."""
    differ = []
    for number, prompt in enumerate(prompts(count, 1, 700)):
        whole, _ = await generate(client, "whole", prompt, 32)
        apart, _ = await generate(client, "apart", prompt, 32)
        if whole != apart:
            at = next(i for i, (a, b) in enumerate(zip(whole, apart, strict=False)) if a != b)
            differ.append({"prompt": number, "length": len(prompt), "first difference": at})
    return {"prompts": count, "equal": count - len(differ), "differ": differ}


async def throughput(client: Client, model: str, at_once: int, tokens: int) -> dict[str, float]:
    """Output tokens/s of so many streams of 128 tokens in, all begun together; what one client process sees."""
    began = time.perf_counter()
    results = await asyncio.gather(*(generate(client, model, p, tokens) for p in prompts(at_once, 128, 128)))
    seconds = time.perf_counter() - began
    ttft = [times[1] - times[0] for _, times in results]
    made = sum(len(got) for got, _ in results)
    return {"at once": at_once, "tokens/s": made / seconds, "TTFT p50 ms": percentile(ttft, 0.5) * 1e3}


class Registrations:
    """When each slot's newest generation was seen ready."""

    def __init__(self) -> None:
        self.known: dict[str, Registration] = {}
        self.changed = asyncio.Condition()

    async def keep(self, bus: Bus) -> None:
        bucket = await bus.bucket(Subjects().registry_bucket)
        news: asyncio.Queue[bytes] = asyncio.Queue()

        def whole(values: dict[str, bytes]) -> None:
            for key, value in values.items():
                change(key, value)

        def change(key: str, value: bytes | None) -> None:
            if value is not None and not key.startswith("gen."):
                news.put_nowait(value)

        keeping = asyncio.ensure_future(bucket.keep(">", whole, change))
        try:
            while True:
                found = codec.from_json(await news.get(), Registration)
                async with self.changed:
                    self.known[found.slot] = found
                    self.changed.notify_all()
        finally:
            keeping.cancel()

    async def ready(self, slot: str, generation: int, seconds: float) -> Registration:
        def there() -> bool:
            known = self.known.get(slot)
            return known is not None and known.generation >= generation and known.state is State.READY

        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(there)
        return self.known[slot]


async def restart(registrations: Registrations, client: Client, slot: str, how: str) -> dict[str, Any]:
    """Kill a slot's actor, or its scheduler alone, while a stream runs on it; from the kill to ready, and the gap."""
    before = registrations.known[slot]
    stream = asyncio.ensure_future(generate(client, slot.partition("-")[0], prompts(1, 128, 128)[0], 600))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    if how == "actor":
        os.killpg(before.pid, signal.SIGKILL)
    elif how == "scheduler":
        os.kill(procfs.descendants(before.pid)[0], signal.SIGKILL)
    else:
        os.kill(procfs.descendants(before.pid)[0], signal.SIGSTOP)
    after = await registrations.ready(slot, before.generation + 1, 120)
    seconds = time.monotonic() - began
    got, times = await asyncio.wait_for(stream, 60)
    gap = max(b - a for a, b in zip(times[1:], times[2:], strict=False))
    return {
        "slot": slot,
        "how": how,
        "death to ready s": round(seconds, 2),
        "stages": after.stages,
        "stream whole": len(got) == 600,
        "longest gap s": round(gap, 2),
    }


async def run(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"machine": machine()}
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            async with cluster(folder, options.device, min(options.budget - 60, 260)) as (status, _, seconds):
                result["first start s"] = round(seconds, 1)
                bus = await Bus.connect(Nats(url=status.nats), name="gpu", wait=5)
                registrations = Registrations()
                keeping = asyncio.ensure_future(registrations.keep(bus))
                for slot in SLOTS:
                    found = await registrations.ready(slot, 1, 10)
                    kept = {"engine": found.engine_version, "generation": found.generation, "stages": found.stages}
                    result.setdefault("slots", {})[slot] = kept | {"KV blocks": found.total_blocks}
                async with Client(status.nats) as client:
                    await measure(result, client, registrations, options.device == "cpu", end)
                keeping.cancel()
                await bus.close()
        except Exception as error:
            result["failed"] = f"{type(error).__name__}: {error}"
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        if "failed" in result:
            for log in [folder / "up.log", *sorted((folder / "state").rglob("log*"))]:
                print(f"--- {log.relative_to(folder)}\n{log.read_text(errors='replace')[-2_500:]}")


async def measure(
    result: dict[str, Any], client: Client, registrations: Registrations, rehearsal: bool, end: float
) -> None:
    """All that fits before `end`, the most telling first."""
    result["equality"] = await equality(client, 4 if rehearsal else 40)
    result["throughput"] = []
    for at_once in (1, 4) if rehearsal else (1, 32, 128):
        for model in ("whole", "apart"):
            runs = [await throughput(client, model, at_once, 32 if rehearsal else 256) for _ in range(2)]
            row = {key: median([run[key] for run in runs]) for key in runs[0]}
            result["throughput"].append({"model": model} | row)
    result["restarts"] = []
    for slot, how in (
        ("apart-decode-0", "actor"),
        ("apart-prefill-0", "actor"),
        ("apart-decode-0", "scheduler"),
        ("whole-decode-0", "actor"),
        ("apart-decode-0", "stop"),
        ("apart-prefill-0", "scheduler"),
    ):
        if time.monotonic() > end - 30:
            return
        result["restarts"].append(await restart(registrations, client, slot, how))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="example: python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json", help="result file")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds that all of it may take")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses with the tiny model")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
