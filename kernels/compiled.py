"""A Python function -> machine code that is ready when needed: numba, with a cache that no installation breaks.

numba keeps compiled code in ``__pycache__`` beside the source, or for the user where that is not writable, and refuses
to define the function where neither is. Here the code is looked for, in this order, in

1. the folder named by ``NUMBA_CACHE_DIR``, if set;
2. the installation's own ``__pycache__``, **also when it is read-only**;
3. the user's cache folder;

and what had to be compiled is written to the first of them that can be written, or to none. Files are written under a
temporary name and renamed, and every function has one file per signature, so processes that start together never see
half a file. ``python -m kernels`` after an installation compiles everything once.

A compiled function may call others of its own file only: numba renews a cache when the file of the function changes,
not when another file does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import caching

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile on the first call, for the argument types of that call; release the GIL while running."""
    return cast(_Function, _with_cache(njit(nogil=True)(function)))


def compiled_reduction(function: _Function) -> _Function:
    """The same for sums and minima of finite numbers, which the compiler may split into SIMD lanes.

    The lanes are the same on every call and from any number of threads; they may differ between processors.
    """
    fast = {"nnan", "nsz", "reassoc", "contract"}
    return cast(_Function, _with_cache(njit(nogil=True, fastmath=fast)(function)))


def _with_cache(dispatcher: Any) -> Any:
    if hasattr(dispatcher, "_cache"):  # with NUMBA_DISABLE_JIT=1 numba hands the function back as it is
        dispatcher._cache = _Caches(dispatcher.py_func)
    return dispatcher


def _locator(name: str) -> Any:
    """A locator class of numba, whose names lost their underscore in version 0.62."""
    return getattr(caching, name, None) or getattr(caching, f"_{name}")


class _InstalledCacheLocator(_locator("InTreeCacheLocator")):  # type: ignore[misc]
    """``__pycache__`` beside the source, whether or not it can be written."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if os.path.exists(py_file) else None


class _Caches:
    """What a numba dispatcher asks of its cache, answered by several: the first hit is loaded, the first that can be
    written is saved to."""

    def __init__(self, py_func: Any) -> None:
        self._caches = []
        for locator in (_locator("UserProvidedCacheLocator"), _InstalledCacheLocator, _locator("UserWideCacheLocator")):
            implementation = type("_Impl", (caching.CompileResultCacheImpl,), {"_locator_classes": [locator]})
            with contextlib.suppress(RuntimeError):  # "no locator available": this one is not to be had here
                self._caches.append(type("_Cache", (caching.FunctionCache,), {"_impl_class": implementation})(py_func))

    @property
    def cache_path(self) -> str | None:
        return self._caches[0].cache_path if self._caches else None

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        for cache in self._caches:
            with contextlib.suppress(Exception):  # whatever is wrong with a file, its function can be compiled
                found = cache.load_overload(signature, target_context)
                if found is not None:
                    return found
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        for cache in self._caches:
            with contextlib.suppress(OSError):  # it cannot be written: on to the next
                try:
                    cache.save_overload(signature, result)
                except (EOFError, pickle.UnpicklingError):  # its index is damaged: begin a new one
                    cache.flush()
                    cache.save_overload(signature, result)
                return

    def enable(self) -> None:
        for cache in self._caches:
            cache.enable()

    def disable(self) -> None:
        for cache in self._caches:
            cache.disable()

    def flush(self) -> None:
        for cache in self._caches:
            with contextlib.suppress(OSError):
                cache.flush()
