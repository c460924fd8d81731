"""The short name ``runtime`` for ``vsum_runtime.runtime``, and for every module below it.

``from runtime import Summarizer`` and ``python -m runtime.serve`` give the very modules that the full name gives: one
class `VsumError`, one set of settings, whichever name a program imports by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType


def forward(name: str) -> None:
    """Let the module ``name``, which calls this while it is imported, be ``vsum_runtime.<name>``."""
    sys.meta_path.insert(0, _Forward(name))
    sys.modules[name] = import_module(f"vsum_runtime.{name}")


class _Forward(MetaPathFinder):
    """Finds ``<name>.x`` as the module ``vsum_runtime.<name>.x``."""

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self._prefix):
            return None
        real = find_spec(f"vsum_runtime.{fullname}")
        if real is None:
            return None
        is_package = real.submodule_search_locations is not None
        return spec_from_loader(fullname, _SameModule(real), origin=real.origin, is_package=is_package)


class _SameModule(InspectLoader):
    """Loads a module by importing it under its full name."""

    def __init__(self, real: ModuleSpec) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self._real.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._real  # the import system has set that of the short name

    def get_code(self, fullname: str) -> CodeType | None:  # asked for by `python -m`
        loader = self._real.loader
        return loader.get_code(self._real.name) if isinstance(loader, InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        loader = self._real.loader
        return loader.get_source(self._real.name) if isinstance(loader, InspectLoader) else None

    def is_package(self, fullname: str) -> bool:
        return self._real.submodule_search_locations is not None
