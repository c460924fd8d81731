"""``python -m kernels``: compile every kernel now, so that no later process has to.

Run it once after an installation, as the user who may write to it; `compiled.py` says where the results go.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from vsum_runtime.kernels import knapsack, kts, kts_stream, metrics, nms, penalised, shot_scores

MODULES: tuple[ModuleType, ...] = (penalised, kts, kts_stream, shot_scores, knapsack, nms, metrics)


def warm_up() -> None:
    """Call every kernel with every type of argument that its compiled functions see."""
    rows = np.repeat([[0.0], [1.0], [0.0]], 70, axis=0)  # two cuts, and no corner of the hull at one
    for features in (rows, rows.astype(np.float32)):
        kts.change_points(features, max_change_points=1)
        stream = kts_stream.Stream(steps_per_cut=10, max_steps=40)
        stream.push(features)
        stream.finish()
    shot_scores.pool([0.5], [0], [[0, 1]], 1)
    knapsack.pack([2.0, 2.0, 3.0], [2, 2, 3], capacity=5)
    nms.keep([[0, 2], [1, 3]], [0.5, 0.5])
    metrics.kendall_tau([1, 2], [[1, 2]])
    metrics.spearman_rho([1, 2], [[1, 2]])


def compiled_functions() -> list[Any]:
    return [value for module in MODULES for value in vars(module).values() if hasattr(value, "py_func")]


def main() -> int:
    began = time.perf_counter()
    warm_up()
    functions = compiled_functions()
    n_compiled = sum(sum(function.stats.cache_misses.values()) for function in functions)
    sys.stdout.write(
        f"{len(functions)} functions ready in {time.perf_counter() - began:.1f} s, {n_compiled} compiled\n"
    )
    for path in sorted({str(function.stats.cache_path) for function in functions}):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
