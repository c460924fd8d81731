"""F-score, Kendall's tau-b and Spearman's rho by their definitions: sets, all pairs, ranks."""

import numpy as np


def f_score(machine, user):
    machine, user = set(np.flatnonzero(machine)), set(np.flatnonzero(user))
    overlap = len(machine & user)
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(machine), overlap / len(user)
    return 2 * precision * recall / (precision + recall)


def kendall_tau(first, second):
    a = np.sign(np.subtract.outer(first, first))
    b = np.sign(np.subtract.outer(second, second))
    if not (a.any() and b.any()):
        return float("nan")
    return (a * b).sum() / np.sqrt((a * a).sum()) / np.sqrt((b * b).sum())


def average_ranks(values):
    values = np.asarray(values)
    return np.array([(values < v).sum() + 0.5 * ((values == v).sum() + 1) for v in values])


def spearman_rho(first, second):
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    if not (a.any() and b.any()):
        return float("nan")
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
