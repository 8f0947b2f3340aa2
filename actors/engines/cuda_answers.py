"""Lets a process import SGLang without opening a GPU, so that it can fork processes that do.

At import SGLang asks torch what the device is, which initialises CUDA, and what is forked from a process that has
initialised CUDA cannot use it. So a short-lived probe process asks once, and its answers stand in for torch's own
functions until the scheduler has been forked, which puts the real ones back. Seen to hold for SGLang 0.5.17 on an H200.
"""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Final

NOT_INITIALISED: Final = 3
"""CUDA_ERROR_NOT_INITIALIZED: what the driver answers while nobody has called cuInit."""

_PROBE: Final = """
import json, torch
found = torch.cuda.get_device_properties(0)
simple = {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}
print(json.dumps({name: value for name, value in simple.items() if isinstance(value, (int, str, float))}))
"""

_REAL: dict[str, Any] = {}


def initialised() -> bool:
    """Tell whether this process has initialised CUDA, without doing so; False where there is no driver at all."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return int(driver.cuDeviceGetCount(ctypes.byref(count))) != NOT_INITIALISED


def stand_in() -> None:
    """Answer torch's questions about the device from the probe's answers. Raises RuntimeError if the probe fails."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    if probe.returncode:
        raise RuntimeError(f"the GPU cannot be asked: {probe.stderr.strip().splitlines()[-1:]}")
    device = SimpleNamespace(**json.loads(probe.stdout))
    import torch

    answers: dict[str, Any] = {
        "get_device_name": lambda device_id=None: device.name,
        "get_device_capability": lambda device_id=None: (device.major, device.minor),
        "get_device_properties": lambda device_id=None: device,
        "current_device": lambda: 0,
    }
    for name, answer in answers.items():
        _REAL[name] = getattr(torch.cuda, name)
        setattr(torch.cuda, name, answer)
    _REAL["get_device_module"] = torch.get_device_module
    torch.get_device_module = lambda device=None: torch.cuda


def restore() -> None:
    """Put torch's own functions back; the scheduler's process does so before anything else."""
    if not _REAL:
        return
    import torch

    torch.get_device_module = _REAL.pop("get_device_module")
    for name in list(_REAL):
        setattr(torch.cuda, name, _REAL.pop(name))


def restore_in_schedulers() -> None:
    """Have every scheduler that SGLang's engine forks put the real functions back first."""
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers import scheduler

    run = scheduler.run_scheduler_process

    def run_with_real_device(*args: Any, **kwargs: Any) -> Any:
        restore()
        return run(*args, **kwargs)

    Engine.run_scheduler_process_func = staticmethod(run_with_real_device)
