"""Values, lengths, capacity -> chosen indices: the exact 0/1 knapsack of a summary's length budget."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray


def pack(values: ArrayLike, lengths: ArrayLike, capacity: int) -> NDArray[np.int64]:
    """Choose the shots of greatest total value within a length budget.

    Parameters
    ----------
    values : float64 [S]      worth of each shot; shots worth 0 or less are never chosen
    lengths : int64 [S]       frames in each shot, > 0
    capacity : int            frames the summary may hold, >= 0

    Returns
    -------
    int64 [K]                 chosen shots, ascending; among sets of equal value the one that leaves out the last shot
                              it can, then the last but one, ... (the table filled in order, a shot taken only if
                              strictly better, read from the last shot backwards)

    Raises
    ------
    ValueError                on a shape, sign or length mismatch or a non-finite value

    >>> pack([4.0, 3.0, 2.0], [3, 2, 2], capacity=4)
    array([1, 2])
    """
    value = np.asarray(values, dtype=np.float64)
    length = np.asarray(lengths)
    if value.ndim != 1 or length.shape != value.shape:
        raise ValueError(f"values, lengths: expected two vectors of one length, got {value.shape} and {length.shape}")
    if length.size and length.dtype.kind not in "iu":
        raise ValueError(f"lengths: expected integers, got {length.dtype}")
    length = length.astype(np.int64)
    if not np.isfinite(value).all():
        raise ValueError("values: expected finite numbers, got NaN or infinity")
    if (length <= 0).any():
        raise ValueError(f"lengths: expected at least 1 frame per shot, got {length.min()}")
    if not 0 <= capacity <= np.iinfo(np.int64).max:
        raise ValueError(f"capacity: expected 0 <= capacity < 2**63, got {capacity}")
    chosen = np.flatnonzero((value > 0) & (length <= capacity))
    total = sum(length[chosen].tolist())
    if total > capacity:
        chosen = chosen[_table(value[chosen], length[chosen], int(capacity))]
    return chosen


@njit(cache=True)
def _table(values, lengths, capacity):
    """One row of best values over capacity; one take-bit per cell."""
    take = np.zeros((len(values), capacity // 8 + 1), dtype=np.uint8)
    row = np.zeros(capacity + 1)
    for item in range(len(values)):
        value, length = values[item], lengths[item]
        for room in range(capacity, length - 1, -1):
            better = row[room - length] + value
            if better > row[room]:
                row[room] = better
                take[item, room >> 3] |= np.uint8(1 << (room & 7))
    chosen = np.zeros(len(values), dtype=np.bool_)
    room = capacity
    for item in range(len(values) - 1, -1, -1):
        if take[item, room >> 3] >> (room & 7) & 1:
            chosen[item] = True
            room -= lengths[item]
    return chosen
