"""Values, lengths, capacity -> chosen indices: the exact 0/1 knapsack of a summary's length budget.

1. *Drop* what is worth nothing or too long alone; if the rest fits, take it all.
2. *Fix*: fill the budget in falling order of value per frame. Where even a fractional filling that takes an item's
   other side stays below the whole filling found so far, every best choice agrees on that item. Mostly a few dozen
   items are left.
3. *Table*: the best value for every capacity, one row of capacities updated item by item, one bit per item and
   capacity to say whether it was taken, read backwards at the end. Capacities are counted in the greatest common
   divisor of all lengths but the last, which is decided after the table: shots cut at every 15th frame have lengths
   divisible by 15 but for the last one.

Values become 64-bit integers by one power of two, so that sums are exact in every order and equal means equal.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels.compiled import compiled, expect

MAX_TABLE_BYTES = 1 << 31


def pack(values: ArrayLike, lengths: ArrayLike, capacity: int) -> NDArray[np.int64]:
    """Choose the shots of greatest total value within a length budget.

    Parameters
    ----------
    values : float64 [S]
        worth of each shot; shots worth 0 or less are never chosen
    lengths : int64 [S]
        frames in each shot, > 0
    capacity : int
        frames the summary may hold, >= 0

    Returns
    -------
    int64 [K]
        chosen shots, ascending; on equal totals the choice that does without the last shot, then without the last but
        one, and so on

    Raises
    ------
    ValueError
        on a wrong shape, sign or type, a value that is not finite, or a problem whose table would exceed
        `MAX_TABLE_BYTES`

    Notes
    -----
    The tie rule is that of the table the field's tools fill: a shot is taken only if that is strictly better, reading
    from the last shot to the first. Values count to ``2**-60`` of S times the greatest one, finer than float64 sums.
    Time and memory: S log S, and items * capacity / step cells, one bit each, for what reduction leaves.

    >>> pack([4.0, 3.0, 2.0], [3, 2, 2], capacity=4)
    array([1, 2])
    """
    value = np.array(values, dtype=np.float64, order="C")
    length = np.asarray(lengths)
    if value.ndim != 1 or length.shape != value.shape:
        raise ValueError(f"values, lengths: expected two vectors of one length, got {value.shape} and {length.shape}")
    if length.dtype.kind not in "iu" and length.size:
        raise ValueError(f"lengths: expected integers, got {length.dtype}")
    try:
        room = operator.index(capacity)
    except TypeError:
        raise ValueError(f"capacity: expected an integer, got {capacity!r}") from None
    if not 0 <= room < 2**63:
        raise ValueError(f"capacity: expected 0 <= capacity < 2**63, got {capacity}")
    chosen = np.zeros(len(value), dtype=np.bool_)
    expect(__name__, len(value) * (2e-5 + 3e-9 * room))
    problem = _pack(value, length.astype(np.int64), room, chosen)
    if problem == _NOT_FINITE:
        raise ValueError(f"values: expected finite numbers, got {value[~np.isfinite(value)][0]}")
    if problem == _NOT_POSITIVE:
        bad = length[length.astype(np.int64) <= 0][0]
        raise ValueError(f"lengths: expected at least 1 frame per shot and below 2**63, got {bad}")
    if problem == _TOO_LARGE:
        raise ValueError(f"capacity: {capacity} needs a table of over {MAX_TABLE_BYTES} bytes; use a coarser unit")
    return chosen.nonzero()[0]


_DONE, _NOT_FINITE, _NOT_POSITIVE, _TOO_LARGE = range(4)


@compiled
def _pack(values: NDArray[np.float64], lengths: NDArray[np.int64], capacity: int, chosen: NDArray[np.bool_]) -> int:
    greatest = 0.0
    for item in range(len(values)):
        if not math.isfinite(values[item]):
            return _NOT_FINITE
        if lengths[item] <= 0:
            return _NOT_POSITIVE
        greatest = max(greatest, values[item])
    shift = 60 - math.frexp(greatest)[1] - math.frexp(float(len(values)))[1]
    worth = np.empty(len(values), dtype=np.int64)
    items = np.empty(len(values), dtype=np.int64)
    n_items = 0
    room = capacity
    all_fit = True
    for item in range(len(values)):
        if values[item] > 0.0 and lengths[item] <= capacity:
            worth[item] = np.int64(np.rint(math.ldexp(values[item], shift)))
            items[n_items] = item
            n_items += 1
            all_fit = all_fit and lengths[item] <= room
            room -= min(room, lengths[item])
            chosen[item] = True
    if all_fit:
        return _DONE
    for item in range(len(values)):
        chosen[item] = False
    items, room = _fix(worth, lengths, items[:n_items], capacity, chosen)
    return _fill(worth, lengths, items, room, chosen)


@compiled
def _fix(
    worth: NDArray[np.int64],
    lengths: NDArray[np.int64],
    items: NDArray[np.int64],
    capacity: int,
    chosen: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], int]:
    """Decide the items on which all best choices agree; return those left, ascending, and the capacity for them."""
    order = items[np.argsort(-(worth[items] / lengths[items]))]
    n_items = len(order)
    # Unsigned: a capacity and a length, both below 2**63, can be added; a sum that would overflow fits nowhere.
    length_before = np.zeros(n_items + 1, dtype=np.uint64)
    worth_before = np.zeros(n_items + 1, dtype=np.int64)
    n_whole = 0  # items that fit whole, in order, before one does not
    for at in range(n_items):
        length = min(np.uint64(lengths[order[at]]), np.uint64(2**64 - 1) - length_before[at])
        length_before[at + 1] = length_before[at] + length
        worth_before[at + 1] = worth_before[at] + worth[order[at]]
        if length_before[at + 1] <= np.uint64(capacity):
            n_whole = at + 1
    found, left = worth_before[n_whole], np.uint64(capacity) - length_before[n_whole]
    for at in range(n_whole, n_items):
        length = np.uint64(lengths[order[at]])
        if length <= left:
            found += worth[order[at]]
            left -= length
    # The best that each item's other side could reach; cut down to whole items it is a choice, too.
    most = np.empty(n_items, dtype=np.int64)
    for at in range(n_items):
        item = order[at]
        if at < n_whole:
            left = np.uint64(capacity) + np.uint64(lengths[item])
            most[at] = -worth[item]
        else:
            left = np.uint64(capacity - lengths[item])
            most[at] = worth[item]
        whole = np.searchsorted(length_before, left, side="right") - 1
        most[at] += worth_before[whole]
        found = max(found, most[at])
        if whole < n_items:
            part = float(left - length_before[whole]) / float(lengths[order[whole]])
            # Rounded up, beyond what float64 may have lost.
            most[at] += min(worth[order[whole]], np.int64(part * worth[order[whole]] * (1.0 + 1e-12)) + 1)
    is_open = np.zeros(len(worth), dtype=np.bool_)
    room = capacity
    for at in range(n_items):
        if most[at] >= found:
            is_open[order[at]] = True
        elif at < n_whole:
            chosen[order[at]] = True
            room -= lengths[order[at]]
    return items[is_open[items]], room


@compiled
def _fill(
    worth: NDArray[np.int64],
    lengths: NDArray[np.int64],
    items: NDArray[np.int64],
    capacity: int,
    chosen: NDArray[np.bool_],
) -> int:
    """Choose among the items that are left, by the table."""
    n_items = 0
    for item in items:
        if lengths[item] <= capacity:
            items[n_items] = item
            n_items += 1
    if n_items == 0:
        return _DONE
    last = items[n_items - 1]
    step = np.int64(0)
    for at in range(n_items - 1):
        other = lengths[items[at]]
        while other > 0:
            step, other = other, step % other
    step = max(step, np.int64(1))
    top = capacity // step
    top_with_last = (capacity - lengths[last]) // step
    total = np.int64(0)
    for at in range(n_items - 1):
        total += min(lengths[items[at]] // step, top - total)
    top, top_with_last = min(top, total), min(top_with_last, total)
    if (n_items - 1) * (top // 8 + 1) > MAX_TABLE_BYTES:
        return _TOO_LARGE
    # Cells are padded to whole words of 64 flags; `taken` holds a word's flags as one byte each, then bits.
    width = (top // 64 + 1) * 64
    bits = np.empty((n_items - 1, width // 8), dtype=np.uint8)
    best = np.zeros(width, dtype=np.int64)
    old = np.zeros(width, dtype=np.int64)
    taken = np.zeros(width, dtype=np.uint8)
    for at in range(n_items - 1):
        best, old = old, best
        _add_item(old, best, taken, lengths[items[at]] // step, worth[items[at]])
        _to_bits(taken.view(np.uint64), bits[at])
    room = top
    if best[top_with_last] + worth[last] > best[top]:
        chosen[last] = True
        room = top_with_last
    for at in range(n_items - 2, -1, -1):
        if bits[at, room >> 3] >> (room & 7) & 1:
            chosen[items[at]] = True
            room -= lengths[items[at]] // step
    return _DONE


@compiled
def _add_item(
    old: NDArray[np.int64], best: NDArray[np.int64], taken: NDArray[np.uint8], length: int, worth: int
) -> None:
    for room in range(min(length, len(old))):
        best[room] = old[room]
        taken[room] = 0
    if length < len(old):
        without, with_, flags = best[length:], old[: len(old) - length], taken[length:]
        kept = old[length:]
        for cell in range(len(without)):
            value = with_[cell] + worth
            better = value > kept[cell]
            without[cell] = value if better else kept[cell]
            flags[cell] = better


@_add_item.before_start
def _add_item_at_once(
    old: NDArray[np.int64], best: NDArray[np.int64], taken: NDArray[np.uint8], length: int, worth: int
) -> None:
    best[:length], taken[:length] = old[:length], 0
    value, kept = old[: max(0, len(old) - length)] + worth, old[length:]
    taken[length:] = value > kept
    np.maximum(value, kept, out=best[length:])


@compiled
def _to_bits(flags: NDArray[np.uint64], bits: NDArray[np.uint8]) -> None:
    """Eight flags of one byte each to the eight bits of a byte: the flag at bit 8 k goes to bit k."""
    for at in range(len(bits)):
        word = flags[at]
        word |= word >> np.uint64(7)
        word |= word >> np.uint64(14)
        word |= word >> np.uint64(28)
        bits[at] = word & np.uint64(255)


@_to_bits.before_start
def _to_bits_at_once(flags: NDArray[np.uint64], bits: NDArray[np.uint8]) -> None:
    bits[:] = np.packbits(flags.view(np.uint8), bitorder="little")
