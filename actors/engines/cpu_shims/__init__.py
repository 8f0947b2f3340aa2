"""Makes the real SGLang run on a machine without a GPU: call `activate` before the first import of sglang.

SGLang's CPU engine is written for Intel's AMX and is installed apart from the CUDA one; its pure-torch path needs
neither, but a good many of its imports take CUDA packages for granted. The shims here answer those imports, in three
ways, each in its own file:

- `settings` are environment variables, among them PYTHONPATH, so that processes which the engine spawns have it too;
- `standins/` is a folder on that path with packages named `sgl_kernel` and `triton`, whose kernels cannot be called;
- `patches` change a few names in torch, torchvision and NIXL when these are imported, by the hook in `hook`.

Nothing here touches a model's arithmetic, and on a GPU nothing here is loaded.
"""

from __future__ import annotations

import os
import sys

from actors.engines.cpu_shims import patches
from actors.engines.cpu_shims.hook import install, is_installed
from actors.engines.cpu_shims.settings import STANDINS, apply

__all__ = ["activate", "apply"]


def activate() -> None:
    """Prepare this process, what it forks and what it spawns for SGLang on a CPU; a second call does nothing.

    Raises RuntimeError if numpy, torch or sglang have been imported already: OpenMP and OpenBLAS read their settings
    once, when these are loaded.
    """
    if is_installed():
        return
    if early := sorted({"numpy", "torch", "sglang"} & sys.modules.keys()):
        raise RuntimeError(f"cpu_shims.activate() must come before the import of {', '.join(early)}")
    apply(os.environ)
    if STANDINS not in sys.path:
        sys.path.insert(0, STANDINS)
    install(patches.PATCHES)
