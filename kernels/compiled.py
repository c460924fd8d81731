"""A Python function -> machine code, where that pays: numba, imported for the first function that is worth it.

In a fresh process numba takes a second to import and to load what it compiled before, and many more where it has
compiled nothing yet. A short input is done by then. So a function below `compiled` runs as the Python it is until its
module is started: by `start_compiler`, or by `expect` once the work that plain Python was given adds up.

A compiled function may call others of its own file only: numba renews a cache when the file of the function changes,
not when another file does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

PATIENCE_S = 0.3
"""Seconds of plain Python in a module, all in all, before the compiler is started for it."""

_started: set[str] = set()
_expected_s: dict[str, float] = {}


def start_compiler(module: str) -> None:
    """Let the functions of a module be compiled, or loaded if they were before, each at its next call."""
    _started.add(module)


def expect(module: str, seconds: float) -> bool:
    """Before work that would take plain Python so long: whether the module's functions are, or are now, started."""
    if module not in _started:
        _expected_s[module] = _expected_s.get(module, 0.0) + seconds
        if _expected_s[module] > PATIENCE_S:
            start_compiler(module)
    return module in _started


def compiled(function: Callable[_Arguments, _Result]) -> Compiled[_Arguments, _Result]:
    """Compile on the first call, for the argument types of that call; release the GIL while running."""
    return Compiled(function, {})


def compiled_reduction(function: Callable[_Arguments, _Result]) -> Compiled[_Arguments, _Result]:
    """The same for sums and minima of finite numbers, which the compiler may split into SIMD lanes.

    The lanes are the same on every call and from any number of threads; they may differ between processors.
    """
    fast = {"nnan", "nsz", "reassoc", "contract"}
    return Compiled(function, {"fastmath": fast})


class Compiled(Generic[_Arguments, _Result]):
    """A function as Python and as numba's dispatcher, which is made when first wanted."""

    _making = Lock()

    def __init__(self, function: Callable[_Arguments, _Result], options: dict[str, Any]) -> None:
        update_wrapper(self, function)
        self.py_func = function
        self._before_start = function
        self._options = options
        self._dispatcher: Any = None

    def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        run = self.dispatcher if self.py_func.__module__ in _started else self._before_start
        result: _Result = run(*args, **kwargs)
        return result

    def before_start(self, function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """Let another function with the same result run before the start: one without loops over numbers."""
        self._before_start = function
        return function

    @property
    def dispatcher(self) -> Any:
        if self._dispatcher is None:
            from vsum_runtime.kernels.code_cache import dispatcher

            with self._making:
                if self._dispatcher is None:
                    self._dispatcher = dispatcher(self.py_func, self._options)
        return self._dispatcher
