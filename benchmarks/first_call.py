"""The first call of each kernel in a process: imported by nothing but the processes that ``benchmarks.kernels`` starts.

This module imports nothing of the project, so that the import of the kernel is measured as well.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "kts": ("kts", lambda kts: kts.change_points(np.eye(40))),
    "kts, long": ("kts", lambda kts: kts.change_points(np.eye(9000, 8, dtype=np.float32))),
    "knapsack": ("knapsack", lambda knapsack: knapsack.pack([2.0, 3.0], [2, 3], 4)),
    "metrics": ("metrics", lambda metrics: metrics.kendall_tau([1, 2], [[1, 2]])),
}


def import_and_call_s(name: str) -> tuple[float, float]:
    """Seconds of importing the kernel, NumPy being imported already, and of its first call."""
    module, call = CALLS[name]
    began = time.perf_counter()
    kernel = importlib.import_module(f"vsum_runtime.kernels.{module}")
    imported = time.perf_counter()
    call(kernel)
    return imported - began, time.perf_counter() - imported
