"""Scores to compare every trained model with: chance, the mean of the other annotators, a linear fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video, importance_at_picks, unit_rows


def random_scores(video: Video, *, draws: int, seed: int = 0) -> NDArray[np.float64]:
    """Uniform scores [draws, T]; a video's draws depend on its key and the seed alone."""
    rng = np.random.default_rng([seed, *video.key.encode()])
    return rng.random((draws, len(video.picks)))


def leave_one_out_scores(video: Video) -> NDArray[np.float64]:
    """For each annotator the mean importance of all others [U, T]: the best that a scorer who knows them could do."""
    importance = importance_at_picks(video)
    if len(importance) < 2:
        raise InputError(f"{video.key}: leaving one annotator out needs at least two, got {len(importance)}")
    return (importance.sum(axis=0) - importance) / (len(importance) - 1)


@dataclass(frozen=True)
class LinearBaseline:
    """Ridge regression from one step's features to its gtscore, smoothed over time."""

    weights: NDArray[np.float64]
    """[D]"""
    bias: float
    sigma_steps: float
    """Standard deviation of the Gaussian over time, in steps."""

    @classmethod
    def fit(cls, videos: Sequence[Video], *, alpha: float = 3e4, sigma_steps: float = 3.0) -> LinearBaseline:
        """Learn from the training videos; ``alpha`` is the ridge penalty for rows of norm 16."""
        rows = np.concatenate([_rows(video) for video in videos])
        targets = np.concatenate([np.asarray(video.gtscore, dtype=np.float64) for video in videos])
        row_mean, target_mean = rows.mean(axis=0), targets.mean()
        rows -= row_mean
        covariance = rows.T @ rows
        covariance[np.diag_indices_from(covariance)] += alpha
        weights = np.linalg.solve(covariance, rows.T @ (targets - target_mean))
        return cls(weights, float(target_mean - row_mean @ weights), sigma_steps)

    def score(self, video: Video) -> NDArray[np.float64]:
        """Scores [T]."""
        return smooth(_rows(video) @ self.weights + self.bias, self.sigma_steps)


def smooth(curve: NDArray[np.float64], sigma_steps: float) -> NDArray[np.float64]:
    """Gaussian mean over time [T], cut at four standard deviations; the curve is mirrored at its ends.

    >>> smooth(np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 0.5).round(3)
    array([0.   , 0.106, 0.787, 0.106, 0.   ])
    """
    radius = round(4 * sigma_steps)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_steps) ** 2)
    return np.convolve(np.pad(curve, radius, mode="symmetric"), kernel / kernel.sum(), mode="valid")


def _rows(video: Video) -> NDArray[np.float64]:
    assert video.features is not None
    return 16.0 * unit_rows(video.features).astype(np.float64)
