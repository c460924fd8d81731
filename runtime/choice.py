"""Scores, shots and a budget -> the chosen shots, with every fallback against an empty summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels.knapsack import pack
from vsum_runtime.kernels.shot_scores import pool
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.shots import step_frames
from vsum_runtime.runtime.summary import Budget, parse_budget


@dataclass(frozen=True, eq=False)
class Choice:
    """Which shots a summary keeps."""

    shots: NDArray[np.int64]
    """[S, 2] the shots that were chosen from; fallbacks split some."""
    shot_scores: NDArray[np.float64]
    """[S] mean frame score of each shot."""
    chosen: NDArray[np.int64]
    """[K] the shots that are kept, ascending."""
    budget_frames: int
    fallback: str = ""
    """What was done to avoid an empty summary; empty when nothing had to be done."""


def choose(
    scores: NDArray[np.float32],
    picks: NDArray[np.int64],
    shots: NDArray[np.int64],
    n_frames: int,
    budget: Budget,
    frame_times_s: NDArray[np.float64] | None = None,
    *,
    find_shots: Callable[[int], NDArray[np.int64]] | None = None,
    may_be_empty: bool = False,
) -> Choice:
    """Choose the shots of greatest total value within a budget.

    Parameters
    ----------
    scores : float32 [T]            of the sampled steps
    picks : int64 [T]               source frame of each step
    shots : int64 [S, 2]            half-open ranges of frames that tile the video
    budget : share of the video or seconds, as `runtime.summary.parse_budget` reads it
    frame_times_s : float64 [N + 1] presentation time of each frame; needed for a budget in seconds
    find_shots : finds the shots again, none longer than so many frames; used where one shot exceeds the budget
    may_be_empty : whether the summary may be empty where no shot fits; otherwise a piece of the best one is kept

    Raises
    ------
    InputError   a budget that cannot be read, or in seconds where times are unknown
    """
    duration_s = None if frame_times_s is None else float(frame_times_s[-1] - frame_times_s[0])
    budget_frames = budget_in_frames(budget, n_frames, duration_s)
    fallback = ""
    longest = int((shots[:, 1] - shots[:, 0]).max())
    if find_shots is not None and step_frames(picks, n_frames) <= budget_frames < longest:
        fallback = (
            f"the longest shot, {_amount(longest, n_frames, duration_s)}, exceeds the budget of "
            f"{_amount(budget_frames, n_frames, duration_s)}, so long shots were split; "
            f"a budget of {math.ceil(100 * longest / n_frames)}% or more keeps them whole"
        )
        shots = find_shots(budget_frames)
    values, chosen = pack_shots(scores, picks, shots, n_frames, budget_frames, frame_times_s)
    if len(chosen) == 0 and not may_be_empty:
        fallback = (
            f"no shot fits the budget of {_amount(budget_frames, n_frames, duration_s)}, so a piece of the best one is "
            "kept; give a larger budget"
        )
        shots, chosen = keep_best_step(scores, picks, shots, n_frames, budget_frames)
        values, _ = pack_shots(scores, picks, shots, n_frames, 0, frame_times_s)
    return Choice(shots, values, chosen, budget_frames, fallback)


def _amount(frames: int, n_frames: int, duration_s: float | None) -> str:
    """A number of frames as people think of it: seconds where they are known."""
    return f"{frames} frames" if duration_s is None else f"{frames / n_frames * duration_s:.1f} s"


def budget_in_frames(budget: Budget, n_frames: int, duration_s: float | None) -> int:
    """Whole frames that fit the budget, rounded down as the reference does (``int(0.15 * N)``)."""
    number, unit = parse_budget(budget)
    if unit == "ratio":
        return int(number * n_frames)
    if duration_s is None:
        raise InputError(f"budget: {budget!r} is in seconds, but only features were given; pass fps= or a share")
    return int(min(float(n_frames), number / duration_s * n_frames + 1e-6))  # either may be beyond all integers


def pack_shots(
    scores: NDArray[np.float32],
    picks: NDArray[np.int64],
    shots: NDArray[np.int64],
    n_frames: int,
    budget_frames: int,
    frame_times_s: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Value every shot by its mean frame score and keep the set of greatest total value that fits the budget.

    Returns
    -------
    float64 [S], int64 [K]   value per shot; the chosen shots, ascending
    """
    values = pool(scores, picks, shots, n_frames)
    return values, pack(values, _lengths(shots, frame_times_s), budget_frames)


def keep_best_step(
    scores: NDArray[np.float32], picks: NDArray[np.int64], shots: NDArray[np.int64], n_frames: int, budget_frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The last resort where no shot fits: a piece of the budget's length (one frame at least) at the best step.

    Returns
    -------
    int64 [S', 2], int64 [1]   shots with that piece as a shot of its own, and its index
    """
    best = int(np.argmax(scores))
    length = max(1, budget_frames)
    step_end = int(picks[best + 1]) if best + 1 < len(picks) else n_frames
    middle = (int(picks[best]) + step_end) // 2
    start = min(max(0, middle - length // 2), n_frames - min(length, n_frames))
    end = min(n_frames, start + length)
    bounds = np.unique(np.concatenate([shots[:, 0], [start, end, n_frames]]))
    bounds = bounds[(bounds <= start) | (bounds >= end)]
    pieces = np.stack([bounds[:-1], bounds[1:]], axis=1).astype(np.int64)
    return pieces, np.flatnonzero(pieces[:, 0] == start)


def _lengths(shots: NDArray[np.int64], frame_times_s: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Length of each shot in frames; for a variable frame rate in frames of average duration, rounded up."""
    frames: NDArray[np.int64] = shots[:, 1] - shots[:, 0]
    if frame_times_s is None:
        return frames
    n_frames = len(frame_times_s) - 1
    mean_s = (frame_times_s[-1] - frame_times_s[0]) / n_frames
    regular = frame_times_s[0] + mean_s * np.arange(n_frames + 1)
    if np.abs(frame_times_s - regular).max() < mean_s:  # the time base of a file rounds; a frame or more is real
        return frames
    seconds = frame_times_s[shots[:, 1]] - frame_times_s[shots[:, 0]]
    whole: NDArray[np.int64] = np.ceil(seconds / mean_s - 1e-6).astype(np.int64)
    return np.maximum(1, whole)
