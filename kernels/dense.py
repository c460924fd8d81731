"""The problem of `penalised.py` from a table of all scatters, by NumPy alone: how a fresh process cuts short input.

``T * T * D / 2`` multiplications and ``8 * T * T`` bytes, in less time than it takes to import numba and to load its
code; `seconds` says for which input. Scatter, tolerance and ties are those of `penalised.py`, and so are the cuts.
"""

from __future__ import annotations

import numpy as np

from vsum_runtime.kernels.penalised import TILE, Limits, Rows, Solution, centre, check_lengths, path, tolerance

PIECE = 64
"""Values of a row in one matrix product: TILE x TILE x PIECE is so little that OpenBLAS does it on the calling thread.

On all threads, which wait for each other, the same products took up to ninety times as much processor time.
"""


def seconds(n_steps: int, size: int) -> float:
    """How long the table and six slopes take, about."""
    return 4e-5 * n_steps + 7e-11 * n_steps * n_steps * size


class Dense:
    """The segmentation problem of one short sequence, to be solved at many slopes.

    Parameters
    ----------
    rows : float32 or float64 [T, D]
        finite
    limits : Limits
        what a shot may measure
    """

    def __init__(self, rows: Rows, limits: Limits) -> None:
        n_steps = len(rows)
        self._limits = limits
        with np.errstate(all="ignore"):
            centred = rows - centre(rows)
            lengths = np.einsum("td,td->t", centred, centred)
        check_lengths(lengths, rows)
        self.tolerance = tolerance(lengths, n_steps)
        squares = np.append(0.0, np.cumsum(lengths))
        n_blocks, n_pieces = -(-n_steps // TILE), -(-centred.shape[1] // PIECE)
        sums = np.zeros((n_blocks * TILE + 1, n_pieces * PIECE))
        np.cumsum(centred, axis=0, out=sums[1 : n_steps + 1, : centred.shape[1]])
        self._scatter = np.zeros((n_steps + 1, n_steps + 1))  # [end, start]; what has start >= end is never read
        for first in range(0, n_steps, TILE):
            last = min(first + TILE, n_steps)
            near = sums[: first + TILE + 1] - sums[first]  # measured from here, they stay as small as the shots are
            square_of = np.einsum("pd,pd->p", near, near)
            ends = near[first + 1 :].reshape(TILE, n_pieces, PIECE).transpose(1, 0, 2)
            starts = near[:-1].reshape(-1, TILE, n_pieces, PIECE).transpose(2, 0, 3, 1)
            products = (ends[:, None] @ starts).sum(axis=0).transpose(1, 0, 2).reshape(TILE, -1)
            square = square_of[first + 1 : last + 1, None] + square_of[:last] - 2.0 * products[: last - first, :last]
            square /= np.maximum(1, np.arange(first + 1, last + 1)[:, None] - np.arange(last))
            self._scatter[first + 1 : last + 1, :last] = squares[first + 1 : last + 1, None] - squares[:last] - square
        self._scatter[self._scatter <= self.tolerance] = 0.0

    def solve(self, slope: float) -> Solution:
        """The best segmentation at a slope >= 0."""
        n_steps = len(self._scatter) - 1
        value = np.full(n_steps + 1, np.inf)
        value[0] = -slope
        back = np.full(n_steps + 1, -1)
        for end in range(self._limits.shortest, n_steps + 1):
            low, high = max(0, end - self._limits.longest), end - self._limits.shortest + 1
            if end > self._limits.longest_first:
                low = max(low, 1)
            if low == high:
                continue
            sums = value[low:high] + self._scatter[end, low:high]
            best = sums.min()
            if best < np.inf:
                at = (sums <= best + self.tolerance).argmax()  # the smallest start within the tolerance of the best
                value[end], back[end] = sums[at] + slope, low + at
        cuts = path(back, n_steps)
        return Solution(cuts, float(value[n_steps]) - slope * len(cuts), value)

    def scatter_of_all(self) -> float:
        """The scatter of the sequence as one shot."""
        return float(self._scatter[-1, 0])
