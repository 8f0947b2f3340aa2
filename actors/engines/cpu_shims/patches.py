"""What has to be changed in torch, torchvision and NIXL for SGLang to run on a CPU, each with its reason."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from actors.engines.cpu_shims.hook import Patch

# Microseconds between two looks of NIXL's progress thread at its transfers. 500 cost a prefill/decode pair no
# measurable latency on 2 cores; with NIXL's own 0 each engine's thread burns a whole core for ever.
NIXL_POLL_MICROSECONDS = 500

# Operators that sglang's model files look up in torch.ops.sgl_kernel when they are imported; none is reached on the
# torch-native path.
SGL_KERNEL_OPERATORS = (
    "fused_dual_residual_rmsnorm_cpu",
    "fused_gdn_gating_cpu",
    "fused_moe_router_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_qkvzba_split_reshape_cat_cpu",
    "fused_sigmoid_mul_cpu",
    "rmsnorm_cpu",
)


class HostClockEvent:
    """Stands in for `torch.cpu.Event`, which has no timing: SGLang's DeviceTimer wants the time between two events."""

    def __init__(self, enable_timing: bool = False, **_: object) -> None:
        self.recorded: float | None = None

    def record(self, stream: object = None) -> None:
        self.recorded = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: on a CPU what was started before is finished."""

    def wait(self, stream: object = None) -> None:
        """Return at once, as `synchronize` does."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: HostClockEvent) -> float:
        """Return the milliseconds from this event to `later`, as torch.cuda.Event does."""
        if self.recorded is None or later.recorded is None:
            raise RuntimeError("both events must be recorded before the time between them is known")
        return (later.recorded - self.recorded) * 1e3


class HostMemoryRegistration:
    """Stands in for the CUDA runtime where host memory is pinned: with no device there is nothing to pin it for."""

    class cudaError:
        success = 0

    def cudaHostRegister(self, *_: object) -> int:
        return 0

    def cudaHostUnregister(self, *_: object) -> int:
        return 0

    def cudaGetErrorString(self, code: int) -> str:
        return f"error {code} without a CUDA runtime"


def missing_operator(name: str) -> Callable[..., Any]:
    """Return a function that says, when it is called, that `name` exists on AMX machines only."""

    def call(*_: object, **__: object) -> Any:
        raise NotImplementedError(f"torch.ops.sgl_kernel.{name} has no implementation on this CPU")

    return call


def patch_torch(torch: Any) -> None:
    torch.cpu.Event = HostClockEvent
    if not hasattr(torch.cpu.Stream, "synchronize"):
        torch.cpu.Stream.synchronize = lambda self: None
    torch.cuda.cudart = HostMemoryRegistration
    for name in SGL_KERNEL_OPERATORS:
        setattr(torch.ops.sgl_kernel, name, missing_operator(name))


def say_no_triton(module: Any) -> None:
    module.has_triton_package = lambda: False


class HiddenTriton:
    """Makes `import triton` fail between `hide` and `show`, whether or not the stand-in has been imported before."""

    module: ModuleType | None = None

    def hide(self) -> None:
        self.module = sys.modules.get("triton")
        sys.modules["triton"] = None  # type: ignore[assignment]

    def show(self, _: ModuleType) -> None:
        del sys.modules["triton"]
        if self.module is not None:
            sys.modules["triton"] = self.module


def define_torchvision_operators(extension: Any) -> None:
    if extension._has_ops():
        return
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def patch_nixl(api: Any) -> None:
    start_agent = api.nixlBind.nixlAgent
    init = api.nixl_agent.__init__

    def start_unhurried_agent(name: str, config: Any) -> Any:
        config.pthrDelay = NIXL_POLL_MICROSECONDS
        return start_agent(name, config)

    def init_without_video_memory(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        self.nixl_mems["VRAM"] = self.nixl_mems["cuda"] = self.nixl_mems["DRAM"]

    api.nixlBind.nixlAgent = start_unhurried_agent
    api.nixl_agent.__init__ = init_without_video_memory


HIDDEN_TRITON = HiddenTriton()

NIXL = Patch(
    why="SGLang registers its KV pool as video memory, which here is ordinary memory; and the progress thread spins.",
    after=patch_nixl,
)

PATCHES: dict[str, Patch] = {
    "torch": Patch(
        why="SGLang calls timing events, the CUDA runtime and AMX operators on a CPU as well.",
        after=patch_torch,
    ),
    "torch.utils._triton": Patch(
        why="torch must not take the stand-in for a Triton that it could compile with.",
        after=say_no_triton,
    ),
    "torch._inductor.runtime.triton_compat": Patch(
        why="The same, for the one file that does not ask torch.utils._triton.",
        before=HIDDEN_TRITON.hide,
        after=HIDDEN_TRITON.show,
    ),
    "torchvision.extension": Patch(
        why="A wheel built for CUDA cannot load its C library, and torchvision then misses its own operators.",
        after=define_torchvision_operators,
    ),
    "nixl_cu12._api": NIXL,
    "nixl_cu13._api": NIXL,
}
