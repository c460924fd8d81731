"""Bootstrap intervals: known cases, and the coverage they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vsum_runtime.training.intervals import difference, interval


def test_a_constant_has_no_width_and_nothing_has_no_interval() -> None:
    assert interval({1: {"a": 0.3, "b": 0.3}, 2: {"c": 0.3}}) == (pytest.approx(0.3), pytest.approx(0.3))
    assert all(math.isnan(end) for end in interval({1: {"a": math.nan}}))


def test_undefined_videos_are_left_out() -> None:
    with_nan = {1: {"a": 0.0, "b": 1.0, "c": math.nan}}
    low, high = interval(with_nan)
    assert 0.0 <= low < high <= 1.0


def test_the_same_values_give_the_same_interval_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    values = {f"video_{n}": float(v) for n, v in enumerate(rng.normal(size=20))}
    assert interval({1: values}) == pytest.approx(interval({1: dict(reversed(values.items()))}))


def test_the_interval_is_that_of_the_normal_approximation_where_it_holds() -> None:
    values = np.random.default_rng(1).normal(size=200)
    low, high = interval({1: {f"video_{n}": float(v) for n, v in enumerate(values)}})
    half = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.01), pytest.approx(values.mean() + half, abs=0.01))


def test_a_video_of_several_splits_is_drawn_whole() -> None:
    """Twice the same split is no more evidence than once."""
    videos = {f"video_{n}": float(n) for n in range(10)}
    assert interval({1: videos, 2: videos}) == pytest.approx(interval({1: videos}))


def test_differences_pair_the_videos() -> None:
    ours, theirs = {1: {"a": 0.5, "b": 0.2}, 2: {"c": 1.0}}, {1: {"a": 0.25}}
    assert difference(ours, theirs) == {1: {"a": 0.25}}
