"""How summaries and score curves are judged: F-score, Kendall's tau-b and Spearman's rho against each annotator."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels.compiled import compiled, start_compiler


def f_scores(summary: ArrayLike, user_summaries: ArrayLike, *, step: int = 15) -> NDArray[np.float64]:
    """F-score of a machine summary against each annotator's summary.

    Frames are binarised with ``> 0``. A summary shorter than the annotators' is continued with zeros, a longer one is
    cut; a warning says so where the surplus exceeds one sampling step. An empty side gives 0, and if both are empty a
    warning says so.

    Parameters
    ----------
    summary : bool or number [N]
        frames of the machine summary
    user_summaries : bool or number [U, N]
        frames of each annotator's summary
    step : int
        frames per sampled step: the surplus that needs no warning

    Returns
    -------
    float64 [U]
        F-score in 0 .. 1; TVSum reports the mean, SumMe the maximum

    Raises
    ------
    ValueError
        on a wrong shape or type, or a value that is not finite

    Notes
    -----
    Exact counts. The field's tools differ at the edges: some give NaN for an empty side, some add 1e-8 to the
    denominators, some continue the annotators with zeros where the machine summary is longer.

    >>> f_scores([1, 1, 0, 0], [[1, 0, 0, 0], [0, 0, 1, 1]])
    array([0.66666667, 0.        ])
    """
    machine = _chosen(summary, "summary")
    users = _chosen(user_summaries, "user_summaries")
    if machine.ndim != 1 or users.ndim != 2 or len(users) == 0:
        raise ValueError(
            f"summary, user_summaries: expected [N] and [U, N] with U >= 1, got {machine.shape} and {users.shape}"
        )
    n_frames = users.shape[1]
    if len(machine) > n_frames + step:
        warnings.warn(
            f"summary: {len(machine)} frames, cut to the {n_frames} of user_summaries; of the same video?", stacklevel=2
        )
    machine = machine[:n_frames]
    n_machine = np.count_nonzero(machine)
    n_users = np.count_nonzero(users, axis=1)
    if n_machine == 0 and not n_users.all():
        warnings.warn("summary and a row of user_summaries are both empty: F-score 0", stacklevel=2)
    n_overlap = np.count_nonzero(users[:, : len(machine)] & machine, axis=1)
    scores: NDArray[np.float64] = 2.0 * n_overlap / np.maximum(n_machine + n_users, 1)
    return scores


def kendall_tau(prediction: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Kendall's tau-b of one score curve against each of several.

    Parameters
    ----------
    prediction : number [n]
        predicted importance, n >= 1
    references : number [U, n]
        importance given by each annotator

    Returns
    -------
    float64 [U]
        tau-b in -1 .. 1; NaN where a side is constant

    Raises
    ------
    ValueError
        on a wrong shape or type, or a value that is not finite

    Notes
    -----
    Consecutive samples with the same pair of values count as one, with a weight; so curves spread to every frame cost
    little more than their steps: O(n) to find the R such runs, R log R for the rest. Pairs are counted in integers.

    >>> kendall_tau([1.0, 2.0, 3.0, 3.0], [[1, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5]]).round(4)
    array([ 0.9129, -0.9129,     nan])
    """
    curve, others = _checked_curves(prediction, references)
    first = _runs(curve, "prediction")
    taus = np.full(len(others), np.nan)
    for user, other in enumerate(others):
        second = _runs(other, "references")
        if first.n_levels > 1 and second.n_levels > 1:
            taus[user] = _tau(first, second, _pair_runs(first.start, first.level, second.start, second.level))
    return taus


