from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import metrics as twin
from vsum_runtime.kernels import metrics

steady = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def some_curves(rng: np.random.Generator) -> tuple[Any, Any]:
    """A prediction and a few references: spread to runs or not, with ties or without."""
    n = int(rng.integers(1, 60))
    curves = []
    for _ in range(4):
        steps = rng.integers(0, int(rng.choice([1, 2, 5, 1000])) + 1, n)
        run = int(rng.integers(1, 8))
        curves.append(np.repeat(steps, run)[:n] if rng.random() < 0.5 else steps)
    return curves[0] * float(rng.choice([1.0, 0.1, -3.0])), np.array(curves[1:])


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_curves_agree_with_the_twins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(34):
        prediction, references = some_curves(rng)
        taus = [twin.kendall_tau(prediction, reference) for reference in references]
        rhos = [twin.spearman_rho(prediction, reference) for reference in references]
        np.testing.assert_allclose(metrics.kendall_tau(prediction, references), taus, atol=1e-12)
        np.testing.assert_allclose(metrics.spearman_rho(prediction, references), rhos, atol=1e-12)


def test_long_curves_agree_with_scipy(rng: np.random.Generator) -> None:
    stats = pytest.importorskip("scipy.stats")
    prediction = np.repeat(rng.random(700), 15)[:10_000]
    references = np.array([np.repeat(rng.integers(1, 6, 200), 60)[:10_000], rng.random(10_000)])
    taus = [stats.kendalltau(prediction, reference).statistic for reference in references]
    rhos = [stats.spearmanr(prediction, reference).statistic for reference in references]
    np.testing.assert_allclose(metrics.kendall_tau(prediction, references), taus, atol=1e-12)
    np.testing.assert_allclose(metrics.spearman_rho(prediction, references), rhos, atol=1e-12)


correlations = pytest.mark.parametrize("correlation", [metrics.kendall_tau, metrics.spearman_rho])


@correlations
def test_perfect_and_reversed_orders(correlation: Callable[..., Any]) -> None:
    np.testing.assert_allclose(correlation([1, 5, 7, 9], [[2, 3, 4, 8], [8, 4, 3, 2]]), [1.0, -1.0])


@correlations
def test_a_constant_side_has_no_correlation(correlation: Callable[..., Any]) -> None:
    assert np.isnan(correlation([0.5, 0.5, 0.5], [[1, 2, 3], [2, 2, 2]])).all()
    np.testing.assert_array_equal(np.isnan(correlation([1, 2, 3], [[1, 2, 3], [2, 2, 2]])), [False, True])
    assert np.isnan(correlation([1.0], [[2.0]])).all()


