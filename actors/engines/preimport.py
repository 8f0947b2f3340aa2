"""Imports everything that an SGLang actor needs, in a process that will fork actors and must stay clean for it.

Three full imports of SGLang, one after another (actor, scheduler, detokenizer), are nearly all of a cold start: 25 s
of CPU time against 0.6 s when all three are forked from a process that has imported it. That process must have no
event loop and no device opened, and on a CPU one thread; `guard` says so or says why not.
"""

import gc
import logging
import multiprocessing
import os
from importlib import import_module
from typing import Any, Final

from actors.engines import cuda_answers

log = logging.getLogger("troupe.prefork")

MODULES: Final = (
    "sglang",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.models.registry",
    "actors.engines.sglang",
    "actors.worker",
    "actors.encoder",
)
LATE: Final = (
    "sglang.srt.disaggregation.nixl.conn",
    "sglang.srt.layers.attention.torch_native_backend",
    "sglang.srt.layers.attention.triton_backend",
)
"""What is imported on the way to ready; one that is missing or not for this machine is imported when it is needed."""


def preimport(device: str) -> None:
    """Import it all and freeze it out of the garbage collector, so that forked children share the pages.

    Raises ImportError if SGLang is not installed, RuntimeError if the GPU cannot be asked what it is.
    """
    if device == "cpu":
        from actors.engines import cpu_shims

        cpu_shims.activate()
    else:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        cuda_answers.stand_in()
    _make_children_fork()
    for module in MODULES:
        import_module(module)
    if device == "cuda":
        cuda_answers.restore_in_schedulers()
    for module in LATE:
        try:
            import_module(module)
        except Exception as error:
            log.debug("%s is not imported ahead: %s", module, error)
    gc.collect()
    gc.freeze()


def guard(device: str) -> str | None:
    """Say why this process must not be forked, or None if it may.

    Another thread's locks would be copied held; on a GPU machine libraries keep idle threads that have been seen to do
    no harm. What is forked from a process that has initialised CUDA cannot use it.
    """
    if cuda_answers.initialised():
        return "CUDA has been initialised in the parent" if device == "cuda" else None
    threads = len(os.listdir("/proc/self/task"))
    return f"{threads} threads exist where there should be one" if device == "cpu" and threads != 1 else None


def _make_children_fork() -> None:
    """Have SGLang's own processes forked too: its engine insists on "spawn", which imports everything again."""
    set_start_method = multiprocessing.set_start_method

    def fork(method: Any, force: bool = False) -> None:
        set_start_method("fork", force=True)

    multiprocessing.set_start_method = fork
