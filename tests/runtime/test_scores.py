"""Batches of mixed length: every video once, nothing padded beyond the budget, results in order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsum_runtime.runtime.calls import plan, plan_batches, score
from vsum_runtime.runtime.errors import BackendError
from vsum_runtime.runtime.proposals import Decoder, decode


class Mean:
    """A stand-in session whose score is the mean feature; it checks that padding is zero."""

    name = "mean"

    def __init__(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.n_callers = 2
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        features, lengths = inputs["features"], inputs["lengths"]
        self.shapes.append(features.shape)
        assert not features[np.arange(features.shape[1]) >= lengths[:, None]].any()
        return [features.mean(axis=2)]

    def close(self) -> None: ...


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 3000))
def test_batches_hold_every_video_once_within_the_token_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens


@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_scores_come_back_in_the_order_of_the_videos(rng: np.random.Generator, batch_tokens: int) -> None:
    videos = [rng.random((n, 3), dtype=np.float32) for n in (7, 1, 30, 7, 12)]
    session = Mean(batch_tokens)
    for video, result in zip(videos, score(session, videos), strict=True):
        np.testing.assert_array_equal(result, video.mean(axis=1))
    assert (len(session.shapes) == len(videos)) == (batch_tokens == 1)


class Proposing(Mean):
    """A stand-in session that gives proposals without anchors, 0 in the padding, made from the features."""

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        super().run(inputs)
        features = inputs["features"]
        inside = (np.arange(features.shape[1]) < inputs["lengths"][:, None]).astype(np.float32)
        return [features[..., 0] * inside, features[..., :2] * 4 * inside[..., None], features[..., 2] * inside]


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_proposals_are_decoded_over_each_videos_own_steps(rng: np.random.Generator, batch_tokens: int) -> None:
    decoder = Decoder((), 0.4)
    videos = [rng.random((n, 3), dtype=np.float32) for n in (7, 1, 12)]
    for video, result in zip(videos, score(Proposing(batch_tokens), videos, decoder), strict=True):
        expected = decode(decoder, video[:, 0], video[:, :2] * 4, video[:, 2]).scores
        np.testing.assert_array_equal(result, expected)


def test_scores_that_are_not_finite_are_an_error_and_not_a_summary() -> None:
    with pytest.raises(BackendError, match="not finite for video 1"):
        score(Mean(1), [np.zeros((2, 3), np.float32), np.full((2, 3), np.inf, np.float32)])


def test_one_bad_video_does_not_cost_the_others(rng: np.random.Generator) -> None:
    videos = [rng.random((n, 3), dtype=np.float32) for n in (5, 6, 7, 8)]
    videos[2][3] = np.inf
    for batch_tokens in (1, 10_000):
        told: dict[int, BackendError] = {}
        results = score(Mean(batch_tokens), videos, failed=told.__setitem__)
        assert list(told) == [2]
        assert [len(result) for result in results] == [5, 6, 0, 8]


def test_a_batch_that_fails_is_tried_video_by_video(rng: np.random.Generator) -> None:
    class Poisoned(Mean):
        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
            if (inputs["features"] == 666).any():
                raise BackendError("mean failed")
            return super().run(inputs)

    videos = [rng.random((n, 3), dtype=np.float32) for n in (5, 6, 7)]
    videos[1][0, 0] = 666
    told: dict[int, BackendError] = {}
    results = score(Poisoned(10_000), videos, failed=told.__setitem__)
    assert list(told) == [1]
    np.testing.assert_array_equal(results[2], videos[2].mean(axis=1))
    with pytest.raises(BackendError, match="mean failed"):
        score(Poisoned(10_000), videos)


def test_progress_counts_steps(rng: np.random.Generator) -> None:
    shares: list[float] = []
    score(Mean(1), [rng.random((n, 3), dtype=np.float32) for n in (10, 30, 60)], progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_plan_says_what_will_happen() -> None:
    alone, batched = plan([3, 100, 4, 90], Mean(1)), plan([3, 100, 4, 90], Mean(200))
    assert str(alone) == "4 videos of 197 steps: 4 calls, one video a call, 2 at once, 0% padding"
    assert alone.calls[0] == [1]  # the longest first
    assert str(batched) == "4 videos of 197 steps: 2 calls, up to 2 videos a call, 2 at once, 6% padding"
