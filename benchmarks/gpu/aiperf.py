"""A load test from outside: NVIDIA's aiperf against Troupe's HTTP door, chats of 64 clients at once for two minutes."""

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.cluster import cluster
from benchmarks.gpu.context import Context, Result

MODEL = "whole"
SHOWN = (
    "request_throughput",
    "request_latency",
    "time_to_first_token",
    "inter_token_latency",
    "output_token_throughput",
    "output_sequence_length",
    "input_sequence_length",
    "request_count",
    "error_request_count",
    "benchmark_duration",
)
"""Of aiperf's figures, those that are kept."""


async def measure(context: Context, result: Result) -> None:
    """Run it; its whole report goes beside the result, as `aiperf.txt` and in the result's `report`."""
    if importlib.util.find_spec("aiperf") is None and "AIPERF" not in os.environ:
        raise RuntimeError("aiperf is not installed (pip install aiperf), and AIPERF names no program")
    door = {"count": context.pick(2, 1), "http": {"port": 0}}
    args = {"cuda_graph_max_bs_decode": 64}
    model = context.model(MODEL, {"processor": door, "decode": {"capacity": context.pick(256, 8)}}, args=args)
    async with cluster(context.scratch / "troupe", context.config([model]), min(260, context.left - 30)) as running:
        result.data["start s"] = round(running.seconds, 1)
        folder = context.scratch / "aiperf"
        words = command(context, running.http(MODEL), str(model["tokenizer"]), folder)
        result.data["command"] = ["aiperf", *(word.replace(str(context.scratch), ".") for word in words)]
        said, code = await _run(words, context.left + 30)
        result.data["exit code"] = code
        result.data["table"] = said.partition("CLI Command")[0][-12_000:]
        result.data["said"] = said[-3_000:] if code else ""
        result.save()
        result.data |= await asyncio.to_thread(_read, folder)
        if code or result.data["figures"].get("error_request_count"):
            raise RuntimeError(f"aiperf ended with {code}, errors {result.data['figures']}")


def command(context: Context, url: str, tokenizer: str, folder: Path) -> list[str]:
    """aiperf's arguments."""
    at_once, seconds = context.pick((64, 120), (4, 5))
    words: dict[str, Any] = {
        "model": MODEL,
        "url": url,
        "endpoint-type": "chat",
        "tokenizer": tokenizer,
        "concurrency": at_once,
        "benchmark-duration": seconds,
        "benchmark-grace-period": 30,
        "prompt-input-tokens-mean": context.pick(512, 32),
        "prompt-output-tokens-mean": context.pick(256, 8),
        "num-dataset-entries": context.pick(1_000, 20),
        "warmup-request-count": at_once,
        "random-seed": 1,
        "extra-inputs": "ignore_eos:true",
        "output-artifact-dir": folder,
        "ui": "none",
        "workers-max": context.pick(8, 2),
    }
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    flags = ["--streaming", "--use-server-token-count", "--no-server-metrics", "--no-gpu-telemetry", "--no-auto-plot"]
    return ["profile", *given, *flags]


async def _run(words: list[str], wait: float) -> tuple[str, int | None]:
    program = os.environ.get("AIPERF", "").split() or [sys.executable, "-m", "aiperf"]
    # Told to be offline, aiperf looks for a tokenizer's folder in the hub's cache alone.
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {"COLUMNS": "160", "CUDA_VISIBLE_DEVICES": ""}
    process = await asyncio.create_subprocess_exec(
        *program, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=env
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), wait)
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
    return said.decode(errors="replace"), process.returncode


def _read(folder: Path) -> dict[str, Any]:
    """The figures out of aiperf's own JSON."""
    path = folder / "profile_export_aiperf.json"
    if not path.exists():
        names = [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []
        return {"figures": {}, "files": names[:50]}
    report = json.loads(path.read_text())
    return {"figures": {name: report[name] for name in SHOWN if name in report}, "summary": report.get("error_summary")}
