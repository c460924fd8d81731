"""Numba's dispatchers with a cache that no installation breaks and that processors may share.

numba keeps compiled code in ``__pycache__`` beside the source, or for the user where that is not writable, and refuses
to define the function where neither is. Here the code is looked for, in this order, in

1. the folder named by ``NUMBA_CACHE_DIR``, if set;
2. the installation's own ``__pycache__``, **also when it is read-only**;
3. the user's cache folder;

and what had to be compiled is written to the first of them that can be written, or to none.

numba also lists a function's files in an index, which two processes that write at once take from each other: one then
loads what the other compiled, for other arguments or for a processor with other instructions. Here the name of a file
says what is in it: the version of numba, the source, the types of the arguments, the processor and its features. Files
are written under a temporary name and renamed. So Pythons, versions and machines of a cluster may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.caching
from numba.extending import typeof_impl

from vsum_runtime.kernels.compiled import Compiled

caching: Any = numba.core.caching  # without annotations, and private in part


@typeof_impl.register(Compiled)
def _type_of(function: Compiled[Any, Any], context: Any) -> Any:
    """What a compiled function sees where it calls another."""
    return typeof_impl(function.dispatcher, context)


def dispatcher(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """The function compiled by numba at its first call, or loaded; with NUMBA_DISABLE_JIT=1 the function as it is."""
    made = numba.njit(nogil=True, **options)(function)
    if hasattr(made, "_cache"):
        made._cache = _Caches(function)
    return made


def _locator(name: str) -> Any:
    """A locator class of numba, whose names lost their underscore in version 0.62."""
    return getattr(caching, name, None) or getattr(caching, f"_{name}")


class _Installed(_locator("InTreeCacheLocator")):  # type: ignore[misc]
    """``__pycache__`` beside the source, whether or not it can be written."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if os.path.exists(py_file) else None


class _OfUser(_locator("UserWideCacheLocator")):  # type: ignore[misc]
    """The user's cache folder, made when something is written there."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file)


class _Files(caching.IndexDataCacheFile):  # type: ignore[misc]
    """Files whose names say what is in them, in the place of numba's index."""

    def __init__(self, cache_path: str, filename_base: str, source_stamp: Any) -> None:
        super().__init__(cache_path, filename_base, source_stamp)
        self._base = filename_base

    def _name(self, key: Any) -> str:
        content = repr((self._version, self._source_stamp, key))
        return f"{self._base}.{hashlib.sha256(content.encode()).hexdigest()[:16]}.nbc"

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        try:
            return self._load_data(self._name(key))
        except FileNotFoundError:
            return None

    def flush(self) -> None:
        for file in Path(self._cache_path).glob(f"{self._base}.*.nbc"):
            file.unlink(missing_ok=True)


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """numba's cache of one function in one place."""

    def __init__(self, py_func: Any, locator: Any) -> None:
        self._impl_class = type("_Impl", (caching.CompileResultCacheImpl,), {"_locator_classes": [locator]})
        super().__init__(py_func)
        place = self._impl.locator
        self._cache_file = _Files(place.get_cache_path(), self._impl.filename_base, place.get_source_stamp())


class _Caches:
    """What a numba dispatcher asks of its cache, answered by several: the first hit is loaded, the first that can be
    written is saved to."""

    def __init__(self, py_func: Any) -> None:
        self._caches = []
        for locator in (_locator("UserProvidedCacheLocator"), _Installed, _OfUser):
            with contextlib.suppress(RuntimeError, OSError):  # this one is not to be had here
                self._caches.append(_Cache(py_func, locator))

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
