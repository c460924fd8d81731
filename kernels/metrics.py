"""How summaries and score curves are judged: F-score, Kendall's tau-b and Spearman's rho against each annotator."""

from __future__ import annotations

import warnings

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray


def f_scores(summary: ArrayLike, user_summaries: ArrayLike, *, step: int = 15) -> NDArray[np.float64]:
    """F-score of a machine summary against each annotator's summary.

    Frames are binarised with ``> 0``. A summary shorter than the annotators' is continued with zeros, a longer one is
    cut; a warning says so where the surplus exceeds one sampling step. An empty side gives 0, and if both are empty a
    warning says so.

    Parameters
    ----------
    summary : bool or number [N]             frames of the machine summary
    user_summaries : bool or number [U, N]   frames of each annotator's summary
    step : int                               frames per sampled step: the surplus that needs no warning

    Returns
    -------
    float64 [U]                              F-score in 0 .. 1; TVSum reports the mean, SumMe the maximum

    Raises
    ------
    ValueError                               on a wrong shape or a non-finite value

    >>> f_scores([1, 1, 0, 0], [[1, 0, 0, 0], [0, 0, 1, 1]])
    array([0.66666667, 0.        ])
    """
    machine = _mask(summary, "summary")
    users = _mask(user_summaries, "user_summaries")
    if machine.ndim != 1 or users.ndim != 2 or len(users) == 0:
        raise ValueError(
            f"summary, user_summaries: expected [N] and [U, N] with U >= 1, got {machine.shape} and {users.shape}"
        )
    n_frames = users.shape[1]
    if len(machine) > n_frames + step:
        warnings.warn(f"summary has {len(machine)} frames, the annotators' have {n_frames}: cut", stacklevel=2)
    machine = machine[:n_frames]
    n_machine = np.count_nonzero(machine)
    n_users = np.count_nonzero(users, axis=1)
    if n_machine == 0 and (n_users == 0).any():
        warnings.warn("summary and an annotator's summary are both empty: F-score 0", stacklevel=2)
    n_overlap = np.count_nonzero(users[:, : len(machine)] & machine, axis=1)
    return 2.0 * n_overlap / np.maximum(n_machine + n_users, 1)


def kendall_tau(prediction: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Kendall's tau-b of one score curve against each of several.

    Parameters
    ----------
    prediction : float [n]        predicted importance, n >= 2
    references : float [U, n]     importance given by each annotator

    Returns
    -------
    float64 [U]                   tau-b in -1 .. 1; NaN where a side is constant

    Raises
    ------
    ValueError                    on a wrong shape or a non-finite value

    Notes
    -----
    Consecutive samples with the same pair of values form one run, counted with its length: the work depends on the
    number of runs R and of reference levels L, O(n + R log L), exact in integers.

    >>> kendall_tau([1.0, 2.0, 3.0, 3.0], [[1, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5]]).round(4)
    array([ 0.9129, -0.9129,     nan])
    """
    return _rank_correlations(prediction, references)[0]


def spearman_rho(prediction: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rho of one score curve against each of several; ties share their average rank.

    Parameters
    ----------
    prediction : float [n]        predicted importance, n >= 2
    references : float [U, n]     importance given by each annotator

    Returns
    -------
    float64 [U]                   rho in -1 .. 1; NaN where a side is constant

    Raises
    ------
    ValueError                    on a wrong shape or a non-finite value

    >>> spearman_rho([1.0, 2.0, 3.0], [[1, 3, 2], [7, 7, 7]])
    array([0.5, nan])
    """
    return _rank_correlations(prediction, references)[1]


def _mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return array if array.dtype == np.bool_ else array > 0


def _rank_correlations(prediction: ArrayLike, references: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    curve = np.asarray(prediction, dtype=np.float64)
    others = np.asarray(references)
    if curve.ndim != 1 or others.ndim != 2 or others.shape[1] != len(curve) or 0 in others.shape:
        raise ValueError(
            f"prediction, references: expected [n] and [U, n] with n, U >= 1, got {curve.shape} and {others.shape}"
        )
    if not np.isfinite(curve).all():
        raise ValueError("prediction: expected finite values, got NaN or infinity")
    taus = np.empty(len(others))
    rhos = np.empty(len(others))
    changed = curve[1:] != curve[:-1]
    for user, row in enumerate(others):
        other = np.asarray(row, dtype=np.float64)
        if not np.isfinite(other).all():
            raise ValueError(f"references: expected finite values, got NaN or infinity in row {user}")
        starts = np.flatnonzero(np.concatenate(([True], changed | (other[1:] != other[:-1]))))
        weights = np.diff(starts, append=len(curve))
        _, curve_levels = np.unique(curve[starts], return_inverse=True)
        _, other_levels = np.unique(other[starts], return_inverse=True)
        taus[user], rhos[user] = _correlate(curve_levels, other_levels, weights)
    return taus, rhos


@njit(cache=True)
def _correlate(first, second, weights):
    """tau-b and rho of weighted pairs of dense levels."""
    n_first, n_second = first.max() + 1, second.max() + 1
    if n_first == 1 or n_second == 1:
        return np.nan, np.nan
    count_first = np.zeros(n_first, dtype=np.int64)
    count_second = np.zeros(n_second, dtype=np.int64)
    begin = np.zeros(n_first + 1, dtype=np.int64)
    n = 0
    for run in range(len(weights)):
        count_first[first[run]] += weights[run]
        count_second[second[run]] += weights[run]
        begin[first[run] + 1] += 1
        n += weights[run]
    begin = np.cumsum(begin)
    order = np.empty(len(weights), dtype=np.int64)
    place = begin.copy()
    for run in range(len(weights)):
        order[place[first[run]]] = run
        place[first[run]] += 1
    # Concordant minus discordant pairs: below and above each run among the runs of lower first level.
    tree = np.zeros(n_second + 1, dtype=np.int64)
    balance, seen = 0, 0
    for level in range(n_first):
        for at in range(begin[level], begin[level + 1]):
            run = order[at]
            below, node = 0, second[run]
            while node > 0:
                below += tree[node]
                node &= node - 1
            not_above, node = 0, second[run] + 1
            while node > 0:
                not_above += tree[node]
                node &= node - 1
            balance += weights[run] * (below - (seen - not_above))
        for at in range(begin[level], begin[level + 1]):
            run = order[at]
            node = second[run] + 1
            while node <= n_second:
                tree[node] += weights[run]
                node += node & -node
            seen += weights[run]
    pairs = n * (n - 1) // 2
    ties_first = (count_first * (count_first - 1) // 2).sum()
    ties_second = (count_second * (count_second - 1) // 2).sum()
    tau = balance / np.sqrt(float(pairs - ties_first)) / np.sqrt(float(pairs - ties_second))
    rank_first = np.cumsum(count_first) - 0.5 * (count_first - 1) - 0.5 * (n + 1)
    rank_second = np.cumsum(count_second) - 0.5 * (count_second - 1) - 0.5 * (n + 1)
    product = 0.0
    for run in range(len(weights)):
        product += weights[run] * rank_first[first[run]] * rank_second[second[run]]
    spread = np.sqrt((count_first * rank_first**2).sum()) * np.sqrt((count_second * rank_second**2).sum())
    return max(-1.0, min(1.0, tau)), max(-1.0, min(1.0, product / spread))
