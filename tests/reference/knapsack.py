"""The 0/1 knapsack as the field writes it: a full table in order, an item taken only if strictly better."""

from __future__ import annotations

import itertools
from typing import Any


def pack(values: Any, lengths: Any, capacity: int) -> list[int]:
    table = [[0.0] * (capacity + 1)]
    for value, length in zip(values, lengths, strict=True):
        above = table[-1]
        taken = [above[w - length] + value if length <= w else 0.0 for w in range(capacity + 1)]
        table.append([max(pair) for pair in zip(above, taken, strict=True)])
    chosen, room = [], capacity
    for item in range(len(values), 0, -1):
        if table[item][room] != table[item - 1][room]:
            chosen.append(item - 1)
            room -= lengths[item - 1]
    return chosen[::-1]


def brute_force(values: Any, lengths: Any, capacity: int) -> float:
    """The greatest total value over all subsets that fit."""
    items = range(len(values))
    subsets = (subset for size in range(len(values) + 1) for subset in itertools.combinations(items, size))
    return max(sum(values[i] for i in subset) for subset in subsets if sum(lengths[i] for i in subset) <= capacity)
