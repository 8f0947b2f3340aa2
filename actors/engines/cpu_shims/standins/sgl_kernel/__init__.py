"""Stands in for SGLang's compiled kernels on a CPU: every name can be imported, calling one raises NotImplementedError.

SGLang imports some dozens of names from `sgl_kernel` at module level; on its torch-native path without speculative
decoding it calls none of them. The real package (sglang-kernel) is a CUDA build and does not load here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The release SGLang 0.5.23 asks for (its requirement `sglang-kernel==0.4.10`); it compares.
__version__ = "0.4.10"
__path__ = []


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is a compiled kernel that does not exist on this CPU")

    missing.__name__ = name
    return missing
