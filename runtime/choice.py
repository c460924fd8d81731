"""Scores, shots and a budget -> the chosen shots, with every fallback against an empty summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels.knapsack import pack
from vsum_runtime.kernels.shot_scores import pool
from vsum_runtime.runtime.borders import moved_to_cuts
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.summary import Budget, parse_budget

_NOTHING = np.empty((0, 2), dtype=np.int64)
_MOST_UNITS = 200_000  # of time in a video, for the table that chooses


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
    scene_changes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    keep: NDArray[np.int64] = _NOTHING,
    drop: NDArray[np.int64] = _NOTHING,
    may_be_empty: bool = False,
) -> Choice:
    """Choose the shots of greatest total value within a budget.

    Parameters
    ----------
    scores : float32 [T]
        of the sampled steps
    picks : int64 [T]
        source frame of each step
    shots : int64 [S, 2]
        half-open ranges of frames that tile the video
    budget
        share of the video or seconds, as `runtime.summary.parse_budget` reads it
    frame_times_s
        float64 [N + 1] presentation time of each frame; needed for a budget in seconds
    find_shots
        finds the shots again, none longer than so many steps; used where one shot exceeds the budget
    scene_changes
        hard cuts [C] and transitions [G, 2] of the video, in frames, to which borders of shots are then moved
        (`runtime.borders`)
    keep, drop
        int64 [K, 2] half-open ranges of frames that the summary must hold, or must not; none in both
    may_be_empty
        whether the summary may be empty where no shot fits; otherwise a piece of the best one is kept

    Raises
    ------
    InputError
        a budget that cannot be read, in seconds where times are unknown, or less than what is to be kept; all is to be
        dropped
    """
    ruler = Ruler.of(n_frames, frame_times_s)
    duration_s = None if frame_times_s is None else float(frame_times_s[-1] - frame_times_s[0])
    budget_frames = budget_in_frames(budget, n_frames, duration_s)
    room = budget_frames if ruler.unit_s is None else ruler.room(budget)
    fallback, max_steps = "", 0
    wishes = _Wishes(keep, drop, n_frames)
    if (n_kept := int(ruler.lengths(keep).sum())) > room:
        raise InputError(
            f"keep: expected ranges that fit the budget of {ruler.amount(room, duration_s)}, got "
            f"{ruler.amount(n_kept, duration_s)}; give a larger budget"
        )
    shots = wishes.split(shots)
    free = shots[wishes.free(shots)]
    if len(free) == 0 and len(keep) == 0:
        raise InputError("drop: expected to leave a part of the video, got all of it; drop less")
    longest, longest_step = int(ruler.lengths(free).max(initial=0)), ruler.longest_step(picks)
    if find_shots is not None and longest_step <= room < longest:
        fallback = (
            f"the longest shot, {ruler.amount(longest, duration_s)}, exceeds the budget of "
            f"{ruler.amount(room, duration_s)}, so long shots were split; "
            f"a budget of {math.ceil(100 * longest / int(ruler.positions[-1]))}% or more keeps them whole"
        )
        max_steps = room // longest_step
        shots = wishes.split(find_shots(max_steps))
    values, chosen = wishes.pack(scores, picks, shots, ruler, room)
    while find_shots is not None and max_steps > 1 and 2 * ruler.lengths(shots[chosen]).sum() < room:
        max_steps //= 2  # the pieces are too long to go beside a short shot
        shots = wishes.split(find_shots(max_steps))
        values, chosen = wishes.pack(scores, picks, shots, ruler, room)
    if len(chosen) == 0 and not may_be_empty:
        fallback = (
            f"no shot fits the budget of {ruler.amount(room, duration_s)}, so a piece of the best one is kept; "
            "give a larger budget"
        )
        shots, chosen = keep_best_step(wishes.masked(scores, picks), picks, shots, ruler, room)
        piece, shots = shots[chosen], wishes.split(shots)
        chosen = np.flatnonzero(_within(shots, piece) & wishes.free(shots))
        values = pool(scores, picks, shots, n_frames)
    if scene_changes is not None and len(chosen):

        def fits(moved: NDArray[np.int64]) -> bool:
            return int(ruler.lengths(moved[chosen]).sum()) <= room

        shots = moved_to_cuts(shots, chosen, picks, *scene_changes, fits, fixed=wishes.borders)
        values = pool(scores, picks, shots, n_frames)
    return Choice(shots, values, chosen, budget_frames, fallback)


class _Wishes:
    """Ranges of frames that must be in the summary or must not: shots are split at their ends."""

    def __init__(self, keep: NDArray[np.int64], drop: NDArray[np.int64], n_frames: int) -> None:
        self._keep, self._drop, self._n_frames = keep, drop, n_frames
        self.borders = np.unique(np.concatenate([keep, drop]))

    def split(self, shots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shots, which tile the video where there are wishes, cut at the ends of what is kept and dropped."""
        if len(self.borders) == 0:
            return shots
        bounds = np.unique(np.concatenate([shots.ravel(), self.borders]))
        return np.stack([bounds[:-1], bounds[1:]], axis=1)

    def free(self, shots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[S] which shots are neither kept nor dropped in any case."""
        return ~_within(shots, self._keep) & ~_within(shots, self._drop)

    def pack(
        self, scores: NDArray[np.float32], picks: NDArray[np.int64], shots: NDArray[np.int64], ruler: Ruler, room: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Value every shot by its mean frame score, and keep the set of greatest total value beside what must be kept.

        Returns
        -------
        float64 [S], int64 [K]
            value per shot; the chosen shots, ascending
        """
        values, lengths = pool(scores, picks, shots, self._n_frames), ruler.lengths(shots)
        is_kept, free = _within(shots, self._keep), np.flatnonzero(self.free(shots))
        packed = pack(values[free], lengths[free], max(0, room - int(lengths[is_kept].sum())))
        is_kept[free[packed]] = True
        return values, np.flatnonzero(is_kept)

    def masked(self, scores: NDArray[np.float32], picks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores that put what is dropped last."""
        return np.where(_within(np.stack([picks, picks + 1], axis=1), self._drop), np.float32(-1), scores)


def _within(ranges: NDArray[np.int64], wide: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[R] which ranges [R, 2] lie inside one of some others [W, 2]."""
    inside = (ranges[:, None, 0] >= wide[None, :, 0]) & (ranges[:, None, 1] <= wide[None, :, 1])
    return np.asarray(inside.any(axis=1), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Ruler:
    """Measures ranges of frames: in frames at a steady rate, as the field does, and else in a fine unit of time.

    So a budget is always one of time, in every fallback too.
    """

    positions: NDArray[np.int64]
    """[N + 1] where each frame starts, in whole units, and the end of the last one."""
    unit_s: float | None = None
    """None: a unit is a frame."""
    times_s: NDArray[np.float64] | None = None
    """[N + 1] the same in seconds where units are of time."""

    @classmethod
    def of(cls, n_frames: int, frame_times_s: NDArray[np.float64] | None) -> Ruler:
        frames = np.arange(n_frames + 1)
        if frame_times_s is None:
            return cls(frames)
        times_s = frame_times_s - frame_times_s[0]
        mean_s = times_s[-1] / n_frames
        if np.abs(times_s - mean_s * frames).max() < mean_s:  # the time base of a file rounds; a frame or more is real
            return cls(frames)
        unit_s = max(0.001, float(times_s[-1]) / _MOST_UNITS)
        return cls(np.floor(times_s / unit_s + 1e-6).astype(np.int64), unit_s, times_s)

    def room(self, budget: Budget) -> int:
        """Whole units of time that fit a budget."""
        assert self.times_s is not None
        assert self.unit_s is not None
        number, unit = parse_budget(budget)
        seconds = min(number if unit == "s" else number * float(self.times_s[-1]), float(self.times_s[-1]))
        return int(seconds / self.unit_s + 1e-6)

    def lengths(self, ranges: NDArray[np.int64]) -> NDArray[np.int64]:
        """[K] of half-open ranges of frames [K, 2]; parts of a unit count as one."""
        if self.times_s is None or self.unit_s is None:
            frames: NDArray[np.int64] = ranges[:, 1] - ranges[:, 0]
            return frames
        seconds = self.times_s[ranges[:, 1]] - self.times_s[ranges[:, 0]]
        return np.maximum(1, np.ceil(seconds / self.unit_s - 1e-6)).astype(np.int64)

    def longest_step(self, picks: NDArray[np.int64]) -> int:
        """Of the stretches from a sampled frame to the next."""
        ends = np.append(picks[1:], len(self.positions) - 1)
        return int(self.lengths(np.stack([picks, np.maximum(ends, picks)], axis=1)).max())

    def amount(self, length: int, duration_s: float | None) -> str:
        """A length as people think of it: seconds where they are known."""
        if duration_s is None:
            return f"{length} frames"
        return f"{length / int(self.positions[-1]) * duration_s:.1f} s"


def budget_in_frames(budget: Budget, n_frames: int, duration_s: float | None) -> int:
    """Whole frames that fit the budget, rounded down as the reference does (``int(0.15 * N)``)."""
    number, unit = parse_budget(budget)
    if unit == "ratio":
        return int(number * n_frames)
    if duration_s is None:
        raise InputError(f"budget: {budget!r} is in seconds, but only features were given; pass fps= or a share")
    return int(min(float(n_frames), number / duration_s * n_frames + 1e-6))  # either may be beyond all integers


def keep_best_step(
    scores: NDArray[np.float32], picks: NDArray[np.int64], shots: NDArray[np.int64], ruler: Ruler, room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The last resort where no shot fits: a piece of the budget's length (one frame at least) at the best step.

    Returns
    -------
    int64 [S', 2], int64 [1]
        shots with that piece as a shot of its own, and its index
    """
    at, n_frames = ruler.positions, len(ruler.positions) - 1
    best = int(np.argmax(scores))
    length = max(1, room)
    step_end = int(picks[best + 1]) if best + 1 < len(picks) else n_frames
    middle = int(at[picks[best]] + at[step_end]) // 2
    earliest = min(max(0, middle - length // 2), int(at[-1]) - min(length, int(at[-1])))
    start = min(int(np.searchsorted(at, earliest)), n_frames - 1)
    end = max(start + 1, int(np.searchsorted(at, at[start] + length, "right")) - 1)
    bounds = np.unique(np.concatenate([shots[:, 0], [start, end, n_frames]]))
    bounds = bounds[(bounds <= start) | (bounds >= end)]
    pieces = np.stack([bounds[:-1], bounds[1:]], axis=1).astype(np.int64)
    return pieces, np.flatnonzero(pieces[:, 0] == start)
