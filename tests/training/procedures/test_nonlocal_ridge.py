from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import cli
from vsum_runtime.training.checkpoint import load_model
from vsum_runtime.training.models import build
from vsum_runtime.training.models.nonlocal_ridge import NonLocalRidge
from vsum_runtime.training.procedures import nonlocal_ridge

Videos = tuple[list[np.ndarray], list[np.ndarray]]


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


def test_more_than_one_pass_is_refused() -> None:
    model = build("nonlocal_ridge", feature_dim=4)
    with pytest.raises(InputError, match="epochs: expected 1"):
        nonlocal_ridge.Ridge(model, nonlocal_ridge.RidgeConfig(), n_epochs=2)


def test_fit_finds_a_planted_line_and_nothing_in_noise(rng: np.random.Generator) -> None:
    train, test = planted(rng, 12), planted(rng, 6, noise=0.0)
    model, settings = nonlocal_ridge.fit(*train)
    assert mean_tau(model, test) > 0.7
    assert settings[0].tau == max(setting.tau for setting in settings)
    _, settings = nonlocal_ridge.fit(train[0], [rng.permuted(users, axis=1) for users in train[1]])
    assert settings[0].tau < 0.1


def test_fit_gives_logits_of_mean_0_and_deviation_1(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    model, _ = nonlocal_ridge.fit(features, importance)
    scores = np.concatenate([scores_of(model, rows) for rows in features])
    logits = np.log(scores / (1 - scores))
    assert logits.mean() == pytest.approx(0, abs=1e-3)
    assert logits.std() == pytest.approx(1, abs=1e-3)


def test_fit_does_not_care_about_the_scale_of_importance(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    one, _ = nonlocal_ridge.fit(features, importance)
    other, _ = nonlocal_ridge.fit(features, [3 * users + 2 for users in importance])
    np.testing.assert_allclose(scores_of(one, features[0]), scores_of(other, features[0]), atol=1e-5)


def test_fit_leaves_a_constant_cue_without_weight(rng: np.random.Generator) -> None:
    features, importance = planted(rng, 5)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in features]
    model, _ = nonlocal_ridge.fit(unit, importance)
    doubled = [scores_of(model, rows) - scores_of(model, 2 * rows) for rows in unit]
    assert max(np.abs(difference).max() for difference in doubled) < 1e-2


def test_moments_of_the_parts_give_the_ridge_of_the_whole(rng: np.random.Generator) -> None:
    x, y = rng.normal(2, 1, size=(50, 4)), rng.normal(5, 1, size=50)
    (line,) = nonlocal_ridge._ridge(
        nonlocal_ridge._moments(x[:20], y[:20]) + nonlocal_ridge._moments(x[20:], y[20:]), [7.0]
    )
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
        nonlocal_ridge.fit(*change(*planted(rng, 3)))


def test_the_door_writes_a_checkpoint_per_split(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, splits = eight_videos
    argv = ["--model", "nonlocal-ridge", "--dataset", str(dataset), "--splits", str(splits)]
    assert cli.main([*argv, "--runs", str(tmp_path / "runs")]) == 0
    path = tmp_path / "runs" / "eight" / "nonlocal_ridge" / "split1" / "best.safetensors"
    model, metadata = load_model(path)
    assert model.options == metadata["options"]
    widths = "sigma_steps {sigma_steps:g}, sharpness {sharpness:g}".format(**metadata["options"])
    best, *others = metadata["config"]["tried"]
    assert best["tau"] == metadata["selection"]["value"] == max(setting["tau"] for setting in (best, *others))
    chosen = f"{path}  epoch 1 of 1, chosen by cross-validation {best['tau']:.4f}, {widths}\n"
    assert capsys.readouterr().out == chosen
    assert cli.main([*argv, "--runs", str(tmp_path / "runs")]) == 0  # it is finished, and not solved again
    assert capsys.readouterr().out == chosen
    assert metadata["train_keys"] == [f"video_{n}" for n in range(1, 7)]
    for wrong, message in (
        (["--split", "2"], "expected 1 .. 1"),
        (["--epochs", "3"], "solved for, not iterated; it takes no epochs"),
        (["--seeds", "0,1"], "solved for, not iterated; it takes no seed"),
        (["--sweep"], "got nonlocal_ridge, which has nothing to sweep"),
        (["--option", "rank=many"], "rank: expected a whole number"),
        (["--option", "sharpness=2"], "expected no option sharpness, which training chooses"),
    ):
        assert cli.main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err
