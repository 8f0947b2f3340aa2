"""The environment variables that an SGLang engine on a CPU starts with."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

STANDINS = str(Path(__file__).resolve().parent / "standins")
# Where the package `actors` lies: the stand-ins' sitecustomize imports it in processes that are started anywhere.
HERE = str(Path(__file__).resolve().parents[3])

SETTINGS = {
    # Without it sglang looks for a GPU and gives up (sglang/srt/utils/common.py, is_cpu).
    "SGLANG_USE_CPU_ENGINE": "1",
    # One thread an engine: several engines share the cores, and OpenMP threads that wait spin by default.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    # OpenBLAS starts its threads when numpy is imported, and a process with threads cannot be forked safely.
    "OPENBLAS_NUM_THREADS": "1",
    # SGLang compiles its repetition penalty at the first use: eight seconds in which no stream of the engine goes on.
    "TORCHDYNAMO_DISABLE": "1",
}


def apply(environ: MutableMapping[str, str]) -> None:
    """Put the settings into `environ` (of this process, or of one about to be started); what is set already stays.

    PYTHONPATH gains the folder of stand-ins in front, so that every Python process started with `environ` finds them
    and, by their `sitecustomize`, patches what it imports.
    """
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)
    paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if STANDINS not in paths:
        environ["PYTHONPATH"] = os.pathsep.join([STANDINS, *paths, HERE])
