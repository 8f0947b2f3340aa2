"""Stands in for Triton on a CPU: SGLang's kernel files can be imported, launching a kernel raises NotImplementedError.

Triton has no CPU backend, so none of its kernels could run here anyway; the package would be a third of what `make
setup` downloads. SGLang decorates about a thousand functions with it at import, and calls two of its helpers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

# SGLang and transformers compare versions; this is the one beside torch 2.13.
__version__ = "3.7.1"
__path__ = []


def cdiv(x: int, y: int) -> int:
    """Return x / y, rounded up."""
    return -(x // -y)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


class AbsentType(type):
    """The type of everything that is looked up in Triton: an attribute of it is absent as well."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{cls.__qualname__}.{name}")


class Absent(metaclass=AbsentType):
    """A name of Triton's. It can be annotated with, inherited from, instantiated and used as a decorator."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{type(self).__qualname__}.{name}")

    def __call__(self, *_: object, **__: object) -> Any:
        return self


def absent(name: str) -> type[Absent]:
    return cast("type[Absent]", AbsentType(name, (Absent,), {"__module__": __name__}))


class JITFunction(Absent):
    """A kernel that has been decorated and can be neither launched nor called."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__

    def __getitem__(self, grid: object) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        raise NotImplementedError(f"the Triton kernel {self.__name__} cannot run on a CPU")


def jit(fn: Callable[..., Any] | None = None, **_: object) -> Any:
    """Decorate a kernel, with or without options."""
    return JITFunction if fn is None else JITFunction(fn)


def unchanged(*_: object, **__: object) -> Callable[[Any], Any]:
    """Return a decorator that changes nothing."""
    return lambda kernel: kernel


autotune = heuristics = unchanged


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return absent(f"triton.{name}")


class NoDriver:
    """Triton's driver on a machine without a GPU."""

    @property
    def active(self) -> Any:
        """Raise RuntimeError, as Triton does: SGLang asks here which device there is, and falls back to the CPU."""
        raise RuntimeError("0 active drivers: there is no GPU")


class AbsentModule(ModuleType):
    """A submodule of Triton's, in which every name can be looked up; `KNOWN` has the few that are not absent."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        return KNOWN[full] if full in KNOWN else absent(full)


KNOWN: dict[str, object] = {"triton.runtime.jit.JITFunction": JITFunction, "triton.runtime.driver": NoDriver()}


class Submodules(MetaPathFinder, Loader):
    """Finds any `triton.*` and makes an `AbsentModule` of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith("triton.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(Submodules())

for submodule in ("language", "runtime"):
    # Reached as attributes of `triton`, without an import of their own.
    import_module(f"triton.{submodule}")