def spearman_rho(prediction: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rho of one score curve against each of several; ties share their average rank.

    Parameters
    ----------
    prediction : number [n]
        predicted importance, n >= 1
    references : number [U, n]
        importance given by each annotator

    Returns
    -------
    float64 [U]
        rho in -1 .. 1; NaN where a side is constant

    Raises
    ------
    ValueError
        on a wrong shape or type, or a value that is not finite

    Notes
    -----
    Costs as `kendall_tau`: runs of equal pairs count once, with a weight.

    >>> spearman_rho([1.0, 2.0, 3.0], [[1, 3, 2], [7, 7, 7]])
    array([0.5, nan])
    """
    curve, others = _checked_curves(prediction, references)
    first = _runs(curve, "prediction")
    first_ranks = _centred_ranks(first)
    rhos = np.full(len(others), np.nan)
    for user, other in enumerate(others):
        second = _runs(other, "references")
        if first.n_levels > 1 and second.n_levels > 1:
            pairs = _pair_runs(first.start, first.level, second.start, second.level)
            rhos[user] = _rho(first_ranks, _centred_ranks(second), pairs)
    return rhos


def rank_correlations(predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kendall's tau-b and Spearman's rho of many score curves against each of several.

    Parameters
    ----------
    predictions : number [K, n]
        predicted importance, K, n >= 1
    references : number [U, n]
        importance given by each annotator

    Returns
    -------
    float64 [K, U], [K, U]
        tau-b and rho in -1 .. 1; NaN where a side is constant

    Raises
    ------
    ValueError
        on a wrong shape or type, or a value that is not finite

    Notes
    -----
    The same bits as `kendall_tau` and `spearman_rho`; each curve is brought into runs once.

    >>> taus, rhos = rank_correlations([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], [[1, 3, 2]])
    >>> taus.round(4).tolist(), rhos.round(4).tolist()
    ([[0.3333], [nan]], [[0.5], [nan]])
    """
    curves, others = _numbers(predictions, "predictions"), _numbers(references, "references")
    if curves.ndim != 2 or others.ndim != 2 or curves.shape[1] != others.shape[1] or 0 in (curves.size, others.size):
        raise ValueError(
            "predictions, references: expected [K, n] and [U, n] with K, U, n >= 1, got "
            f"{curves.shape} and {others.shape}"
        )
    seconds = [_runs(other, "references") for other in others]
    seconds_ranks = [_centred_ranks(second) for second in seconds]
    taus, rhos = np.full((2, len(curves), len(others)), np.nan)
    for row, curve in enumerate(curves):
        first = _runs(curve, "predictions")
        first_ranks = _centred_ranks(first)
        for user, second in enumerate(seconds):
            if first.n_levels > 1 and second.n_levels > 1:
                pairs = _pair_runs(first.start, first.level, second.start, second.level)
                taus[row, user] = _tau(first, second, pairs)
                rhos[row, user] = _rho(first_ranks, seconds_ranks[user], pairs)
    return taus, rhos


def _chosen(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = _numbers(values, name)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return array if array.dtype == np.bool_ else array > 0


def _numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    return array


def _checked_curves(prediction: ArrayLike, references: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    curve, others = _numbers(prediction, "prediction"), _numbers(references, "references")
    if curve.ndim != 1 or others.ndim != 2 or others.shape[1:] != curve.shape or others.size == 0:
        raise ValueError(
            f"prediction, references: expected [n] and [U, n] with n, U >= 1, got {curve.shape} and {others.shape}"
        )
    return curve, others


class _Runs(NamedTuple):
    """A curve as runs of equal values."""

    start: NDArray[np.int64]  # [R + 1] first sample of each run, and the number of samples
    level: NDArray[np.int64]  # [R] place of the value among the distinct values
    n_levels: int
    n_samples: NDArray[np.int64]  # at each level


def _runs(curve: NDArray[Any], name: str) -> _Runs:
    start_compiler(__name__)
    changes = np.flatnonzero(curve[1:] != curve[:-1])
    start = np.empty(len(changes) + 2, dtype=np.int64)
    start[0], start[1:-1], start[-1] = 0, changes + 1, len(curve)
    values = curve[start[:-1]]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    distinct, level = np.unique(values, return_inverse=True)
    n_samples = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(n_samples, level, np.diff(start))
    return _Runs(start, level.astype(np.int64), len(distinct), n_samples)


def _untied_pairs(runs: _Runs) -> int:
    n = int(runs.start[-1])
    return (n * (n - 1) - int((runs.n_samples * (runs.n_samples - 1)).sum())) // 2


def _centred_ranks(runs: _Runs) -> tuple[NDArray[np.float64], float]:
    """Twice the average rank of each level less its mean, and the length of that vector over all samples."""
    ranks = (2 * np.cumsum(runs.n_samples) - runs.n_samples - runs.start[-1]).astype(np.float64)
    return ranks, math.sqrt(float((runs.n_samples * ranks**2).sum()))


_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _tau(first: _Runs, second: _Runs, pairs: _Pairs) -> float:
    balance = _concordance(*pairs, first.n_levels, second.n_levels)
    untied = float(_untied_pairs(first)) * float(_untied_pairs(second))
    return min(1.0, max(-1.0, balance / math.sqrt(untied)))


def _rho(first: tuple[NDArray[np.float64], float], second: tuple[NDArray[np.float64], float], pairs: _Pairs) -> float:
    first_level, second_level, weight = pairs
    product = float((weight * first[0][first_level] * second[0][second_level]).sum())
    return min(1.0, max(-1.0, product / (first[1] * second[1])))


@compiled
def _pair_runs(
    first_start: NDArray[np.int64],
    first_level: NDArray[np.int64],
    second_start: NDArray[np.int64],
    second_level: NDArray[np.int64],
) -> _Pairs:
    """The runs of equal pairs of two curves: level in each curve, and length."""
    most = len(first_level) + len(second_level)
    firsts, seconds = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    weights = np.empty(most, dtype=np.int64)
    n_runs, other, at = 0, 0, 0
    for run in range(len(first_level)):
        while at < first_start[run + 1]:
            if second_start[other + 1] == at:
                other += 1
            until = min(first_start[run + 1], second_start[other + 1])
            firsts[n_runs], seconds[n_runs], weights[n_runs] = first_level[run], second_level[other], until - at
            n_runs += 1
            at = until
    return firsts[:n_runs], seconds[:n_runs], weights[:n_runs]


@compiled
def _concordance(
    firsts: NDArray[np.int64], seconds: NDArray[np.int64], weights: NDArray[np.int64], n_firsts: int, n_seconds: int
) -> int:
    """Concordant less discordant pairs of weighted pairs of levels."""
    # In the order of the first level, by counting.
    begin = np.zeros(n_firsts + 1, dtype=np.int64)
    for run in range(len(firsts)):
        begin[firsts[run] + 1] += 1
    begin = np.cumsum(begin)
    place = begin.copy()
    second, weight = np.empty_like(seconds), np.empty_like(weights)
    for run in range(len(firsts)):
        at = place[firsts[run]]
        place[firsts[run]] += 1
        second[at], weight[at] = seconds[run], weights[run]
    # Samples of lower first level: how many at each second level, below it (a binary indexed tree, Fenwick), in all.
    same = np.zeros(n_seconds, dtype=np.int64)
    tree = np.zeros(n_seconds + 1, dtype=np.int64)
    seen = 0
    balance = 0
    for level in range(n_firsts):
        for at in range(begin[level], begin[level + 1]):
            below, node = 0, second[at]
            while node > 0:
                below += tree[node]
                node &= node - 1
            balance += weight[at] * (2 * below + same[second[at]] - seen)
        for at in range(begin[level], begin[level + 1]):
            seen += weight[at]
            same[second[at]] += weight[at]
            node = second[at] + 1
            while node <= n_seconds:
                tree[node] += weight[at]
                node += node & -node
    return balance
