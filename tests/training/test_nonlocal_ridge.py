from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_scorer
from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import cli, fit
from vsum_runtime.training.checkpoint import load_model
from vsum_runtime.training.models import build
from vsum_runtime.training.models.nonlocal_ridge import NonLocalRidge

Videos = tuple[list[np.ndarray], list[np.ndarray]]


@pytest.fixture
def model() -> NonLocalRidge:
    torch.manual_seed(0)
    model = build("nonlocal_ridge", feature_dim=12, rank=5, sigma_steps=1.5, sharpness=4)
    assert isinstance(model, NonLocalRidge)
    return model.eval()


def planted(rng: np.random.Generator, n_videos: int, *, noise: float = 1.0) -> Videos:
    """Videos of shots of four kinds, alike in all videos, and four annotators who prefer one kind to the next."""
    kinds = np.random.default_rng(5).gamma(1.0, size=(4, 10))
    features, importance = [], []
    for _ in range(n_videos):
        kind = np.repeat(rng.integers(4, size=12), rng.integers(3, 9, size=12))
        features.append((kinds[kind] + rng.gamma(1.0, 0.3, size=(len(kind), 10))).astype(np.float32))
        importance.append(kind + rng.normal(scale=noise, size=(4, len(kind))))
    return features, importance


def mean_tau(model: NonLocalRidge, videos: Videos) -> float:
    scores = [scores_of(model, rows) for rows in videos[0]]
    return float(np.mean([metrics.kendall_tau(s, users) for s, users in zip(scores, videos[1], strict=True)]))


def scores_of(model: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(rows)[None], torch.tensor([len(rows)]))[0].double().numpy()


