"""Runs a function right before or right after a named module is executed, without importing that module any earlier.

An import hook (PEP 451) in place of an early import: torch alone takes seconds to load, and a process that never
loads it must not pay for a patch of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@dataclass(frozen=True)
class Patch:
    """What to do around a module's execution; `why` is said here and nowhere else."""

    why: str
    before: Callable[[], None] | None = None
    after: Callable[[ModuleType], None] | None = None


class PatchingLoader(Loader):
    """A module's own loader with its patch around it."""

    def __init__(self, loader: Loader, patch: Patch) -> None:
        self.loader = loader
        self.patch = patch

    def __getattr__(self, name: str) -> object:
        # get_source, get_data and the like: inspect and importlib.resources ask the loader for them.
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.patch.before:
            self.patch.before()
        self.loader.exec_module(module)
        if self.patch.after:
            self.patch.after(module)


class PatchingFinder(MetaPathFinder):
    """Finds the modules that have a patch, as Python's own path finder does, and gives them a `PatchingLoader`."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self.patches = patches

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = self.patches.get(fullname)
        if patch is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = PatchingLoader(spec.loader, patch)
        return spec


def is_installed() -> bool:
    return any(isinstance(finder, PatchingFinder) for finder in sys.meta_path)


def install(patches: Mapping[str, Patch]) -> None:
    """Hook `patches` (module name to patch) into the imports of this process."""
    sys.meta_path.insert(0, PatchingFinder(patches))
