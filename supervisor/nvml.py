"""The one file that asks the machine about its GPUs: by NVML where `nvidia-ml-py` is installed, else by nvidia-smi."""

import asyncio
import contextlib
import importlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec import Struct

from messages import procfs
from supervisor.gpus import Card

SMI_SECONDS: Final = 20.0
CLEAR_SECONDS: Final = 10.0
CLEAR_PAUSE: Final = 0.1
MIB: Final = 1 << 20
GIB: Final = 1 << 30


class Holder(Struct, frozen=True, kw_only=True):
    """A process that holds memory of a GPU; `held` in bytes, 0 where nobody says."""

    pid: int
    held: int


class Gpus(Protocol):
    """What the machine can be asked."""

    def cards(self) -> list[Card]:
        """List the GPUs of this host by index."""

    def free(self, index: int) -> int:
        """Bytes of memory that are free on one now."""

    def holders(self, index: int) -> list[Holder]:
        """The processes that hold memory of one."""


def find() -> Gpus | None:
    """Find a way to ask, None where there is none."""
    with contextlib.suppress(Exception):
        return Nvml()
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            asked = Smi(smi)
            asked.cards()
            return asked
    return None


def visible() -> frozenset[int] | None:
    """Say which indices our own environment leaves us; None for all of them, or where it names them otherwise."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not said or not all(part.strip().isdigit() for part in said.split(",")):
        return None
    return frozenset(int(part) for part in said.split(","))


class Nvml:
    """NVML, by the library that its makers keep. Raises what that raises where there is no driver."""

    def __init__(self) -> None:
        self._nvml: Any = importlib.import_module("pynvml")
        self._nvml.nvmlInit()

    def cards(self) -> list[Card]:
        """List the GPUs of this host by index."""
        made = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            made.append(
                Card(
                    index=index,
                    name=_text(self._nvml.nvmlDeviceGetName(handle)),
                    total=int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total),
                    cpus=near_cpus(_text(self._nvml.nvmlDeviceGetPciInfo(handle).busId)),
                )
            )
        return made

    def free(self, index: int) -> int:
        """Bytes of memory that are free on one now."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._nvml.nvmlDeviceGetHandleByIndex(index)).free)

    def holders(self, index: int) -> list[Holder]:
        """The processes that hold memory of one."""
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return [Holder(pid=int(one.pid), held=int(one.usedGpuMemory or 0)) for one in found]


class Smi:
    """The program nvidia-smi, which takes a second to answer."""

    def __init__(self, path: str) -> None:
        self._path = path

    def cards(self) -> list[Card]:
        """List the GPUs of this host by index."""
        return [
            Card(index=int(index), total=int(total) * MIB, cpus=near_cpus(bus), name=name)
            for index, total, bus, name in self._ask("--query-gpu=index,memory.total,pci.bus_id,name", 4)
        ]

    def free(self, index: int) -> int:
        """Bytes of memory that are free on one now."""
        return int(self._ask("--query-gpu=memory.free", 1, index)[0][0]) * MIB

    def holders(self, index: int) -> list[Holder]:
        """The processes that hold memory of one."""
        rows = self._ask("--query-compute-apps=pid,used_memory", 2, index)
        return [Holder(pid=int(pid), held=int(held) * MIB if held.isdigit() else 0) for pid, held in rows]

    def _ask(self, query: str, columns: int, index: int | None = None) -> list[list[str]]:
        of = [] if index is None else [f"--id={index}"]
        command = [self._path, query, "--format=csv,noheader,nounits", *of]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
        rows = [line.split(", ", columns - 1) for line in done.stdout.splitlines() if line.strip()]
        if any(len(row) != columns for row in rows):
            raise ValueError(f"nvidia-smi {query}: {done.stdout[:200]!r}")
        return rows


def near_cpus(bus: str, sys: Path = Path("/sys/bus/pci/devices")) -> frozenset[int]:
    """Say which CPUs are near a PCI device, whose domain NVML writes in eight digits; none where nobody tells."""
    domain, _, rest = bus.strip().lower().partition(":")
    try:
        said = (sys / f"{domain[-4:]}:{rest}" / "local_cpulist").read_text().strip()
        node = int((sys / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return frozenset()
    return _cpus(said) if node >= 0 else frozenset()


def bind(pid: int, cpus: frozenset[int]) -> frozenset[int]:
    """Bind a process that has just been started to those of these CPUs that we may use ourselves; return which."""
    allowed = cpus & os.sched_getaffinity(0)
    if not allowed or allowed == os.sched_getaffinity(0):
        return frozenset()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), allowed)
    except OSError:
        return frozenset()
    return allowed


async def cleared(
    gpus: Gpus, wanted: dict[int, int], give_up: Callable[[], bool], seconds: float = CLEAR_SECONDS
) -> str:
    """Wait until so many bytes are free on each GPU; return nothing, or after so many seconds who holds them.

    A driver takes a moment to give back what a dead process had, and tells nobody when it has.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            short = await asyncio.to_thread(_short, gpus, wanted)
            if short is None or give_up():
                return ""
            if time.monotonic() >= deadline:
                return await asyncio.to_thread(_who, gpus, *short)
        except Exception as error:  # pynvml's errors have no name where it is not installed
            return f"the GPUs cannot be asked: {type(error).__name__}: {error}"
        await asyncio.sleep(CLEAR_PAUSE)


def _short(gpus: Gpus, wanted: dict[int, int]) -> tuple[int, int, int] | None:
    for index, bytes_ in wanted.items():
        if (free := gpus.free(index)) < bytes_:
            return index, free, bytes_
    return None


def _who(gpus: Gpus, index: int, free: int, wanted: int) -> str:
    known = []
    for holder in gpus.holders(index):
        found = procfs.process(holder.pid)
        name = _comm(holder.pid) if found is not None else "not to be seen from here"
        known.append(f"pid {holder.pid} ({name}{f', {holder.held / GIB:.1f} GiB' if holder.held else ''})")
    held = f"held by {', '.join(known)}" if known else "nobody says who holds the rest"
    return f"GPU {index} has {free / GIB:.1f} GiB free where {wanted / GIB:.1f} are wanted; {held}"


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "gone"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cpus(said: str) -> frozenset[int]:
    """Read the kernel's list of CPUs, for example `0-15,32-47`."""
    found: set[int] = set()
    for part in said.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
