"""The main path on features, with a scorer whose answer is known: the score of a step is its first feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.errors import BackendError, BundleError, InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["features", "zero", "one", "axis"], ["first"]),
            helper.make_node("Squeeze", ["first", "axis"], ["scores"]),
            helper.make_node("Identity", ["lengths"], ["unused"]),
        ],
        "first",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", "time", 8]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "time"])],
        [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("zero", 0), ("one", 1), ("axis", 2))],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "scorer.onnx"
    )
    manifest = {
        "model": {"architecture": "first", "options": {}, "feature_dim": 8, "output": "scores"},
        "graph": {"file": "scorer.onnx", "precision": "fp32"},
        "features": None,
        "example": {"lengths": [2], "scores": [[0.5, 0.5]]},
    }
    return bundles.write(folder / "bundle", manifest, {"scorer.onnx": folder / "scorer.onnx"}).path


@pytest.fixture
def summarizer(toy: Path) -> Summarizer:
    return Summarizer(toy)


def film(scores: list[float], rng: np.random.Generator, *, steps_per_shot: int = 10) -> np.ndarray:
    """Features of a film with one shot per score, clearly apart; the first feature is the score."""
    rows = []
    for value in scores:
        look = rng.normal(size=7) * 5
        rows.append(np.column_stack([np.full(steps_per_shot, value), np.tile(look, (steps_per_shot, 1))]))
    return np.concatenate(rows).astype(np.float32)


def test_scores_of_mixed_lengths_in_order(summarizer: Summarizer, rng: np.random.Generator) -> None:
    videos = [rng.random((n, 8)) for n in (5, 1, 40)]
    for video, scores in zip(videos, summarizer.score(videos), strict=True):
        np.testing.assert_allclose(scores, video[:, 0], rtol=1e-6)


def test_summary_keeps_the_best_shots_that_fit(summarizer: Summarizer, rng: np.random.Generator) -> None:
    features = film([0.1, 0.9, 0.2, 0.8, 0.3, 0.1, 0.2, 0.1, 0.3, 0.2], rng)
    summary = summarizer.summarize_features(features, picks=np.arange(100) * 15, n_frames=1500, budget=0.2)
    assert summary.shots.tolist() == [[150 * s, 150 * s + 150] for s in range(10)]
    assert summary.chosen.tolist() == [1, 3]
    assert summary.budget_frames == 300
    assert summary.fallback == ""


def test_given_shots_are_used_as_given_even_if_nothing_fits(summarizer: Summarizer) -> None:
    summary = summarizer.summarize_features(np.ones((10, 8)), shots=[[0, 10]], budget=0.5)
    assert summary.chosen.tolist() == []
    assert summary.ranges.shape == (0, 2)
    assert summary.fallback == ""


def test_one_long_shot_is_split_and_the_summary_says_so(summarizer: Summarizer, rng: np.random.Generator) -> None:
    features = film([0.5], rng, steps_per_shot=100)
    features[:, 0] = np.linspace(0.1, 0.9, 100)
    summary = summarizer.summarize_features(features, picks=np.arange(100) * 15, n_frames=1500, budget=0.15)
    assert 0 < summary.frames.sum() <= 225
    assert "split" in summary.fallback


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_summary_of_a_tiny_or_worthless_video_is_never_empty(
    summarizer: Summarizer, n_steps: int, value: float
) -> None:
    summary = summarizer.summarize_features(np.full((n_steps, 8), value), picks=np.arange(n_steps) * 5)
    assert summary.frames.sum() == max(1, summary.budget_frames)
    assert summary.fallback
    assert summary.shots[0, 0] == 0
    assert summary.shots[-1, 1] == summary.n_frames


def test_seconds_need_and_use_the_frame_rate(summarizer: Summarizer, rng: np.random.Generator) -> None:
    features = film([0.1, 0.9, 0.2], rng)
    summary = summarizer.summarize_features(features, picks=np.arange(30) * 15, n_frames=450, fps=30, budget="5s")
    assert summary.duration_s == pytest.approx(5.0)
    assert summary.segments_s.tolist() == [[5.0, 10.0]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((4, 7)), r"expected \[T, 8\] with T >= 1, got \(4, 7\)"),
        (np.ones((8, 4)), "transpose it"),
        (np.ones((0, 8)), "T >= 1"),
        (np.ones(8), r"got \(8,\)"),
        (np.ones((4, 8), dtype=np.int32), "cast to float32"),
        (np.ones((4, 8), dtype=object), "cast to float32"),
        (np.array([[1.0] * 8, [np.nan] * 8]), "NaN or infinity at step 1"),
    ],
)
def test_wrong_features_are_named(summarizer: Summarizer, features: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarizer.score([features])
    with pytest.raises(InputError, match=message):
        summarizer.summarize_features(features)


def test_empty_list_and_bare_array_are_refused(summarizer: Summarizer) -> None:
    with pytest.raises(InputError, match="empty list"):
        summarizer.score([])
    with pytest.raises(InputError, match=r"pass \[features\]"):
        summarizer.score(np.ones((4, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picks": [0, 1]}, r"picks: expected \[4\]"),
        ({"picks": [0.0, 1.0, 2.0, 3.0]}, "integers"),
        ({"picks": [0, 2, 2, 3]}, "increasing"),
        ({"picks": [1, 2, 3, 4]}, "from 0"),
        ({"n_frames": 2}, "n_frames: expected at least 3"),
        ({"shots": [[0, 3], [2, 4]]}, "without overlap"),
        ({"shots": [[0, 5]]}, r"inside \[0, 4\)"),
        ({"shots": []}, "S >= 1"),
        ({"shots": [[0, 0], [0, 4]]}, "half-open"),
        ({"fps": 0}, "fps"),
        ({"budget": 2}, "budget"),
        ({"budget": "5s"}, "pass fps="),
    ],
)
def test_wrong_options_are_named(summarizer: Summarizer, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        summarizer.summarize_features(np.ones((4, 8)), **options)  # type: ignore[arg-type]


def test_bundle_without_a_feature_network_takes_no_video(summarizer: Summarizer, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="summarize_features"):
        summarizer.summarize(tmp_path / "x.mp4")


def test_missing_bundle_and_unavailable_backend_are_named(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="vsum-export"):
        Summarizer(tmp_path)
    with pytest.raises(InputError, match="ort-cpu"):
        Summarizer(toy, backend="tpu")
    with pytest.raises(BackendError, match="ort-cuda"):
        Summarizer(toy, backend="ort-cuda")


def test_bad_features_are_told_and_the_others_scored(summarizer: Summarizer, rng: np.random.Generator) -> None:
    told: dict[int, str] = {}
    good = rng.random((4, 8), dtype=np.float32)
    results = summarizer.score(
        [np.full((2, 8), np.nan), good, np.zeros((3, 5))], failed=lambda i, error: told.update({i: str(error)})
    )
    assert sorted(told) == [0, 2]
    assert "NaN" in told[0]
    np.testing.assert_array_equal(results[1], good[:, 0])
    assert len(results[0]) == len(results[2]) == 0


def test_more_steps_than_memory_allows_are_refused_with_the_estimate(toy: Path) -> None:
    with Summarizer(toy, memory_limit_bytes=10_000_000) as limited:
        limited.bundle.manifest["graph"]["memory_bytes"] = [1000.0, 0.0, 10.0]
        assert limited.memory_bytes(500) == 2_501_000
        limited.score([np.ones((500, 8), np.float32)])
        with pytest.raises(InputError, match=r"2000 steps with first takes about 0\.0 GB"):
            limited.score([np.ones((2000, 8), np.float32)])