def test_two_opposite_steps_share_their_scores_by_the_softmax() -> None:
    model = NonLocalRidge(2, rank=2, sigma_steps=0.1, sharpness=1.5)
    with torch.no_grad():
        model.directions.weight.copy_(torch.eye(2))
        model.score.weight.copy_(torch.tensor([[1.0, 0.0, 2.0, 0.5, 3.0]]))
        model.score.bias.fill_(-1)
    scores = scores_of(model, np.array([[4, 0], [0, 2]], dtype=np.float32))
    crowd = (1 + math.exp(-20)) / 2  # cosines 1 and -1
    lines = np.array([1 + 0.5 * 4, 0.5 * 2]) + 2 * 0.5 + 3 * crowd - 1
    near = 1 / (1 + math.exp(-3))
    expected = 1 / (
        1 + np.exp(-np.array([near * lines[0] + (1 - near) * lines[1], near * lines[1] + (1 - near) * lines[0]]))
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_padding_changes_nothing_whatever_it_holds(model: NonLocalRidge) -> None:
    lengths = torch.tensor([40, 1, 17, 2])
    features = torch.rand(4, 40, 12)
    padded = features.clone()
    for video, n_steps in enumerate(lengths.tolist()):
        padded[video, n_steps:] = torch.tensor([math.nan, 1e6, -3.0]).repeat(4)
    with torch.no_grad():
        scores = model(padded, lengths)
    for video, n_steps in enumerate(lengths.tolist()):
        alone = scores_of(model, features[video, :n_steps].numpy())
        np.testing.assert_allclose(scores[video, :n_steps], alone, atol=1e-6)
        assert not scores[video, n_steps:].any()


def test_a_reversed_video_gets_the_reversed_scores(model: NonLocalRidge) -> None:
    rows = np.random.default_rng(0).random((33, 12), dtype=np.float32)
    np.testing.assert_allclose(scores_of(model, rows[::-1].copy()), scores_of(model, rows)[::-1], atol=1e-6)


def test_a_still_video_is_scored_by_nothing_at_all(model: NonLocalRidge) -> None:
    scores = scores_of(model, np.repeat(np.random.default_rng(0).random((1, 12), dtype=np.float32), 50, axis=0))
    assert np.ptp(scores) < 1e-6


def test_a_video_of_zeros_has_finite_scores(model: NonLocalRidge) -> None:
    assert np.isfinite(scores_of(model, np.zeros((1, 12), dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 13}, "rank: expected at most the feature size 12"), ({"sigma_steps": 0}, "sigma_steps: expected")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("nonlocal_ridge", feature_dim=12, **options)


@pytest.mark.slow
def test_the_graph_passes_the_gate(model: NonLocalRidge, tmp_path: Path) -> None:
    graph = ScorerGraph(model, "none")
    scorer_onnx(graph, 12, tmp_path / "scorer.onnx")
    check_scorer(tmp_path / "scorer.onnx", graph, 12)


def test_fit_finds_a_planted_line_and_nothing_in_noise(rng: np.random.Generator) -> None:
    train, test = planted(rng, 12), planted(rng, 6, noise=0.0)
    model, settings = fit.fit(*train)
    assert mean_tau(model, test) > 0.7
    assert settings[0].tau == max(setting.tau for setting in settings)
    _, settings = fit.fit(train[0], [rng.permuted(users, axis=1) for users in train[1]])
    assert settings[0].tau < 0.1


def test_fit_gives_logits_of_mean_0_and_deviation_1(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    model, _ = fit.fit(features, importance)
    scores = np.concatenate([scores_of(model, rows) for rows in features])
    logits = np.log(scores / (1 - scores))
    assert logits.mean() == pytest.approx(0, abs=1e-3)
    assert logits.std() == pytest.approx(1, abs=1e-3)


def test_fit_does_not_care_about_the_scale_of_importance(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    one, _ = fit.fit(features, importance)
    other, _ = fit.fit(features, [3 * users + 2 for users in importance])
    np.testing.assert_allclose(scores_of(one, features[0]), scores_of(other, features[0]), atol=1e-5)


def test_fit_leaves_a_constant_cue_without_weight(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in features]
    model, _ = fit.fit(unit, importance)
    doubled = [scores_of(model, rows) - scores_of(model, 2 * rows) for rows in unit]
    assert max(np.abs(difference).max() for difference in doubled) < 1e-2


def test_moments_of_the_parts_give_the_ridge_of_the_whole(rng: np.random.Generator) -> None:
    x, y = rng.normal(2, 1, size=(50, 4)), rng.normal(5, 1, size=50)
    (line,) = fit._ridge(fit._moments(x[:20], y[:20]) + fit._moments(x[20:], y[20:]), [7.0])
    centred = x - x.mean(axis=0)
    expected = np.linalg.solve(centred.T @ centred + 7 * np.eye(4), centred.T @ (y - y.mean()))
    np.testing.assert_allclose(line, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:1], y[:1]), "two or more videos"),
        (lambda x, y: (x, y[:-1]), "got 3 and 2 videos"),
        (lambda x, y: (x, [y[0], y[1][:, :-1], y[2]]), "video 1: expected features"),
        (lambda x, y: ([x[0], x[1], x[2][:, :-1]], y), "video 2: expected features"),
    ],
)
def test_fit_refuses_videos_that_do_not_fit_together(change: Any, message: str, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match=message):
        fit.fit(*change(*planted(rng, 3)))


def test_the_door_writes_a_checkpoint_per_split(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, splits = eight_videos
    argv = ["--model", "nonlocal-ridge", "--dataset", str(dataset), "--splits", str(splits)]
    assert cli.main([*argv, "--runs", str(tmp_path / "runs")]) == 0
    path = tmp_path / "runs" / "eight" / "nonlocal_ridge" / "split1" / "best.safetensors"
    assert capsys.readouterr().out.startswith(f"{path}  Setting(sigma_steps=")
    model, metadata = load_model(path)
    assert model.options == metadata["options"]
    assert metadata["train_keys"] == [f"video_{n}" for n in range(1, 7)]
    for wrong, message in (
        (["--split", "2"], "expected 1 .. 1"),
        (["--epochs", "3"], "takes no epochs"),
        (["--option", "rank=many"], "expected a whole number"),
        (["--option", "sharpness=2"], "expected no option but rank"),
    ):
        assert cli.main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err
