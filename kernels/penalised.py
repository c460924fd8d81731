"""Features -> the segmentation of least ``total scatter + slope * cuts``, for any slope, exactly.

Positions 0 .. T lie before, between and after the T steps; the shot ``[t, l)`` holds the steps t .. l-1. With
``scatter(t, l)`` the sum of squared distances of a shot's rows to their mean, one pass over the positions gives

    value(0) = -slope,    value(l) = slope + min over t < l of  value(t) + scatter(t, l)

and ``value(T)`` is the least total scatter plus ``slope`` times the number of cuts. Two facts make the pass nearly
linear in T, and its arithmetic a sequence of small matrix products:

**Tiles.** Let S_p be the sum of the rows before position p and q_p that of their squared lengths. Then
``scatter(t, l) = q_l - q_t - |S_l - S_t|^2 / (l - t)``, and for all starts t of one block of `TILE` positions and all
ends l of another the inner products in it are one matrix product. S is measured from the first end's block, so that it
stays as small as the shots are, and the rows from a common centre, which changes no scatter.

**Bounds.** Joining two shots never lessens their scatter: ``scatter(t, l) >= scatter(t, a) + scatter(a, l)``. With

    bound(c, a) = min over the starts t of block c of  value(t) + scatter(t, a)

no start in c can be the best for the end l while ``bound(c, a) + scatter(a, l)`` exceeds the best sum found, and the
tile is not computed. The bound is exact after a tile, at no cost; later it is continued by the same inequality, or
renewed from the block's own end by one inner product. A block with ``bound(c, a) > value(a)`` can never win again (the
pruning rule of Killick et al., "Optimal detection of changepoints with a linear computational cost", 2012) and is
forgotten. An endless shot, where that rule keeps everything, costs two tiles per block.

Sums are float64 throughout. Equal sums (within ``tolerance = 1e-12 * T * greatest squared length``, far above rounding,
which also counts as scatter 0) go to the smallest t; so neither the order of tiles nor the number of threads shows.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels.compiled import compiled, compiled_reduction, start_compiler

TILE = 64  # 32 to 128 cost the same within a fifth; 64 was fastest at D = 1024
CENTRE_SAMPLE = 256  # rows whose mean is the centre: any vector is right, a near one keeps sums small

Rows = NDArray[np.float32] | NDArray[np.float64]


class Solution(NamedTuple):
    """The best segmentation at one slope."""

    change_points: NDArray[np.int64]  # ascending, in 1 .. T-1
    scatter: float  # total, without the slope's share
    values: NDArray[np.float64]  # value(l) for l = 0 .. T


class Limits(NamedTuple):
    """What a shot may measure, in steps."""

    shortest: int
    longest: int
    longest_first: int


class Pass:
    """One slope's way through the positions from a block's first on: all that a paused pass needs to go on."""

    def __init__(self, slope: float, n_positions: int, first_block: int = 0) -> None:
        n_blocks = -(-n_positions // TILE)
        self.slope = slope
        self.value = np.full(n_blocks * TILE + 1, np.inf)
        self.value[first_block * TILE] = -slope
        self.back = np.zeros(n_blocks * TILE + 1, dtype=np.int64)
        self.bound = np.empty(n_blocks)
        self.bound_at_end = np.empty(n_blocks)  # the bound at the block's own end, exact
        self.expiry = np.full(n_blocks, np.iinfo(np.int64).max)  # the position from which the block cannot win
        self.alive = np.empty(n_blocks, dtype=np.int64)
        self.cursor = np.array([first_block, 0], dtype=np.int64)  # block of ends to do next; how many blocks are alive

    def change_points(self, end: int) -> NDArray[np.int64]:
        """The cuts on the best path to a position."""
        return path(self.back, end)


def path(back: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """The cuts before a position, where `back` gives the last cut before each."""
    found = []
    at = int(back[end])
    while at > 0:
        found.append(at)
        at = int(back[at])
    return np.array(found[::-1], dtype=np.int64)


def centre(rows: Rows) -> NDArray[np.float64]:
    """The mean of a sample of rows."""
    with np.errstate(all="ignore"):
        mean: NDArray[np.float64] = rows[:: -(-len(rows) // CENTRE_SAMPLE)].mean(axis=0, dtype=np.float64)
    return mean


def tolerance(lengths: NDArray[np.float64], n_steps: int) -> float:
    """Sums of scatter this far apart are equal; above 0 also where all rows are one, or ties would not be seen."""
    return max(1e-12 * n_steps * float(lengths.max()), float(np.finfo(np.float64).tiny))


def check_lengths(lengths: NDArray[np.float64], rows: Rows, first: int = 0) -> None:
    """Refuse rows, the first of which is row `first` of the sequence, with a squared length that is not finite."""
    if np.isfinite(lengths).all():
        return
    for at, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise ValueError(f"features: expected finite values, got NaN or infinity in row {first + at}")
    raise ValueError("features: expected values whose squares are finite, got larger ones; divide them")


class Penalised:
    """The segmentation problem of one sequence, to be solved at many slopes; tiles are computed once and kept.

    Parameters
    ----------
    rows : float32 or float64 [T, D]
        finite; read in blocks and never copied as a whole
    limits : Limits
        what a shot may measure
    n_steps : int
        rows already there, if the rest is still to come; see `extend`
    memory : int
        bytes of tiles to keep; tiles beyond it are computed again at every slope
    n_threads : int
        threads that compute tiles, each for its part of the sequence

    Memory: at most ``memory + 8 * (T * TILE + T * D / TILE + 4 * T + 2 * TILE * D * n_threads)`` bytes beside the rows,
    and ``8 * T`` for each solution that is kept.
    """

    def __init__(
        self, rows: Rows, limits: Limits, *, n_steps: int | None = None, memory: int = 1 << 29, n_threads: int = 1
    ) -> None:
        start_compiler(__name__)
        capacity, width = rows.shape
        n_blocks = -(-capacity // TILE)
        kept = min(n_blocks * (n_blocks + 1) // 2, memory // (8 * TILE * TILE))
        self._rows = rows
        self._limits = limits
        self._n_threads = n_threads
        self._centre = np.zeros(width)
        self._squares = np.zeros(capacity + 1)  # q
        self._block_sums = np.zeros((n_blocks + 1, width))  # S at the first position of every block, and at the last
        # Tiles [end, start]: `_kept` of them stay, the others serve one block of ends and are then used anew.
        self._tiles = np.empty((kept + n_blocks, TILE, TILE))  # the system commits pages as they are written
        self._kept: int = kept
        self._passing = (-1, -1, 0)  # of the others: the block of ends, its first kept tile, how many are in use
        self._placing = threading.Lock()
        # The tiles of one block of ends form a list: first, next, and the block of starts of each.
        self._first = np.full(n_blocks, -1, dtype=np.int64)
        self._next = np.full(kept + n_blocks, -1, dtype=np.int64)
        self._starts = np.zeros(kept + n_blocks, dtype=np.int64)
        self._bench = _Bench(n_blocks, width)
        self.n_steps = 0
        self.n_tiles = 0  # tiles kept
        self.tolerance = 0.0
        self.extend(capacity if n_steps is None else n_steps)

    def extend(self, n_steps: int) -> None:
        """Take in the rows up to `n_steps`; tiles of a block that was not full are forgotten."""
        if n_steps == self.n_steps:
            return
        if self.n_steps == 0:
            self._centre = centre(self._rows[:n_steps])
        old_block = self.n_steps // TILE
        blocks = range(old_block, -(-n_steps // TILE))
        lengths = np.empty(n_steps - old_block * TILE)
        for block in blocks:
            rows = self._block(block * TILE, min(block * TILE + TILE, n_steps))
            at = (block - old_block) * TILE
            _survey(rows, self._centre, lengths[at : at + TILE], self._block_sums[block + 1])
        check_lengths(lengths, self._rows[self.n_steps : n_steps], self.n_steps)
        for block in blocks:
            self._block_sums[block + 1] += self._block_sums[block]
        self._squares[old_block * TILE + 1 : n_steps + 1] = self._squares[old_block * TILE] + np.cumsum(lengths)
        self.tolerance = max(self.tolerance, tolerance(lengths, len(self._rows)))
        self._first[old_block : old_block + 1] = -1
        self._bench.ends = -1
        self._passing = (-1, -1, 0)
        self.n_steps = n_steps

    def solve(self, slope: float) -> Solution:
        """The best segmentation at a slope >= 0."""
        if self.n_tiles == 0 and self._kept > 0:
            self._prepare(slope)
        state = Pass(slope, self.n_steps)
        self.advance(state)
        cuts = state.change_points(self.n_steps)
        scatter = float(state.value[self.n_steps]) - slope * len(cuts)
        return Solution(cuts, scatter, state.value[: self.n_steps + 1])

    def advance(self, state: Pass) -> None:
        """Bring a pass to the last position."""
        self._advance(state, self.n_steps, self._bench)

    def scatter_of_all(self) -> float:
        """The scatter of the sequence as one shot."""
        total = self._block_sums[-(-self.n_steps // TILE)]
        scatter = float(self._squares[self.n_steps] - total @ total / self.n_steps)
        return scatter if scatter > self.tolerance else 0.0

    def scatter_before(self, end: int) -> NDArray[np.float64]:
        """The scatter of ``[t, end)`` for t = 0 .. end-1, without tiles: one sum from the end backwards."""
        scatter = np.empty(end)
        total = np.zeros(len(self._centre))
        for last in range(end, 0, -TILE):
            first = max(0, last - TILE)
            _scatter_backwards(self._block(first, last), self._centre, self._squares, first, end, total, scatter)
        scatter[scatter <= self.tolerance] = 0.0
        return scatter

    def sums_at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sum of the centred rows before each of some ascending positions, and that of their squared lengths.

        The sums have zero rows added up to a multiple of `TILE`.
        """
        sums = np.zeros((-(-len(positions) // TILE) * TILE, len(self._centre)))
        running = np.zeros((TILE + 1, len(self._centre)))
        scratch = np.empty(TILE + 1)
        for first in range(0, self.n_steps, TILE):
            last = min(first + TILE, self.n_steps)
            _running_sums(self._block(first, last), self._centre, running, scratch)
            inside = np.flatnonzero((positions > first) & (positions <= last))
            sums[inside] = running[positions[inside] - first]
            running[0] = running[last - first]
        return sums, self._squares[positions]

    def _prepare(self, slope: float) -> None:
        """Compute, from several threads, most of the tiles that a pass at this slope will need.

        Each thread takes a part of the sequence as if it were a whole. No thread waits for another, and what is in a
        tile does not depend on who asked for it, so that the passes that follow do not know of the threads.
        """
        n_blocks = -(-self.n_steps // TILE)
        n_parts = min(self._n_threads, n_blocks // 8)
        if n_parts < 2:
            return

        def work(part: int) -> None:
            first, last = part * n_blocks // n_parts, (part + 1) * n_blocks // n_parts
            state = Pass(slope, self.n_steps, first)
            self._advance(state, min(last * TILE, self.n_steps), _Bench(n_blocks, len(self._centre)), only_kept=True)

        with ThreadPoolExecutor(n_parts) as threads:
            list(threads.map(work, range(n_parts)))

    def _advance(self, state: Pass, n_steps: int, bench: _Bench, *, only_kept: bool = False) -> None:
        """Bring a pass to a position; the compiled loop pauses whenever it needs a tile."""
        while True:
            missing = _advance(
                n_steps, state.slope, *self._limits, self.tolerance, self._squares, self._block_sums,
                self._tiles, self._first, self._next, self._starts,
                state.value, state.back, state.bound, state.bound_at_end, state.expiry, state.alive, state.cursor,
                bench.tile_of, bench.stage, bench.opened, bench.lows,
            )  # fmt: skip
            if missing < 0:
                return
            ends = int(state.cursor[0])
            slot = self._kept_slot()
            if slot < 0:
                if only_kept:
                    return
                slot = self._passing_slot(ends)
            self._compute_tile(int(missing), ends, slot, bench)

    def _compute_tile(self, starts: int, ends: int, slot: int, bench: _Bench) -> None:
        """Scatter for every start in one block and every end in another, the same or a later one."""
        _compute_tile(
            self._block(starts * TILE, min(starts * TILE + TILE, self.n_steps)),
            self._block(ends * TILE, min(ends * TILE + TILE, self.n_steps)),
            self._centre, self._block_sums, self._squares, self.tolerance, starts, ends, bench.ends == ends,
            bench.start_sums, bench.start_squares, bench.end_sums, bench.end_squares, bench.product, self._tiles[slot],
        )  # fmt: skip
        bench.ends = ends
        self._starts[slot] = starts
        self._next[slot] = self._first[ends]
        self._first[ends] = slot

    def _kept_slot(self) -> int:
        """Where a tile stays; -1 if all such places are taken."""
        with self._placing:
            if self.n_tiles == self._kept:
                return -1
            self.n_tiles += 1
            return self.n_tiles - 1

    def _passing_slot(self, ends: int) -> int:
        """Where a tile stays while its block of ends is done."""
        block, first_kept, used = self._passing
        if block != ends:
            if block >= 0:
                self._first[block] = first_kept
            first_kept, used = int(self._first[ends]), 0
        self._passing = (ends, first_kept, used + 1)
        return self._kept + used

    def _block(self, start: int, end: int) -> Rows:
        """Some rows as the compiled functions want them: C order, writable; copied only where they are not so."""
        return np.require(self._rows[start:end], requirements=["C", "W"])


class _Bench:
    """Working space of one thread: running sums from a block of ends, their products, and the scratch of a pass."""

    def __init__(self, n_blocks: int, width: int) -> None:
        self.ends = -1
        self.end_sums = np.zeros((TILE + 1, width))
        self.end_squares = np.zeros(TILE + 1)
        self.start_sums = np.zeros((TILE + 1, width))
        self.start_squares = np.zeros(TILE + 1)
        self.product = np.empty((TILE, TILE))
        self.tile_of = np.zeros(n_blocks, dtype=np.int64)
        self.stage = np.zeros(n_blocks, dtype=np.int64)
        self.opened = np.zeros(n_blocks, dtype=np.int64)
        self.lows = np.empty(n_blocks)


def inner_products(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """``left @ right.T`` for row counts that are multiples of 4; the same bits on any number of threads."""
    product = np.empty((len(left), len(right)))
    _inner_products(left, right, product, False)
    return product


@compiled_reduction
def _survey(rows: Rows, centre: NDArray[np.float64], lengths: NDArray[np.float64], total: NDArray[np.float64]) -> None:
    """The squared length of every centred row, and the sum of the rows."""
    total[:] = 0.0
    for at in range(len(rows)):
        row = rows[at]
        length = 0.0
        for k in range(len(centre)):
            x = np.float64(row[k]) - centre[k]
            total[k] += x
            length += x * x
        lengths[at] = length


@compiled_reduction
def _running_sums(
    rows: Rows, centre: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """Add the rows up from ``sums[0]``, and give the squared length of every sum."""
    # Loops throughout: in numba an array expression compiles many times as long.
    running = np.empty(len(centre))
    square = 0.0
    for k in range(len(centre)):
        running[k] = sums[0, k]
        square += running[k] * running[k]
    squares[0] = square
    for at in range(len(rows)):
        row = rows[at]
        sum_ = sums[at + 1]
        square = 0.0
        for k in range(len(centre)):
            x = running[k] + (np.float64(row[k]) - centre[k])
            running[k] = x
            sum_[k] = x
            square += x * x
        squares[at + 1] = square


@compiled_reduction
def _scatter_backwards(
    rows: Rows,
    centre: NDArray[np.float64],
    squares: NDArray[np.float64],
    first: int,
    end: int,
    total: NDArray[np.float64],
    scatter: NDArray[np.float64],
) -> None:
    """Scatter of ``[t, end)`` for the starts in one block; `total` sums the rows from behind the block to `end`."""
    for at in range(len(rows) - 1, -1, -1):
        square = 0.0
        for k in range(len(centre)):
            total[k] += np.float64(rows[at, k]) - centre[k]
            square += total[k] * total[k]
        start = first + at
        scatter[start] = squares[end] - squares[start] - square / (end - start)


@compiled_reduction
def _inner_products(
    left: NDArray[np.float64], right: NDArray[np.float64], product: NDArray[np.float64], lower: bool
) -> None:
    """``left @ right.T``, at least its lower triangle, for row counts that are multiples of 4.

    Sixteen sums at a time stay in registers. At TILE x 1024 this ran at 50 GFLOP/s on one core where OpenBLAS gave 36,
    and a library's threads, which wait for each other after every tile, made a busy machine fifty times slower.
    """
    for i in range(0, len(left), 4):
        a0, a1, a2, a3 = left[i], left[i + 1], left[i + 2], left[i + 3]
        for j in range(0, i + 4 if lower else len(right), 4):
            b0, b1, b2, b3 = right[j], right[j + 1], right[j + 2], right[j + 3]
            p00 = p01 = p02 = p03 = p10 = p11 = p12 = p13 = 0.0
            p20 = p21 = p22 = p23 = p30 = p31 = p32 = p33 = 0.0
            for k in range(left.shape[1]):
                x0, x1, x2, x3 = a0[k], a1[k], a2[k], a3[k]
                y0, y1, y2, y3 = b0[k], b1[k], b2[k], b3[k]
                p00 += x0 * y0
                p01 += x0 * y1
                p02 += x0 * y2
                p03 += x0 * y3
                p10 += x1 * y0
                p11 += x1 * y1
                p12 += x1 * y2
                p13 += x1 * y3
                p20 += x2 * y0
                p21 += x2 * y1
                p22 += x2 * y2
                p23 += x2 * y3
                p30 += x3 * y0
                p31 += x3 * y1
                p32 += x3 * y2
                p33 += x3 * y3
            product[i, j], product[i, j + 1], product[i, j + 2], product[i, j + 3] = p00, p01, p02, p03
            product[i + 1, j], product[i + 1, j + 1], product[i + 1, j + 2], product[i + 1, j + 3] = p10, p11, p12, p13
            product[i + 2, j], product[i + 2, j + 1], product[i + 2, j + 2], product[i + 2, j + 3] = p20, p21, p22, p23
            product[i + 3, j], product[i + 3, j + 1], product[i + 3, j + 2], product[i + 3, j + 3] = p30, p31, p32, p33


@compiled
def _compute_tile(
    start_rows: Rows,
    end_rows: Rows,
    centre: NDArray[np.float64],
    block_sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    tolerance: float,
    starts: int,
    ends: int,
    has_end_sums: bool,
    start_sums: NDArray[np.float64],
    start_squares: NDArray[np.float64],
    end_sums: NDArray[np.float64],
    end_squares: NDArray[np.float64],
    product: NDArray[np.float64],
    tile: NDArray[np.float64],
) -> None:
    """Scatter [end, start] for two blocks; 0 where the start is not before the end."""
    n_values = len(centre)
    if not has_end_sums:
        for k in range(n_values):
            end_sums[0, k] = 0.0
        _running_sums(end_rows, centre, end_sums, end_squares)
    if starts == ends:
        # The sum before the first start is 0: the product has no column for it.
        for column in range(TILE + 1):
            start_squares[column] = end_squares[column]
        others = end_sums[1:]
    else:
        for k in range(n_values):
            start_sums[0, k] = block_sums[starts, k] - block_sums[ends, k]
        _running_sums(start_rows, centre, start_sums, start_squares)
        others = start_sums[:TILE]
    _inner_products(end_sums[1:], others, product, starts == ends)
    shift = 1 if starts == ends else 0
    for row in range(len(end_rows)):
        end = ends * TILE + row + 1
        for column in range(TILE):
            start = starts * TILE + column
            if start + 1 < end:
                inner = product[row, column - shift] if column >= shift else 0.0
                square = start_squares[column] + end_squares[row + 1] - 2.0 * inner
                scatter = squares[end] - squares[start] - square / (end - start)
                tile[row, column] = scatter if scatter > tolerance else 0.0
            else:
                tile[row, column] = 0.0


@compiled
def _advance(
    n_steps: int,
    slope: float,
    shortest: int,
    longest: int,
    longest_first: int,
    tolerance: float,
    squares: NDArray[np.float64],
    block_sums: NDArray[np.float64],
    tiles: NDArray[np.float64],
    first_tile: NDArray[np.int64],
    next_tile: NDArray[np.int64],
    tile_starts: NDArray[np.int64],
    value: NDArray[np.float64],
    back: NDArray[np.int64],
    bound: NDArray[np.float64],
    bound_at_end: NDArray[np.float64],
    expiry: NDArray[np.int64],
    alive: NDArray[np.int64],
    cursor: NDArray[np.int64],
    tile_of: NDArray[np.int64],
    stage: NDArray[np.int64],
    opened: NDArray[np.int64],
    lows: NDArray[np.float64],
) -> int:
    """Go on block by block; return the block of starts whose tile is missing, or -1 at the last position.

    `cursor` says which block of ends to do; a block is done as a whole or begun again. Of the scratch, `tile_of` is
    the tile of each block of starts plus 1 (0: none), `stage` 0: bound continued, 1: renewed, 2: open; `opened` the
    open blocks in ascending order, this block last, and `lows` the best sum in each.
    """
    while cursor[0] * TILE < n_steps:
        block = cursor[0]
        before = block * TILE
        height = min(TILE, n_steps - before)
        tile = first_tile[block]
        while tile >= 0:
            tile_of[tile_starts[tile]] = tile + 1
            tile = next_tile[tile]
        missing = block if tile_of[block] == 0 else -1
        n_open = 0
        least = -np.inf
        row = 0
        while missing < 0 and row < height:
            end = before + row + 1
            # Starts low .. high-1 may be used.
            low = max(0, end - longest)
            if low == 0 and end > longest_first:
                low = 1
            high = end - shortest + 1
            opened[n_open] = block
            best = np.inf
            for j in range(n_open + 1):
                at = opened[j]
                lows[j] = _lowest_sum(value, tiles[tile_of[at] - 1, row], at * TILE, low, high)
                best = min(best, lows[j])
            step = tiles[tile_of[block] - 1, row, 0]
            # Open every block that may hold something better; `least` is the least bound of those not open.
            while least < best + 2.0 * tolerance - step:
                at, lowest, least = -1, best + 2.0 * tolerance - step, np.inf
                for j in range(cursor[1]):
                    other = alive[j]
                    if stage[other] < 2:
                        least = min(least, bound[other])
                        if bound[other] < lowest and low - TILE < other * TILE < high:
                            at, lowest = other, bound[other]
                if at < 0:
                    break
                least = -np.inf
                if stage[at] == 0:
                    stage[at] = 1
                    length = before - (at + 1) * TILE
                    if length > 0:
                        square = _squared_distance(block_sums[at + 1], block_sums[block])
                        renewed = bound_at_end[at] + squares[before] - squares[(at + 1) * TILE] - square / length
                        bound[at] = max(bound[at], renewed)
                elif tile_of[at] == 0:
                    missing = at
                    break
                else:
                    stage[at] = 2
                    j = n_open
                    n_open += 1
                    opened[n_open], lows[n_open] = block, lows[j]
                    while j > 0 and opened[j - 1] > at:
                        opened[j], lows[j] = opened[j - 1], lows[j - 1]
                        j -= 1
                    opened[j] = at
                    lows[j] = _lowest_sum(value, tiles[tile_of[at] - 1, row], at * TILE, low, high)
                    best = min(best, lows[j])
            if missing >= 0:
                break
            # The smallest start within the tolerance of the best.
            value[end], back[end] = np.inf, -1
            if best < np.inf:
                j = 0
                while lows[j] > best + tolerance:
                    j += 1
                start = max(low, opened[j] * TILE)
                sums = tiles[tile_of[opened[j]] - 1, row]
                while value[start] + sums[start - opened[j] * TILE] > best + tolerance:
                    start += 1
                value[end], back[end] = value[start] + sums[start - opened[j] * TILE] + slope, start
            row += 1
        if missing < 0 and height == TILE:
            after = before + TILE
            step = tiles[tile_of[block] - 1, TILE - 1, 0]
            alive[cursor[1]] = block
            stage[block] = 2
            n_alive = 0
            for j in range(cursor[1] + 1):
                at = alive[j]
                if stage[at] == 2:
                    bound[at] = _lowest_sum(value, tiles[tile_of[at] - 1, TILE - 1], at * TILE, 0, after)
                else:
                    bound[at] += step
                stage[at] = 0
                if at == block:
                    bound_at_end[at] = bound[at]
                    expiry[at] = min(after - 1 + longest + 1, np.iinfo(np.int64).max)
                if bound[at] > value[after] + 2.0 * tolerance:
                    expiry[at] = min(expiry[at], after + shortest)
                if after + 1 < expiry[at]:
                    alive[n_alive] = at
                    n_alive += 1
            cursor[1] = n_alive
        for j in range(cursor[1]):
            stage[alive[j]] = 0
        tile = first_tile[block]
        while tile >= 0:
            tile_of[tile_starts[tile]] = 0
            tile = next_tile[tile]
        if missing >= 0:
            return missing
        if height < TILE:
            return -1
        cursor[0] += 1
    return -1


@compiled_reduction
def _lowest_sum(value: NDArray[np.float64], scatter: NDArray[np.float64], origin: int, low: int, high: int) -> float:
    """Least ``value(start) + scatter(start)`` of the starts in [low, high) among the `TILE` from `origin` on."""
    lowest = np.inf
    for start in range(max(low, origin), min(high, origin + len(scatter))):
        sum_ = value[start] + scatter[start - origin]
        lowest = sum_ if sum_ < lowest else lowest
    return lowest


@compiled_reduction
def _squared_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    total = 0.0
    for k in range(len(first)):
        total += (second[k] - first[k]) ** 2
    return total
