from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.reference import shot_scores as twin
from vsum_runtime.kernels import compiled, shot_scores


def some_problem(rng: np.random.Generator) -> tuple[Any, ...]:
    n_frames = int(rng.integers(1, 300))
    picks = np.sort(rng.choice(n_frames + 1, size=int(rng.integers(1, n_frames + 1)), replace=False))
    bounds = np.sort(rng.choice(n_frames + 1, size=2 * int(rng.integers(0, n_frames // 2 + 1)), replace=False))
    return rng.standard_normal(len(picks)), picks, bounds.reshape(-1, 2), n_frames


def test_random_problems_agree_with_the_twin(rng: np.random.Generator) -> None:
    for _ in range(300):
        scores, picks, shots, n_frames = some_problem(rng)
        found = shot_scores.pool(scores, picks, shots, n_frames)
        np.testing.assert_allclose(found, twin.pool(scores, picks, shots, n_frames), atol=1e-12)


def test_frames_before_the_first_pick_count_as_zero() -> None:
    assert shot_scores.pool([4.0], [5], [[0, 10]], 10).tolist() == [2.0]


def test_a_last_pick_at_the_end_covers_nothing() -> None:
    assert shot_scores.pool([1.0, 9.0], [0, 10], [[0, 10]], 10).tolist() == [1.0]


def test_no_shots_give_no_scores() -> None:
    assert shot_scores.pool([1.0], [0], np.zeros((0, 2), dtype=int), 10).tolist() == []


def test_types_and_layouts_do_not_matter() -> None:
    scores, picks, shots = np.arange(4.0), np.arange(4) * 15, np.array([[0, 20], [20, 30], [30, 60]])
    expected = shot_scores.pool(scores, picks, shots, 60).tolist()
    signatures = len(shot_scores._pool.dispatcher.signatures)
    for same in (np.asfortranarray(shots), shots.astype(np.int32), shots.astype(np.uint16), shots.tolist()):
        n_frames: Any = np.int64(60)  # any integer will do
        pooled = shot_scores.pool(scores.astype(np.float32), picks.astype(np.int32), same, n_frames)
        assert pooled.tolist() == expected
    assert len(shot_scores._pool.dispatcher.signatures) == signatures


def test_before_the_compiler_is_started_the_means_have_the_same_bits(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(300):
        scores, picks, shots, n_frames = some_problem(rng)
        scores *= 10.0 ** rng.integers(-9, 9, len(scores))
        expected = shot_scores.pool(scores, picks, shots, n_frames)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "_started", set())
            patch.setattr(compiled, "_expected_s", {})
            assert shot_scores.pool(scores, picks, shots, n_frames).tobytes() == expected.tobytes()
            assert not compiled._started


@pytest.mark.parametrize(
    ("scores", "picks", "shots", "n_frames", "message"),
    [
        ([1.0, 2.0], [0], [[0, 5]], 9, r"scores, picks: .*\(2,\) and \(1,\)"),
        ([], [], [[0, 5]], 9, "scores, picks: .*T >= 1"),
        ([[1.0]], [[0]], [[0, 5]], 9, "scores, picks"),
        ([1.0], [0], [0, 5], 9, r"shots: expected \[S, 2\].*\(2,\)"),
        ([1.0], [0], [[0, 5, 6]], 9, r"shots: .*\(1, 3\)"),
        ([np.nan], [0], [[0, 5]], 9, "scores: .*NaN or infinity"),
        ([np.inf], [0], [[0, 5]], 9, "scores: .*NaN or infinity"),
        ([1.0], [0.0], [[0, 5]], 9, "picks: expected integers, got float64"),
        ([1.0], [0], [[0.0, 5.0]], 9, "shots: expected integers, got float64"),
        ([1.0], [0], [[0, 5]], 0, "n_frames: .*got 0"),
        ([1.0, 2.0], [5, 5], [[0, 5]], 9, "picks: expected strictly increasing"),
        ([1.0], [-1], [[0, 5]], 9, "picks: .*got -1"),
        ([1.0], [10], [[0, 5]], 9, r"picks: .*0 .. 9, got 10"),
        ([1.0], [0], [[5, 5]], 9, r"shots: expected start < end, got \[5, 5\]"),
        ([1.0], [0], [[6, 5]], 9, r"shots: expected start < end, got \[6, 5\]"),
        ([1.0], [0], [[0, 5], [4, 9]], 9, r"shots: .*without overlap, got \[0, 5\] before \[4, 9\]"),
        ([1.0], [0], [[5, 9], [0, 5]], 9, "shots: .*without overlap"),
        ([1.0], [0], [[-1, 5]], 9, r"shots: .*got \[-1, 5\)"),
        ([1.0], [0], [[0, 10]], 9, r"shots: expected frames in \[0, 9\), got \[0, 10\)"),
    ],
)
def test_bad_input_is_refused(scores: Any, picks: Any, shots: Any, n_frames: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shot_scores.pool(scores, picks, shots, n_frames)
