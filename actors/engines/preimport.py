"""Imports everything that an SGLang actor needs, in a process that will fork actors and must stay clean for it.

Three full imports of SGLang, one after another (actor, scheduler, detokenizer), are nearly all of a cold start: 25 s
of CPU time against 0.6 s when all three are forked from a process that has imported it. That process must have one
thread, no event loop and no device opened; the guard here says so or says why not.
"""

import gc
import multiprocessing
import os
from importlib import import_module
from typing import Any, Final

MODULES: Final = (
    "sglang",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.models.registry",
    "actors.engines.sglang",
    "actors.worker",
    "setproctitle",
)


def preimport(device: str) -> None:
    """Import it all and freeze it out of the garbage collector, so that forked children share the pages.

    Raises ImportError if SGLang is not installed.
    """
    if device == "cpu":
        from actors.engines import cpu_shims

        cpu_shims.activate()
    _make_children_fork()
    for module in MODULES:
        import_module(module)
    _import_scheduler_backends()
    gc.collect()
    gc.freeze()


def guard() -> str | None:
    """Say why this process must not be forked, or None if it may: another thread's locks would be copied held."""
    threads = len(os.listdir("/proc/self/task"))
    return f"{threads} threads exist where there should be one" if threads != 1 else None


def _make_children_fork() -> None:
    """Have SGLang's own processes forked too: its engine insists on "spawn", which imports everything again."""
    set_start_method = multiprocessing.set_start_method

    def fork(method: Any, force: bool = False) -> None:
        set_start_method("fork", force=True)

    multiprocessing.set_start_method = fork


def _import_scheduler_backends() -> None:
    """What schedulers import late, on the way to ready; missing ones are no error, they are imported when needed."""
    for module in ("sglang.srt.disaggregation.nixl.conn", "sglang.srt.layers.attention.torch_native_backend"):
        try:
            import_module(module)
        except ImportError:
            continue
