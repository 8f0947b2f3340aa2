"""The CPU shims: SGLang's imports succeed, in spawned processes too, and what cannot run says so when called."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from actors.engines.cpu_shims.hook import Patch, PatchingFinder
from actors.engines.cpu_shims.patches import HostClockEvent
from actors.engines.cpu_shims.settings import STANDINS, apply


def run(code: str, seconds: float = 100) -> str:
    """Run `code` in a new Python that was started with the shims' environment; return what it printed."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    apply(environ)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_patch_runs_around_the_import_of_its_module_and_no_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "patched_example.py").write_text("VALUE = 1\n")
    order: list[str] = []

    def after(module: ModuleType) -> None:
        order.append(f"after {module.VALUE}")
        module.__dict__["VALUE"] = 2

    patches = {"patched_example": Patch(why="a test", before=lambda: order.append("before"), after=after)}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [PatchingFinder(patches), *sys.meta_path])
    assert order == []

    module = __import__("patched_example")

    monkeypatch.delitem(sys.modules, "patched_example")
    assert (order, module.VALUE) == (["before", "after 1"], 2)
    assert inspect.getsource(module) == "VALUE = 1\n"


def test_settings_of_the_user_stay_and_the_stand_ins_come_first() -> None:
    environ = {"OMP_NUM_THREADS": "8", "PYTHONPATH": "mine"}
    apply(environ)
    apply(environ)
    assert environ["OMP_NUM_THREADS"] == "8"
    assert environ["SGLANG_USE_CPU_ENGINE"] == "1"
    assert environ["PYTHONPATH"].split(os.pathsep)[:2] == [STANDINS, "mine"]
    assert environ["PYTHONPATH"].count(STANDINS) == 1


def test_activating_too_late_is_refused() -> None:
    code = "import sys; sys.modules['torch'] = sys; from actors.engines.cpu_shims import activate; activate()"
    root = str(Path(STANDINS).parents[3])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "must come before the import of torch" in done.stderr


def test_triton_kernels_can_be_decorated_and_not_launched() -> None:
    code = """
import triton, triton.language as tl
from triton.runtime.jit import JITFunction
from triton.experimental.gluon import language as gl

@triton.autotune(configs=[triton.Config({"BLOCK": 16}, num_warps=4)], key=["n"])
@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    tl.store(x, 2 * tl.load(x))

@triton.jit(do_not_specialize=["n"])
def triple(x, n): ...

assert isinstance(double, JITFunction) and isinstance(triple, JITFunction)
try:
    double[(1,)](None, 1)
except NotImplementedError as error:
    print(error)
try:
    triton.runtime.driver.active.get_current_target()
except RuntimeError as error:
    print(error)
print([triton.cdiv(7, 4), triton.cdiv(8, 4)], [triton.next_power_of_2(n) for n in (0, 1, 2, 3, 64, 65)])
"""
    assert run(code).splitlines() == [
        "the Triton kernel double cannot run on a CPU",
        "0 active drivers: there is no GPU",
        "[2, 2] [1, 1, 2, 4, 64, 128]",
    ]


def test_a_kernel_of_sgl_kernel_can_be_imported_and_not_called() -> None:
    code = """
from sgl_kernel import rmsnorm
try:
    rmsnorm(1, 2)
except NotImplementedError as error:
    print(error)
"""
    assert run(code) == "sgl_kernel.rmsnorm is a compiled kernel that does not exist on this CPU"


def test_events_on_the_host_clock_tell_milliseconds() -> None:
    first, second = HostClockEvent(enable_timing=True), HostClockEvent()
    with pytest.raises(RuntimeError, match="both events must be recorded"):
        first.elapsed_time(second)
    first.recorded, second.recorded = 2.0, 2.25
    assert first.elapsed_time(second) == 250.0
    assert second.query()


@pytest.mark.sglang
@pytest.mark.timeout(120)
def test_sglang_imports_on_one_thread_and_torch_sees_no_triton() -> None:
    code = """
import os, warnings
warnings.simplefilter("ignore")
import sglang.srt.entrypoints.engine, sglang.srt.managers.scheduler, sglang.srt.managers.detokenizer_manager
import torch, torchvision
from torch._inductor.runtime.triton_compat import HAS_TRITON
from torch.utils._triton import has_triton
import triton
print(len(os.listdir("/proc/self/task")), HAS_TRITON, has_triton(), torch.cpu.Event.__name__, triton.__file__)
"""
    expected = f"1 False False HostClockEvent {STANDINS}/triton/__init__.py"
    assert run(code).splitlines()[-1] == expected


@pytest.mark.sglang
def test_an_idle_nixl_agent_is_quiet_and_takes_video_memory_for_memory() -> None:
    code = """
import time, nixl
agent = nixl._api.nixl_agent("test", nixl._api.nixl_agent_config())
print(agent.nixl_mems["VRAM"] == agent.nixl_mems["DRAM"])
before = time.process_time()
time.sleep(1)
print(time.process_time() - before)
"""
    same, spent = run(code, 20).splitlines()[-2:]
    assert same == "True"
    assert float(spent) < 0.3, "NIXL's progress thread spins"
