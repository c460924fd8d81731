"""F-score, Kendall's tau-b and Spearman's rho by their definitions: sets, all pairs, ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def f_score(machine: NDArray[Any], user: NDArray[Any]) -> float:
    ours, theirs = set(np.flatnonzero(machine)), set(np.flatnonzero(user))
    overlap = len(ours & theirs)
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(ours), overlap / len(theirs)
    return 2 * precision * recall / (precision + recall)


def kendall_tau(first: NDArray[Any], second: NDArray[Any]) -> float:
    a = np.sign(np.subtract.outer(first, first))
    b = np.sign(np.subtract.outer(second, second))
    if not (a.any() and b.any()):
        return float("nan")
    return (a * b).sum() / np.sqrt((a * a).sum()) / np.sqrt((b * b).sum())


def average_ranks(values: Any) -> NDArray[np.float64]:
    values = np.asarray(values)
    return np.array([(values < v).sum() + 0.5 * ((values == v).sum() + 1) for v in values])


def spearman_rho(first: NDArray[Any], second: NDArray[Any]) -> float:
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    if not (a.any() and b.any()):
        return float("nan")
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
