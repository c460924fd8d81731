"""Borders of shots, found between samples, moved to where the video cuts.

Shots are found from samples, two a second, so a border lies on the first sample of a new scene, up to half a second
late, and a kept shot would end in a flash of the next scene. A border therefore moves to the nearest hard cut, at most
two samples back or one ahead. At a dissolve or fade it moves to the end that leaves the transition out of the kept
shot. A border with neither nearby stays, because shots are also split where nothing cuts. The kept shots never come to
exceed the budget.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def moved_to_cuts(
    shots: NDArray[np.int64],
    chosen: NDArray[np.int64],
    picks: NDArray[np.int64],
    cuts: NDArray[np.int64],
    transitions: NDArray[np.int64],
    fits: Callable[[NDArray[np.int64]], bool],
    *,
    fixed: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Move the borders between shots.

    Parameters
    ----------
    shots : int64 [S, 2]
        half-open ranges of frames that tile the video
    chosen : int64 [K]
        the shots that are kept
    picks : int64 [T]
        sampled frames
    cuts : int64 [C]
        first frame after each hard cut
    transitions : int64 [G, 2]
        frames of dissolves and fades
    fits
        whether the kept ones of some shots [S, 2] fit the budget; those given do
    fixed : int64 [F]
        borders that stay

    Returns
    -------
    int64 [S, 2]
        as many shots, none of them empty
    """
    borders = np.append(shots[:, 0], shots[-1, 1])
    is_kept = np.zeros(len(shots), dtype=np.bool_)
    is_kept[chosen] = True
    targets = borders.copy()
    for k in range(1, len(shots)):
        if fixed is not None and borders[k] in fixed:
            continue
        at = int(np.searchsorted(picks, borders[k]))
        first, last = int(picks[max(0, at - 2)]) + 1, int(picks[min(len(picks) - 1, at + 1)])
        new = _cut_near(int(borders[k]), first, last, cuts, transitions, bool(is_kept[k - 1]), bool(is_kept[k]))
        if targets[k - 1] < new < borders[k + 1]:
            targets[k] = new
    # Borders that make a kept shot longer are moved last, while all still fits.
    gains = np.zeros(len(borders), dtype=np.int64)
    for k in range(1, len(shots)):
        gains[k] = (targets[k] - borders[k]) * (int(is_kept[k - 1]) - int(is_kept[k]))
    moved = borders.copy()
    for k in np.argsort(gains, kind="stable").tolist():
        before = moved[k]
        moved[k] = targets[k]
        if not (np.diff(moved) > 0).all() or (gains[k] > 0 and not fits(_shots(moved))):
            moved[k] = before
    return _shots(moved)


def _shots(borders: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([borders[:-1], borders[1:]], axis=1)


def _cut_near(
    border: int,
    first: int,
    last: int,
    cuts: NDArray[np.int64],
    transitions: NDArray[np.int64],
    is_kept_before: bool,
    is_kept_behind: bool,
) -> int:
    """Where a border belongs that may lie at frames first .. last; itself where nothing cuts there."""
    near = cuts[(cuts >= first) & (cuts <= last)]
    if len(near):
        return int(near[np.abs(near - border).argmin()])
    across = transitions[(transitions[:, 0] <= last) & (transitions[:, 1] >= first)]
    if len(across) and is_kept_before != is_kept_behind:
        start, end = across[np.abs(across.mean(axis=1) - border).argmin()].tolist()
        return int(start if is_kept_before else end)
    return border
