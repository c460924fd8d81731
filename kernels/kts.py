"""Features -> change points: kernel temporal segmentation, exact, with the number of cuts chosen by a penalty.

A *change point* is the first step of a new shot. The scatter of a segment is the sum of squared distances of its rows
to their mean; the segmentation minimises ``total scatter / n + penalty term(m)`` over every number of cuts ``m`` and
every way to make them.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray


def change_points(
    features: ArrayLike,
    *,
    penalty: float = 1.0,
    max_change_points: int | None = None,
    min_steps: int = 1,
    max_steps: int | None = None,
    sampling: float = 1.0,
    short_first_segment: bool = False,
) -> NDArray[np.int64]:
    """Cut a feature sequence into shots where its content changes.

    Parameters
    ----------
    features : float [T, D]        one row per step, usually of unit length
    penalty : float                weight of the penalty on the number of cuts, > 0
    max_change_points : int        most cuts allowed; None: no limit
    min_steps, max_steps : int     shortest and longest shot in steps; None: no limit
    sampling : float               temporal subsampling of the rows: makes `penalty` mean the same at any rate
    short_first_segment : bool     the first shot may have at most ``max_steps - 1`` steps, as in the 2014 code

    Returns
    -------
    int64 [m]                      first step of each new shot, ascending, each in 1 .. T-1

    Raises
    ------
    ValueError                     on a wrong shape, a non-finite value or limits that no segmentation meets

    >>> change_points([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 4)
    array([3])
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"features: expected [T, D] with T >= 1 and D >= 1, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("features: expected finite values, got NaN or infinity")
    n = len(rows)
    max_steps = n + 1 if max_steps is None else max_steps
    most = n // min_steps - 1 if max_change_points is None else max_change_points
    if not 1 <= min_steps <= max_steps or not (most + 1) * min_steps <= n <= (most + 1) * max_steps:
        raise ValueError(
            f"min_steps, max_steps, max_change_points: no segmentation of {n} steps into at most {most + 1} shots "
            f"of {min_steps} to {max_steps} steps"
        )
    rows = rows - rows.mean(axis=0)
    scatter = _scatter_table(rows @ rows.T)
    return _best_table(scatter, penalty, sampling, most, min_steps, max_steps, short_first_segment)


@njit(cache=True)
def _scatter_table(gram):
    """J[l, t]: scatter of the rows t .. l-1."""
    n = len(gram)
    table = np.zeros((n + 1, n))
    sums = np.zeros(n)
    trace = np.zeros(n)
    for j in range(n):
        column = 0.0
        for t in range(j, -1, -1):
            column += gram[t, j]
            sums[t] += 2.0 * column - gram[j, j]
            trace[t] += gram[j, j]
            table[j + 1, t] = max(0.0, trace[t] - sums[t] / (j + 1 - t)) if t < j else 0.0
    return table


@njit(cache=True)
def _best_table(scatter, penalty, sampling, most, min_steps, max_steps, short_first):
    n = scatter.shape[1]
    tolerance = 1e-12 * n * max(1e-300, scatter.max() / n)
    previous = np.full(n + 1, np.inf)
    first_limit = max_steps - 1 if short_first else max_steps
    for end in range(min_steps, min(n, first_limit) + 1):
        previous[end] = scatter[end, 0]
    best_m, best_cost = 0, previous[n] / n
    backs = [np.zeros(n + 1, dtype=np.int32)]
    for m in range(1, most + 1):
        term = penalty * m / (2.0 * n * sampling) * (np.log(n * sampling / m) + 1.0)
        if term >= best_cost:
            break
        current = np.full(n + 1, np.inf)
        back = np.zeros(n + 1, dtype=np.int32)
        for end in range((m + 1) * min_steps, n + 1):
            low = np.inf
            first = max(m * min_steps, end - max_steps)
            for t in range(first, end - min_steps + 1):
                low = min(low, previous[t] + scatter[end, t])
            if low < np.inf:
                for t in range(first, end - min_steps + 1):
                    if previous[t] + scatter[end, t] <= low + tolerance:
                        back[end] = t
                        break
            current[end] = low
        backs.append(back)
        cost = current[n] / n + term
        if cost < best_cost - 1e-14:
            best_m, best_cost = m, cost
        previous = current
    found = np.zeros(best_m, dtype=np.int64)
    end = n
    for m in range(best_m, 0, -1):
        end = backs[m][end]
        found[m - 1] = end
    return found
