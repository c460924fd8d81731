"""Features -> change points: kernel temporal segmentation, exact, the number of cuts chosen by a penalty.

A *change point* is the first step of a new shot. Of all numbers of cuts m and all ways to make them, the answer has the
least

    cost = total scatter / T + penalty * m / (2 * T * r) * (ln(T * r / m) + 1)        (second term 0 for m = 0)

where r is the temporal subsampling of the rows. The second term is strictly concave in m, so the best m is a corner of
the lower convex hull of "least total scatter against number of cuts"; and every corner of that hull is the answer to a
linearly penalised problem, which `penalised.py` solves in nearly linear time. What remains is a search over the slope:

1. The slope of the second term at m = 1 gives the first corner that can win.
2. The slope at a corner's own m gives a corner of no greater cost, until it gives itself.
3. No m can win whose second term alone reaches the best cost; the slope there gives the last corner.
4. Between two neighbouring corners the two slopes at which they were found bound the cost of everything between. Where
   that bound is below the best cost, the slope of their chord gives a new corner, or proves that there is none.

Five or six slopes suffice as a rule. Only where the caller's limit on the number of cuts lies inside an edge of the
hull, and the bound leaves room there, the classical table over numbers of cuts is filled, and only for positions that
an answer can use.

A short sequence goes to `dense.py`, until the compiler is started for `penalised.py`.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels import penalised
from vsum_runtime.kernels.compiled import compiled, expect, start_compiler
from vsum_runtime.kernels.dense import Dense, seconds
from vsum_runtime.kernels.penalised import TILE, Limits, Penalised, Rows, Solution, inner_products


def change_points(
    features: ArrayLike,
    *,
    penalty: float = 1.0,
    max_change_points: int | None = None,
    min_steps: int = 1,
    max_steps: int | None = None,
    sampling: float = 1.0,
    short_first_shot: bool = False,
    n_threads: int | None = None,
) -> NDArray[np.int64]:
    """Cut a feature sequence into shots where its content changes.

    Parameters
    ----------
    features : float [T, D]
        one row per step, usually of unit length; finite
    penalty : float
        weight of the penalty on the number of cuts, > 0
    max_change_points : int
        most cuts allowed; None: no limit
    min_steps, max_steps : int
        shortest and longest shot in steps, >= 1; None: no limit
    sampling : float
        temporal subsampling r of the rows, >= 1: makes `penalty` mean the same at any rate
    short_first_shot : bool
        allow the first shot ``max_steps - 1`` steps only, as the field's code does
    n_threads : int
        threads to use; None: one per core that this process may use

    Returns
    -------
    int64 [m]
        first step of each new shot, ascending, each in 1 .. T-1

    Raises
    ------
    ValueError
        on a wrong shape, a value that is not finite, an option out of range, or limits that no segmentation meets

    Notes
    -----
    Exact in float64, whatever the precision of the rows. Equal segmentations (to 1e-12 of T times the greatest squared
    length) go to fewer cuts, then to earlier last cuts; the result does not depend on the number of threads. About
    ``2 * T * 128 * D`` multiplications at video-like input, up to ``T * T * D`` per slope where nothing can be left
    out; memory is bounded beside the features, see `penalised.Penalised`.

    Source: Potapov et al., "Category-specific video summarization", 2014, section 3. Differs from its code, which sums
    in the precision of the Gram matrix (float32 in practice, wrong by whole cuts from T = 3000 on).

    >>> change_points([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 4)
    array([3])
    """
    rows = checked_rows(features)
    n_steps = len(rows)
    limits = _limits(n_steps, min_steps, max_steps, short_first_shot)
    if not (math.isfinite(penalty) and penalty > 0):
        raise ValueError(f"penalty: expected a finite number > 0, got {penalty}")
    if not (math.isfinite(sampling) and sampling >= 1):
        raise ValueError(f"sampling: expected a finite number >= 1, got {sampling}")
    most = n_steps // limits.shortest - 1
    if max_change_points is not None:
        if not 0 <= operator.index(max_change_points) <= most:
            raise ValueError(
                f"max_change_points: expected 0 .. {most} for {n_steps} steps in shots of at least "
                f"{limits.shortest}, got {max_change_points}"
            )
        most = operator.index(max_change_points)
    _check_feasible(n_steps, limits, most + 1)
    if n_threads is None:
        n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_threads < 1:
        raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
    is_dense = max_change_points is None and not expect(penalised.__name__, seconds(*rows.shape))
    problem = Dense(rows, limits) if is_dense else Penalised(rows, limits, n_threads=n_threads)
    return _Search(problem, rows, limits, penalty / (2.0 * sampling), n_steps * sampling, most).best()


def change_points_at_slope(
    features: ArrayLike, slope: float, *, min_steps: int = 1, max_steps: int | None = None
) -> NDArray[np.int64]:
    """Cut where the total scatter falls by more than `slope` per cut: one pass, the number of cuts left open.

    Parameters
    ----------
    features : float [T, D]
        one row per step; finite
    slope : float
        price of a cut in units of scatter, >= 0; see `slope`
    min_steps, max_steps : int
        shortest and longest shot in steps, >= 1; None: no limit

    Returns
    -------
    int64 [m]
        first step of each new shot, ascending: least total scatter + slope * m

    Raises
    ------
    ValueError
        as `change_points`

    >>> change_points_at_slope([[0.0], [0.0], [3.0], [3.0]], slope=8.0)
    array([2])
    """
    rows = checked_rows(features)
    limits = _limits(len(rows), min_steps, max_steps, short_first_shot=False)
    if not (math.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope: expected a finite number >= 0, got {slope}")
    _check_feasible(len(rows), limits, len(rows))
    is_dense = not expect(penalised.__name__, seconds(*rows.shape))
    problem = Dense(rows, limits) if is_dense else Penalised(rows, limits)
    return problem.solve(float(slope)).change_points


def slope(steps_per_cut: float, *, penalty: float = 1.0, sampling: float = 1.0) -> float:
    """The price of a cut at which `change_points_at_slope` gives the answer of `change_points`.

    If `change_points` makes m cuts in T steps, then ``slope(T / m)`` with the same options gives the same cuts.

    >>> round(slope(20.0), 4)
    1.4979
    """
    return penalty / (2.0 * sampling) * math.log(sampling * steps_per_cut)


def checked_rows(features: ArrayLike) -> Rows:
    """Features as float32 or float64 [T, D]; copied only from other types."""
    rows: NDArray[Any] = np.asarray(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"features: expected [T, D] with T >= 1 and D >= 1, got shape {rows.shape}")
    if rows.dtype == np.float16:
        return rows.astype(np.float32)
    if rows.dtype == np.float32:
        return rows.astype(np.float32, copy=False)
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"features: expected real numbers, got {rows.dtype}")
    return rows.astype(np.float64, copy=False)


def _limits(n_steps: int, min_steps: int, max_steps: int | None, short_first_shot: bool) -> Limits:
    shortest = operator.index(min_steps)
    longest = n_steps + 1 if max_steps is None else min(operator.index(max_steps), n_steps + 1)
    if not 1 <= shortest <= n_steps:
        raise ValueError(f"min_steps: expected 1 .. {n_steps}, the number of steps, got {min_steps}")
    if longest < shortest:
        raise ValueError(f"max_steps: expected at least min_steps = {min_steps}, got {max_steps}")
    return Limits(shortest, longest, longest - 1 if short_first_shot else longest)


def _check_feasible(n_steps: int, limits: Limits, most_shots: int) -> None:
    """Refuse limits that no number of shots can meet."""
    fewest = 1 + max(0, -(-(n_steps - limits.longest_first) // limits.longest))
    if fewest > most_shots or fewest * limits.shortest > n_steps or limits.longest_first < limits.shortest:
        raise ValueError(
            f"min_steps, max_steps, max_change_points: no way to cut {n_steps} steps into at most {most_shots} shots "
            f"of {limits.shortest} to {limits.longest} steps (the first at most {limits.longest_first})"
        )


@dataclass
class _Corner:
    """A corner of the hull and the range of slopes at which it was found."""

    solution: Solution
    least_slope: float
    greatest_slope: float


class _Search:
    """The search over the slope for one sequence; costs are in units of scatter, that is, times T."""

    def __init__(
        self, problem: Penalised | Dense, rows: Rows, limits: Limits, rate: float, scale: float, most: int
    ) -> None:
        self._problem = problem
        self._rows = rows
        self._limits = limits
        self._rate = rate  # penalty / (2 r)
        self._scale = scale  # T * r
        self._most = most
        self._corners: dict[int, _Corner] = {}

    def best(self) -> NDArray[np.int64]:
        n_steps = len(self._rows)
        m = self._find(self._slope(1))
        if n_steps <= self._limits.longest_first and 0 not in self._corners:
            whole = Solution(np.empty(0, dtype=np.int64), self._problem.scatter_of_all(), np.empty(0))
            self._corners[0] = _Corner(whole, math.inf, math.inf)
        if min(self._corners) > self._most:
            self._find(1.0 + 2.0 * self._problem.scatter_of_all())  # dearer than any gain: the fewest cuts
        while 0 < m <= self._most:
            last, m = m, self._find(self._slope(m))
            if m == last:
                break
        self._find(self._slope(self._last_that_can_win()))
        open_edge = self._refine()
        if open_edge is not None:
            return self._best_within_limit(*open_edge)
        return self._corners[self._winner()].solution.change_points

    def _slope(self, m: float) -> float:
        return self._rate * math.log(self._scale / m)

    def _term(self, m: float) -> float:
        return m * (self._slope(m) + self._rate) if m else 0.0

    def _find(self, slope: float) -> int:
        """Solve at a slope; the number of cuts."""
        solution = self._problem.solve(slope)
        m = len(solution.change_points)
        known = self._corners.get(m)
        if known is None:
            self._corners[m] = _Corner(solution, slope, slope)
        else:
            known.least_slope = min(known.least_slope, slope)
            known.greatest_slope = max(known.greatest_slope, slope)
        return m

    def _cost(self, m: int) -> float:
        return self._corners[m].solution.scatter + self._term(m)

    def _winner(self) -> int:
        """The fewest cuts of least cost."""
        allowed = [m for m in self._corners if m <= self._most]
        least = min(self._cost(m) for m in allowed)
        return min(m for m in allowed if self._cost(m) <= least + self._problem.tolerance)

    def _last_that_can_win(self) -> int:
        """The greatest m >= 1 within the limit whose term alone does not reach the best cost; terms grow with m."""
        best = min(self._cost(m) for m in self._corners)
        low, high = 1, max(1, self._most)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._term(middle) < best else (low, middle - 1)
        return low

    def _refine(self) -> tuple[int, int] | None:
        """Find every corner that can win; return the edge across the limit if something inside it can."""
        edges = list(itertools.pairwise(sorted(self._corners)))[::-1]
        while edges:
            left, right = edges.pop()
            if left >= self._most or self._bound(left, right) >= self._cost(self._winner()) - self._problem.tolerance:
                continue
            above, below = self._corners[left].solution.scatter, self._corners[right].solution.scatter
            slope = (above - below) / (right - left)
            m = self._find(slope)
            new = self._corners[m].solution
            if left < m < right and new.scatter + slope * (m - left) < above - self._problem.tolerance:
                edges += [(m, right), (left, m)]
            elif right > self._most:
                return left, right
        return None

    def _bound(self, left: int, right: int) -> float:
        """Nothing strictly between two corners and within the limit costs less.

        The objective lies above the line through each corner with the slope at which it was found; the term is
        concave, so the sum is least at an end or where the lines meet.
        """
        a, b = self._corners[left], self._corners[right]
        first, last = left + 1, min(right - 1, self._most)
        if first > last:
            return math.inf

        def height(m: float) -> float:
            from_left = a.solution.scatter - a.least_slope * (m - left)
            return max(from_left, b.solution.scatter + b.greatest_slope * (right - m)) + self._term(m)

        points = [float(first), float(last)]
        if a.least_slope > b.greatest_slope and math.isfinite(a.least_slope):
            rise = b.solution.scatter + b.greatest_slope * (right - left) - a.solution.scatter
            points.append(min(max(left - rise / (a.least_slope - b.greatest_slope), first), last))
        return min(height(m) for m in points)

    def _best_within_limit(self, left: int, right: int) -> NDArray[np.int64]:
        """The best of 0 .. most cuts where the limit lies inside the edge between two corners.

        With the edge's slope, value(t) forwards plus value(t) backwards bounds every segmentation that cuts at t; the
        table is filled for the positions whose bound leaves room below the best corner.
        """
        assert isinstance(self._problem, Penalised)  # `Dense` is for sequences whose cuts are not limited
        start_compiler(__name__)
        n_steps, tolerance = len(self._rows), self._problem.tolerance
        above, below = self._corners[left].solution.scatter, self._corners[right].solution.scatter
        slope = (above - below) / (right - left)
        forwards = self._problem.solve(slope).values
        backwards = Penalised(self._rows[::-1], self._limits._replace(longest_first=self._limits.longest)).solve(slope)
        best = self._cost(self._winner())
        room = max(best - self._term(m) + slope * m for m in (left + 1, self._most))
        may_cut = forwards + backwards.values[::-1] + slope <= room + 4.0 * tolerance
        may_cut[0] = may_cut[n_steps] = True
        positions = np.flatnonzero(may_cut)
        sums, squares = self._problem.sums_at(positions)
        n_cuts = min(self._most, len(positions) - 2)
        least = np.full((n_cuts + 1, len(positions)), np.inf)
        back = np.zeros((n_cuts + 1, len(positions)), dtype=np.int32)
        lengths = np.einsum("pd,pd->p", sums, sums)
        for first in range(0, len(sums), TILE):
            products = inner_products(sums[first : first + TILE], sums[: first + TILE])
            _fill_table(first, products, lengths, squares, positions, *self._limits, tolerance, least, back)
        costs = [least[m, -1] + self._term(m) for m in range(n_cuts + 1)]
        m = next(m for m in range(n_cuts + 1) if costs[m] <= min(costs) + tolerance)
        found = np.empty(m, dtype=np.int64)
        at = len(positions) - 1
        for k in range(m, 0, -1):
            at = back[k, at]
            found[k - 1] = positions[at]
        return found


@compiled
def _fill_table(
    first: int,
    products: NDArray[np.float64],
    lengths: NDArray[np.float64],
    squares: NDArray[np.float64],
    positions: NDArray[np.int64],
    shortest: int,
    longest: int,
    longest_first: int,
    tolerance: float,
    least: NDArray[np.float64],
    back: NDArray[np.int32],
) -> None:
    """Columns `first`, ... of the table: the least scatter of k cuts before each position, ties to the first cut."""
    scatter = np.empty(len(positions))
    for row in range(min(len(products), len(positions) - first)):
        end = first + row
        low = 0
        while positions[end] - positions[low] > longest:
            low += 1
        high = end
        while high > 0 and positions[end] - positions[high - 1] < shortest:
            high -= 1
        for start in range(low, high):
            square = lengths[start] + lengths[end] - 2.0 * products[row, start]
            length = positions[end] - positions[start]
            scatter[start] = max(0.0, squares[end] - squares[start] - square / length)
            if scatter[start] <= tolerance:
                scatter[start] = 0.0
        if low == 0 < high and positions[end] <= longest_first:
            least[0, end] = scatter[0]
        for k in range(1, len(least)):
            best = np.inf
            for start in range(low, high):
                best = min(best, least[k - 1, start] + scatter[start])
            if best < np.inf:
                start = low
                while least[k - 1, start] + scatter[start] > best + tolerance:
                    start += 1
                least[k, end], back[k, end] = least[k - 1, start] + scatter[start], start
