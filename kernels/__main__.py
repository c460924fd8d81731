"""``python -m vsum_runtime.kernels``: compile every kernel now, so that no later process has to.

No one needs to run it: what a process compiles is kept. It serves installations that their users cannot write to, such
as an image of a container, on the processors that they will run on; `code_cache.py` says where the results go.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from vsum_runtime.kernels import compiled, knapsack, kts, kts_stream, metrics, nms, penalised, shot_scores

MODULES: tuple[ModuleType, ...] = (penalised, kts, kts_stream, shot_scores, knapsack, nms, metrics)


def warm_up() -> None:
    """Call every kernel with every type of argument that its compiled functions see."""
    for module in MODULES:
        compiled.start_compiler(module.__name__)
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


def dispatchers() -> list[Any]:
    values = [value for module in MODULES for value in vars(module).values()]
    return [value.dispatcher for value in values if isinstance(value, compiled.Compiled)]


def main() -> int:
    began = time.perf_counter()
    warm_up()
    functions = dispatchers()
    n_compiled = sum(sum(function.stats.cache_misses.values()) for function in functions)
    sys.stdout.write(
        f"{len(functions)} functions ready in {time.perf_counter() - began:.1f} s, {n_compiled} compiled\n"
    )
    for path in sorted({str(function.stats.cache_path) for function in functions}):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
