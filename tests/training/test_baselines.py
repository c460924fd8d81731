"""Chance, the other annotators, and a line through the features."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.baselines import LinearBaseline, leave_one_out_scores, random_scores, smooth
from vsum_runtime.training.datasets import Dataset, Video, importance_at_picks, read_dataset, unit_rows


@pytest.fixture
def eight(eight_videos: tuple[Path, Path]) -> Dataset:
    return read_dataset(eight_videos[0])


def test_random_scores_depend_on_video_and_seed_alone(eight: Dataset) -> None:
    one, two = eight.videos["video_1"], eight.videos["video_2"]
    scores = random_scores(one, draws=5)
    assert scores.shape == (5, len(one.picks))
    assert np.array_equal(scores, random_scores(one, draws=5))
    assert np.array_equal(scores[:3], random_scores(one, draws=3))
    assert not np.array_equal(scores, random_scores(one, draws=5, seed=1))
    assert not np.array_equal(scores[:, :5], random_scores(two, draws=5)[:, :5])


def test_leaving_one_out_averages_the_others(eight: Dataset) -> None:
    video = eight.videos["video_3"]
    importance = importance_at_picks(video)
    scores = leave_one_out_scores(video)
    for user in range(3):
        assert np.allclose(scores[user], np.delete(importance, user, axis=0).mean(axis=0))


def test_leaving_the_only_annotator_out_is_refused(eight: Dataset) -> None:
    video = dataclasses.replace(eight.videos["video_1"], user_scores=None)
    with pytest.raises(InputError, match="video_1: leaving one annotator out needs at least two, got 1"):
        leave_one_out_scores(video)


def test_smoothing_keeps_constants_and_mirrors_with_the_curve(rng: np.random.Generator) -> None:
    assert np.allclose(smooth(np.full(50, 0.3), 3.0), 0.3)
    curve = rng.random(50)
    assert np.allclose(smooth(curve[::-1], 3.0), smooth(curve, 3.0)[::-1])
    assert smooth(curve, 3.0).std() < 0.6 * curve.std()


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_smoothing_a_curve_shorter_than_the_gaussian(n_steps: int, rng: np.random.Generator) -> None:
    curve = rng.random(n_steps)
    assert smooth(curve, 3.0).shape == (n_steps,)
    # A mean of the curve's values stays between them, but for the rounding of weights that sum to 1.
    rounding = 4 * np.finfo(np.float64).eps
    assert curve.min() - rounding <= smooth(curve, 3.0).min()
    assert smooth(curve, 3.0).max() <= curve.max() + rounding


def made_up(rng: np.random.Generator, weights: np.ndarray) -> Video:
    features = rng.normal(size=(80, len(weights))).astype(np.float32)
    return Video(
        key="video_1",
        n_frames=1200,
        picks=np.arange(0, 1200, 15),
        features=features,
        gtscore=(0.2 + unit_rows(features) @ weights).astype(np.float32),
    )


def test_the_linear_baseline_finds_a_linear_truth(rng: np.random.Generator) -> None:
    weights = rng.normal(size=6)
    videos = [made_up(rng, weights) for _ in range(5)]
    line = LinearBaseline.fit(videos, alpha=1e-6, sigma_steps=0.1)
    assert np.allclose(16 * line.weights, weights, atol=1e-4)
    unseen = made_up(rng, weights)
    assert np.allclose(line.score(unseen), unseen.gtscore, atol=1e-4)


def test_a_large_penalty_gives_the_mean(rng: np.random.Generator) -> None:
    videos = [made_up(rng, rng.normal(size=6)) for _ in range(3)]
    line = LinearBaseline.fit(videos, alpha=1e12)
    mean = np.mean(np.concatenate([np.asarray(video.gtscore) for video in videos]))
    assert np.allclose(line.score(videos[0]), mean, atol=1e-5)
