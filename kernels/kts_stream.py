"""Features that keep arriving -> change points as soon as they are certain: segmentation of an endless video.

The offline search needs the whole sequence to choose the number of cuts. A stream instead fixes the price of a cut, by
the mean number of steps per cut that is expected (`kts.slope`), and follows the same pass as `penalised.py`. A cut is
*certain* once every start that any future best path can use has that cut on its own best path; from then on the past
is settled, and only the rows after it are kept.

**When it equals the offline answer.** While `n_forced` is 0, the cuts returned so far and those of `finish` together
are the cuts of ``kts.change_points_at_slope`` on the whole sequence with the same slope and the same shortest and
longest shot, and therefore those of ``kts.change_points`` if that makes one cut per `steps_per_cut` steps. (Exact ties
are decided within tolerances that depend on the rows in memory, so repeated rows may be cut at another of several
equally good places.) If `max_delay` steps pass without a certain cut, the first cut of the best path is taken as
certain and `n_forced` counts it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels.compiled import compiled, start_compiler
from vsum_runtime.kernels.kts import checked_rows, slope
from vsum_runtime.kernels.penalised import TILE, Limits, Pass, Penalised, Rows

CHECK_STEPS = 8  # new steps between two looks for certain cuts: a look reads all pending rows once


class Stream:
    """Cut a feature sequence into shots while it arrives, in bounded memory and with bounded delay.

    Parameters
    ----------
    steps_per_cut : float
        expected mean length of a shot, in steps, > 1 / sampling
    max_steps : int
        longest shot in steps
    min_steps : int
        shortest shot in steps, 1 .. max_steps
    max_delay : int
        most steps pending, >= max_steps; None: ``2 * max_steps``
    penalty, sampling : float
        as in `kts.change_points`

    Attributes
    ----------
    n_steps : int
        steps seen
    n_pending : int
        steps after the last cut returned
    n_forced : int
        cuts taken because `max_delay` was reached

    Notes
    -----
    Memory: ``max_delay + 64`` rows and, per row, 0.5 kB of scatter. A cut is returned at the latest when `max_delay`
    steps have followed the cut before it.

    >>> stream = Stream(steps_per_cut=20, max_steps=50)
    >>> rows = [[0.0, 1.0]] * 20 + [[1.0, 0.0]] * 20
    >>> stream.push(rows).tolist(), stream.finish().tolist()
    ([20], [])
    """

    def __init__(
        self,
        *,
        steps_per_cut: float,
        max_steps: int,
        min_steps: int = 1,
        max_delay: int | None = None,
        penalty: float = 1.0,
        sampling: float = 1.0,
    ) -> None:
        if not (math.isfinite(penalty) and penalty > 0):
            raise ValueError(f"penalty: expected a finite number > 0, got {penalty}")
        if not (math.isfinite(sampling) and sampling >= 1):
            raise ValueError(f"sampling: expected a finite number >= 1, got {sampling}")
        if not (math.isfinite(steps_per_cut) and steps_per_cut * sampling > 1):
            raise ValueError(f"steps_per_cut: expected a finite number > 1 / sampling, got {steps_per_cut}")
        if not 1 <= min_steps <= max_steps:
            raise ValueError(
                f"min_steps, max_steps: expected 1 <= min_steps <= max_steps, got {min_steps} and {max_steps}"
            )
        delay = 2 * max_steps if max_delay is None else max_delay
        if delay < max_steps:
            raise ValueError(f"max_delay: expected at least max_steps = {max_steps}, got {max_delay}")
        start_compiler(__name__)
        self._slope = slope(steps_per_cut, penalty=penalty, sampling=sampling)
        self._limits = Limits(int(min_steps), int(max_steps), int(max_steps))
        self._max_delay = int(delay)
        self._rows: Rows = np.empty((0, 0), dtype=np.float32)
        self._base = 0  # the last cut returned: step 0 of the problem in memory
        self.n_steps = 0
        self.n_forced = 0

    @property
    def n_pending(self) -> int:
        return self.n_steps - self._base

    def push(self, features: ArrayLike) -> NDArray[np.int64]:
        """Take the next rows; return the cuts that became certain.

        Parameters
        ----------
        features : float [n, D]
            the next rows, n >= 0; finite; always of one size and type

        Returns
        -------
        int64 [k]
            first steps of new shots, ascending, counted from the start of the stream

        Raises
        ------
        ValueError
            on a wrong shape, type or value; the stream is as before
        """
        new = np.asarray(features)
        if new.ndim == 2 and len(new) == 0:
            return np.empty(0, dtype=np.int64)
        new = checked_rows(new)
        if not np.isfinite(new).all():
            raise ValueError("features: expected finite values, got NaN or infinity")
        if self.n_steps == 0:
            self._rows = np.empty((self._max_delay + TILE, new.shape[1]), dtype=new.dtype)
            self._begin(0)
        if new.shape[1] != self._rows.shape[1] or new.dtype != self._rows.dtype:
            raise ValueError(
                f"features: expected [n, {self._rows.shape[1]}] {self._rows.dtype} as before, "
                f"got {new.shape} {new.dtype}"
            )
        found = [np.empty(0, dtype=np.int64)]
        while len(new):
            pending = self.n_pending
            part = new[: len(self._rows) - pending]
            new = new[len(part) :]
            self._rows[pending : pending + len(part)] = part
            self.n_steps += len(part)
            self._unchecked += len(part)
            self._problem.extend(self.n_pending)
            self._problem.advance(self._pass)
            while self._unchecked >= CHECK_STEPS or self.n_pending >= self._max_delay:
                cuts = self._certain_cuts()
                if len(cuts) == 0 and self.n_pending >= self._max_delay:
                    reached = int(np.flatnonzero(np.isfinite(self._pass.value[: self.n_pending + 1]))[-1])
                    cuts = np.append(self._pass.change_points(reached), reached)[:1]
                    self.n_forced += 1
                if len(cuts) == 0:
                    break
                found.append(cuts + self._base)
                self._begin(int(cuts[-1]))
        return np.concatenate(found)

    def finish(self) -> NDArray[np.int64]:
        """The cuts still pending if the stream ends here; the stream is then as new."""
        cuts = np.empty(0, dtype=np.int64)
        if self.n_pending:
            cuts = self._pass.change_points(self.n_pending) + self._base
        self.n_steps = self._base = self.n_forced = 0
        return cuts

    def _begin(self, cut: int) -> None:
        """Forget the rows before a cut and begin again after it."""
        rest = self.n_pending - cut
        self._rows[:rest] = self._rows[cut : cut + rest].copy()
        self._base += cut
        self._problem = Penalised(self._rows, self._limits, n_steps=rest, memory=0)
        self._pass = Pass(self._slope, len(self._rows))
        self._dead = np.zeros(len(self._rows) + 1, dtype=np.bool_)
        self._unchecked = rest
        if rest:
            self._problem.advance(self._pass)

    def _certain_cuts(self) -> NDArray[np.int64]:
        """The cuts that the best paths to all starts still in play have in common."""
        self._unchecked = 0
        end, value = self.n_pending, self._pass.value
        # Every later end can be cut at `rival`; a start that does worse than that cut is out of play.
        rival = end + 1 - self._limits.shortest
        if rival > 0:
            scatter = self._problem.scatter_before(rival)
            beaten = value[:rival] + scatter > value[rival] + 2.0 * self._problem.tolerance
            self._dead[:rival] |= beaten
        self._dead[: max(0, end + 1 - self._limits.longest)] = True
        in_play = ~self._dead[: end + 1] & np.isfinite(value[: end + 1])
        at = int(_common_ancestor(self._pass.back, in_play))
        return np.append(self._pass.change_points(at), at) if at > 0 else np.empty(0, dtype=np.int64)


@compiled
def _common_ancestor(back: NDArray[np.int64], marked: NDArray[np.bool_]) -> int:
    """The last position on all paths that lead back from the marked ones; parents come before their children."""
    n_marked = marked.sum()
    at = len(marked) - 1
    while n_marked > 1:
        if marked[at]:
            marked[at] = False
            if marked[back[at]]:
                n_marked -= 1
            else:
                marked[back[at]] = True
        at -= 1
    while not marked[at]:
        at -= 1
    return at