@correlations
@steady
@given(seed=st.integers(0, 2**32))
def test_rising_rescaling_and_common_order_change_nothing(correlation: Callable[..., Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, references = some_curves(rng)
    expected = correlation(prediction, references)
    np.testing.assert_array_equal(correlation(prediction * 2.0 - 7.0, references), expected)
    np.testing.assert_array_equal(correlation(prediction, references**3), expected)
    np.testing.assert_allclose(correlation(-prediction, references), -expected, atol=1e-15)
    order = rng.permutation(len(prediction))
    np.testing.assert_allclose(correlation(prediction[order], references[:, order]), expected, atol=1e-12)


def test_spreading_curves_to_frames_keeps_rho(rng: np.random.Generator) -> None:
    prediction, references = rng.random(50), rng.integers(1, 6, (3, 50))
    spread = metrics.spearman_rho(np.repeat(prediction, 15), np.repeat(references, 15, axis=1))
    np.testing.assert_allclose(spread, metrics.spearman_rho(prediction, references), atol=1e-12)


@correlations
def test_types_and_layouts_do_not_matter(rng: np.random.Generator, correlation: Callable[..., Any]) -> None:
    prediction = rng.integers(0, 9, 60).astype(np.float16)
    references = rng.integers(1, 6, (4, 60)).astype(np.uint8)
    expected = correlation(prediction.astype(float), references.astype(float))
    for first in (prediction, prediction.astype(np.float32), np.repeat(prediction, 2)[::2], prediction.tolist()):
        for second in (references, references.astype(np.int64), np.asfortranarray(references), references.tolist()):
            np.testing.assert_array_equal(correlation(first, second), expected)
    assert [len(function.dispatcher.signatures) for function in (metrics._pair_runs, metrics._concordance)] <= [1, 1]


def test_large_whole_numbers_stay_distinct() -> None:
    assert metrics.kendall_tau([2**60, 2**60 + 1], [[0, 1]]).tolist() == [1.0]


@correlations
@pytest.mark.parametrize(
    ("prediction", "references", "message"),
    [
        ([1.0, 2.0], [[1.0]], r"\(2,\) and \(1, 1\)"),
        ([1.0, 2.0], [1.0, 2.0], r"\(2,\) and \(2,\)"),
        ([[1.0, 2.0]], [[1.0, 2.0]], r"\(1, 2\) and \(1, 2\)"),
        ([], np.zeros((2, 0)), r"\(0,\) and \(2, 0\)"),
        ([1.0, 2.0], np.zeros((0, 2)), r"\(2,\) and \(0, 2\)"),
        ([1.0, np.nan], [[1.0, 2.0]], "prediction: .*NaN or infinity"),
        ([1.0, 2.0], [[1.0, np.inf]], "references: .*NaN or infinity"),
        ([1.0, 2.0], [["a", "b"]], "references: expected real numbers"),
        ([1j, 2.0], [[1.0, 2.0]], "prediction: expected real numbers, got complex128"),
    ],
)
def test_bad_curves_are_refused(
    correlation: Callable[..., Any], prediction: Any, references: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        correlation(prediction, references)


@steady
@given(seed=st.integers(0, 2**32), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@pytest.mark.filterwarnings("ignore:summary and a row of user_summaries are both empty")
def test_f_scores_agree_with_the_twin(seed: int, density: Any) -> None:
    rng = np.random.default_rng(seed)
    n_frames = int(rng.integers(1, 80))
    machine = rng.random(n_frames) < density
    users = rng.random((3, n_frames)) < rng.choice([0.0, 0.15, 0.9])
    expected = [twin.f_score(machine, user) for user in users]
    np.testing.assert_allclose(metrics.f_scores(machine, users), expected, atol=1e-15)


def test_f_scores_of_equal_disjoint_and_empty_summaries() -> None:
    summary = np.array([1, 1, 0, 0, 0])
    users = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    assert metrics.f_scores(summary, users).tolist() == [1.0, 0.0, 0.0]
    assert metrics.f_scores(np.zeros(5), users[:2]).tolist() == [0.0, 0.0]


def test_f_score_of_two_empty_summaries_is_zero_and_reported() -> None:
    with pytest.warns(UserWarning, match="both empty"):
        assert metrics.f_scores(np.zeros(5), np.zeros((2, 5))).tolist() == [0.0, 0.0]


def test_a_short_summary_is_continued_with_zeros() -> None:
    users = np.array([[1, 1, 0, 0, 1, 1]])
    assert metrics.f_scores([1, 1], users).tolist() == metrics.f_scores([1, 1, 0, 0, 0, 0], users).tolist()


def test_a_long_summary_is_cut_and_reported_beyond_one_step() -> None:
    users = np.array([[1, 1, 0, 0]])
    assert metrics.f_scores([1, 1, 0, 0] + [1] * 15, users).tolist() == [1.0]
    with pytest.warns(UserWarning, match="20 frames, cut to the 4"):
        assert metrics.f_scores([1, 1, 0, 0] + [1] * 16, users).tolist() == [1.0]
    with pytest.warns(UserWarning, match="cut"):
        metrics.f_scores([1, 1, 0, 0, 1, 1], users, step=1)


def test_summaries_are_binarised_above_zero() -> None:
    assert metrics.f_scores([0.2, 0.0, -1.0], [[7, 0, 0]]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("summary", "users", "message"),
    [
        ([[1, 0]], [[1, 0]], r"\(1, 2\) and \(1, 2\)"),
        ([1, 0], [1, 0], r"\(2,\) and \(2,\)"),
        ([1, 0], np.zeros((0, 2)), r"\(0, 2\)"),
        ([1.0, np.nan], [[1, 0]], "summary: .*NaN or infinity"),
        ([1, 0], [[1.0, np.inf]], "user_summaries: .*NaN or infinity"),
        (["a"], [[1]], "summary: expected real numbers"),
    ],
)
def test_bad_summaries_are_refused(summary: Any, users: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.f_scores(summary, users)


def test_many_curves_at_once_give_the_same_bits(rng: np.random.Generator) -> None:
    predictions = np.stack([rng.random(90), np.repeat(rng.random(30), 3), np.full(90, 0.5)])
    references = np.array([rng.integers(1, 6, 90), np.full(90, 3)])
    taus, rhos = metrics.rank_correlations(predictions, references)
    np.testing.assert_array_equal(taus, [metrics.kendall_tau(curve, references) for curve in predictions])
    np.testing.assert_array_equal(rhos, [metrics.spearman_rho(curve, references) for curve in predictions])
    with pytest.raises(ValueError, match=r"expected \[K, n\] and \[U, n\]"):
        metrics.rank_correlations(predictions[:, 1:], references)
