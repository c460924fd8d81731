"""Step scores + shots -> one value per shot: the mean of its frames' scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels.compiled import compiled, expect


def pool(scores: ArrayLike, picks: ArrayLike, shots: ArrayLike, n_frames: int) -> NDArray[np.float64]:
    """Average the frame scores of each shot without writing out the frames.

    A frame has the score of the last pick at or before it, and 0 before the first pick. The mean of a shot is the sum
    of scores weighted by how many of its frames each pick covers: O(T + S), in float64.

    Parameters
    ----------
    scores : float [T]
        score of each sampled step
    picks : int [T]
        source frame of each step, strictly increasing, in 0 .. n_frames
    shots : int [S, 2]
        half-open frame ranges, ascending, not empty, not overlapping; gaps are legal
    n_frames : int
        frames of the source video, N >= 1

    Returns
    -------
    float64 [S]
        mean frame score of each shot

    Raises
    ------
    ValueError
        on a wrong shape, a non-finite score, or picks or shots out of order or range

    Notes
    -----
    A last pick equal to ``n_frames`` occurs in some published files; it covers no frame. The field's code averages in
    float32 (difference about 1e-7 relative).

    >>> pool([1.0, 4.0], picks=[0, 15], shots=[[0, 10], [10, 20], [20, 30]], n_frames=30)
    array([1. , 2.5, 4. ])
    """
    score = np.array(scores, dtype=np.float64, order="C")
    pick = _integers(picks, "picks")
    shot = _integers(shots, "shots")
    if score.ndim != 1 or pick.shape != score.shape or len(pick) == 0:
        raise ValueError(
            f"scores, picks: expected two vectors of one length T >= 1, got shapes {score.shape} and {pick.shape}"
        )
    if shot.ndim != 2 or shot.shape[1:] != (2,):
        raise ValueError(f"shots: expected [S, 2] half-open frame ranges, got shape {shot.shape}")
    if not np.isfinite(score).all():
        raise ValueError("scores: expected finite values, got NaN or infinity")
    if n_frames < 1:
        raise ValueError(f"n_frames: expected at least 1, got {n_frames}")
    if pick[0] < 0 or pick[-1] > n_frames or (np.diff(pick) <= 0).any():
        raise ValueError(f"picks: expected strictly increasing frames in 0 .. {n_frames}, got {pick[0]} .. {pick[-1]}")
    if len(shot):
        bad = np.flatnonzero(shot[:, 0] >= shot[:, 1])
        if len(bad):
            raise ValueError(f"shots: expected start < end, got {shot[bad[0]].tolist()} at shot {bad[0]}")
        bad = np.flatnonzero(shot[1:, 0] < shot[:-1, 1])
        if len(bad):
            raise ValueError(
                f"shots: expected ascending ranges without overlap, got {shot[bad[0]].tolist()} "
                f"before {shot[bad[0] + 1].tolist()}"
            )
        if shot[0, 0] < 0 or shot[-1, 1] > n_frames:
            raise ValueError(
                f"shots: expected frames in [0, {n_frames}), got [{shot[0, 0]}, {shot[-1, 1]}); are the ends inclusive?"
            )
    expect(__name__, 2e-6 * (len(score) + len(shot)))
    return _pool(score, pick, shot, int(n_frames))


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    return array.astype(np.int64, order="C")


@compiled
def _pool(
    scores: NDArray[np.float64], picks: NDArray[np.int64], shots: NDArray[np.int64], n_frames: int
) -> NDArray[np.float64]:
    means = np.empty(len(shots))
    step = 0  # the last pick at or before the shot's start, or the first pick
    for shot in range(len(shots)):
        start, end = shots[shot]
        while step + 1 < len(picks) and picks[step + 1] <= start:
            step += 1
        total = 0.0
        at = step
        while at < len(picks) and picks[at] < end:
            until = picks[at + 1] if at + 1 < len(picks) else n_frames
            covered = min(until, end) - max(picks[at], start)
            if covered > 0:
                total += scores[at] * covered
            at += 1
        means[shot] = total / (end - start)
    return means


@_pool.before_start
def _pool_at_once(
    scores: NDArray[np.float64], picks: NDArray[np.int64], shots: NDArray[np.int64], n_frames: int
) -> NDArray[np.float64]:
    # Between two bounds, all frames have one pick and one shot.
    bounds = np.sort(np.concatenate([picks, shots.ravel(), [n_frames]]), kind="stable")
    first, covered = bounds[:-1], np.diff(bounds)
    step = np.searchsorted(picks, first, side="right") - 1
    shot = np.searchsorted(shots[:, 0], first, side="right") - 1
    inside = (step >= 0) & (shot >= 0) & (first < np.append(shots[:, 1], 0)[shot])
    # bincount adds in order, as the loop does.
    total = np.bincount(shot[inside], scores[step[inside]] * covered[inside], minlength=len(shots))
    means: NDArray[np.float64] = total / (shots[:, 1] - shots[:, 0])
    return means
