"""Runs parts of the GPU measurements, one after the other, each into a JSON file of its own.

    python -m benchmarks.gpu PART [PART...] [--gpu 1] [--size 8b] [--budget 300] [--out FOLDER]
    python -m benchmarks.gpu PART --device cpu        # rehearses with the tiny model

A part writes after each thing it has measured, so that what is killed keeps what it has. One that fails writes its
error and the ends of its logs, and the next one goes on.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.cluster import logs
from benchmarks.gpu.context import Context, Result
from benchmarks.rig import ROOT, machine

PARTS = {
    "overhead": "benchmarks.gpu.overhead",
    "profile": "benchmarks.gpu.profile",
    "tokenizer": "benchmarks.gpu.tokenizer",
    "aiperf": "benchmarks.gpu.aiperf",
    "apart": "benchmarks.gpu.apart",
    "chat": "benchmarks.gpu.chat",
    "restarts": "benchmarks.gpu.restarts",
    "restarts-cold": "benchmarks.gpu.restarts_cold",
    "hicache": "benchmarks.gpu.hicache",
    "verbs": "benchmarks.gpu.verbs",
}
"""Where each part is: a module with `async def measure(context: Context, result: Result) -> None`."""

GRACE = 45.0
"""Seconds that a part may be late before it is stopped."""


def about() -> dict[str, Any]:
    """The machine, its GPUs and SGLang's version."""
    smi = shutil.which("nvidia-smi")
    command = [smi or "true", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout if smi else ""
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return {"machine": machine(), "GPUs": said.strip().splitlines(), "SGLang": version}


async def run_part(name: str, options: argparse.Namespace) -> bool:
    """Run one part within its budget; gives whether it went well."""
    sized = f"{name}-{options.size}" + (f"-{options.label}" if options.label else "")
    asked = {"environment": options.env, "publisher": not options.no_publisher}
    result = Result(options.out / f"{sized}.json", {"part": name, "size": options.size} | asked | about())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        context = Context(
            device=options.device,
            size=options.size,
            gpus=options.gpu,
            scratch=Path(folder),
            end=began + options.budget,
            quick=options.device == "cpu" or options.quick,
            env=dict(each.split("=", 1) for each in options.env),
            publisher=not options.no_publisher,
            cells=options.cell,
        )
        try:
            async with asyncio.timeout(options.budget + GRACE):
                await importlib.import_module(PARTS[name]).measure(context, result)
        except Exception as error:
            result.data["failed"] = f"{type(error).__name__}: {error}"[:6_000]
            result.data["traceback"] = traceback.format_exc()[-3_000:]
            result.data["logs"] = logs(Path(folder))[-40_000:]
            print(result.data["traceback"], result.data["logs"][-6_000:], sep="\n", flush=True)
        result.data["seconds"] = round(time.monotonic() - began, 1)
        result.save()
    failed = "failed" in result.data
    print(f"{sized}: {'FAILED' if failed else 'done'} in {result.data['seconds']} s", flush=True)
    return not failed


def _gpus(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _cell(text: str) -> tuple[int, int, int]:
    length, tokens, at_once = map(int, text.split(","))
    return length, tokens, at_once


def _options() -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m benchmarks.gpu overhead --size 8b --gpu 1 --budget 400",
    )
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS), metavar="PART", help=", ".join(sorted(PARTS)))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses with the tiny model")
    parser.add_argument("--gpu", type=_gpus, default=[0], help="index of the GPU, or several with commas between")
    parser.add_argument("--size", choices=("0.6b", "8b"), default="0.6b", help="which of Qwen3's configurations")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds that each part may take")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="folder of results")
    parser.add_argument("--label", default="", help="goes into the result's name")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for every engine of a cluster"
    )
    parser.add_argument("--no-publisher", action="store_true", help="clusters without KV events and load figures")
    parser.add_argument(
        "--cell", action="append", default=[], type=_cell, metavar="IN,OUT,AT_ONCE",
        help="overhead: only this cell (again for more), round after round until the budget ends",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="as few of everything as in a rehearsal")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    if options.device == "cuda":
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, options.gpu))
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    went = [asyncio.run(run_part(name, options)) for name in options.parts]
    raise SystemExit(0 if all(went) else 1)


if __name__ == "__main__":
    main()
