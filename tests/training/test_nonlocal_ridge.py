from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_scorer
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build
from vsum_runtime.training.models.nonlocal_ridge import NonLocalRidge


@pytest.fixture
def model() -> NonLocalRidge:
    torch.manual_seed(0)
    model = build("nonlocal_ridge", feature_dim=12, rank=5, sigma_steps=1.5, sharpness=4)
    assert isinstance(model, NonLocalRidge)
    return model.eval()


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
