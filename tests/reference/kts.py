"""Kernel temporal segmentation as the formula reads: full Gram matrix, full table, every number of cuts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def scatter_by_definition(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """J[t, l]: sum of squared distances of the rows t .. l-1 to their mean."""
    rows = np.asarray(rows, dtype=np.float64)
    n = len(rows)
    table = np.zeros((n + 1, n + 1))
    for start, end in itertools.combinations(range(n + 1), 2):
        table[start, end] = ((rows[start:end] - rows[start:end].mean(axis=0)) ** 2).sum()
    return table


def scatter_from_gram(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same from two-dimensional running sums of the Gram matrix, as the field's code has it, but in float64."""
    rows = np.asarray(rows, dtype=np.float64)
    n = len(rows)
    gram = rows @ rows.T
    trace = np.concatenate(([0.0], np.cumsum(np.diag(gram))))
    block = np.zeros((n + 1, n + 1))
    block[1:, 1:] = gram.cumsum(axis=0).cumsum(axis=1)
    corner = np.diag(block)
    start, end = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    total = corner[None, :] - block - block.T + corner[:, None]
    return np.where(end > start, trace[None, :] - trace[:, None] - total / np.maximum(end - start, 1), 0.0)


def scatter_from_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same from the running sums of the rows and of their squared lengths."""
    rows = np.asarray(rows, dtype=np.float64)
    n = len(rows)
    sums = np.concatenate((np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)))
    squares = np.concatenate(([0.0], np.cumsum((rows**2).sum(axis=1))))
    table = np.zeros((n + 1, n + 1))
    for end in range(1, n + 1):
        lengths = np.arange(end, 0, -1)
        table[:end, end] = squares[end] - squares[:end] - ((sums[end] - sums[:end]) ** 2).sum(axis=1) / lengths
    return table


def scatter_by_diagonals(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same by one running sum up each column of the Gram matrix."""
    rows = np.asarray(rows, dtype=np.float64)
    n = len(rows)
    gram = rows @ rows.T
    table = np.zeros((n + 1, n + 1))
    total = np.zeros(n)
    for last in range(n):
        column = np.cumsum(gram[last::-1, last])[::-1]
        total[: last + 1] += 2.0 * column - gram[last, last]
        trace = np.cumsum(np.diag(gram)[last::-1])[::-1]
        table[: last + 1, last + 1] = trace - total[: last + 1] / np.arange(last + 1, 0, -1)
    return table


def penalty_term(m: int, n: int, penalty: float = 1.0, sampling: float = 1.0) -> float:
    if m == 0:
        return 0.0
    return penalty * m / (2.0 * n * sampling) * (np.log(n * sampling / m) + 1.0)


def objectives(
    rows: NDArray[np.float64],
    max_change_points: int,
    min_steps: int = 1,
    max_steps: int | None = None,
    short_first_shot: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Least total scatter for 0 .. max_change_points cuts, and the table of back pointers."""
    scatter = scatter_from_gram(rows)
    n = len(rows)
    max_steps = n + 1 if max_steps is None else max_steps
    table = np.full((max_change_points + 1, n + 1), np.inf)
    back = np.zeros((max_change_points + 1, n + 1), dtype=np.int64)
    last = min(n, max_steps - 1 if short_first_shot else max_steps)
    table[0, min_steps : last + 1] = scatter[0, min_steps : last + 1]
    for k in range(1, max_change_points + 1):
        for end in range((k + 1) * min_steps, n + 1):
            first = max(k * min_steps, end - max_steps)
            costs = table[k - 1, first : end - min_steps + 1] + scatter[first : end - min_steps + 1, end]
            table[k, end] = costs.min()
            back[k, end] = first + costs.argmin()
    return table[:, n], back


def segmentation(
    rows: NDArray[np.float64],
    *,
    penalty: float = 1.0,
    max_change_points: int | None = None,
    min_steps: int = 1,
    max_steps: int | None = None,
    sampling: float = 1.0,
    short_first_shot: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best change points, and the cost of the best for every number of cuts."""
    n = len(rows)
    most = n // min_steps - 1 if max_change_points is None else max_change_points
    values, back = objectives(rows, most, min_steps, max_steps, short_first_shot)
    costs = np.array([value / n + penalty_term(m, n, penalty, sampling) for m, value in enumerate(values)])
    end, found = n, []
    for k in range(int(np.argmin(costs)), 0, -1):
        end = back[k, end]
        found.append(end)
    return np.array(found[::-1], dtype=np.int64), costs


def change_points(rows: NDArray[np.float64], **options: Any) -> NDArray[np.int64]:
    return segmentation(rows, **options)[0]


def total_scatter(rows: NDArray[np.float64], cuts: ArrayLike) -> float:
    """Sum over the shots of squared distances to the shot's mean."""
    pieces = np.split(np.asarray(rows, dtype=np.float64), np.asarray(cuts, dtype=np.int64))
    return sum(((piece - piece.mean(axis=0)) ** 2).sum() for piece in pieces)


def cost(rows: NDArray[np.float64], cuts: ArrayLike, penalty: float = 1.0, sampling: float = 1.0) -> float:
    return total_scatter(rows, cuts) / len(rows) + penalty_term(len(np.asarray(cuts)), len(rows), penalty, sampling)


def least_cost_of_all_ways(rows: NDArray[np.float64], penalty: float = 1.0) -> float:
    """By trying all 2 ** (n - 1) ways to cut."""
    n = len(rows)
    ways = (cuts for m in range(n) for cuts in itertools.combinations(range(1, n), m))
    return min(cost(rows, list(cuts), penalty) for cuts in ways)
