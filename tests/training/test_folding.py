"""Folded layers score as the layers they come from, with fewer products."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.training.models import build

LENGTHS = torch.tensor([130, 64, 1])


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [("vasnet", "att", {}), ("ca_sum", "attention", {}), ("ca_sum", "attention", {"output_size": 40})],
)
def test_a_folded_layer_scores_as_the_layers_it_comes_from(name: str, layer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(name, feature_dim=24, **options).double().eval()
    folded = copy.deepcopy(model)
    setattr(folded, layer, getattr(folded, layer).folded())
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())
    x = torch.randn(3, 130, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x, LENGTHS), model(x, LENGTHS), rtol=0, atol=1e-12)


def test_a_layer_that_would_not_gain_stays_as_it_is() -> None:
    attention = build("ca_sum", feature_dim=24, output_size=8).attention
    assert attention.folded() is attention


def test_exports_are_folded_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = build("vasnet", feature_dim=16)
    scorer_onnx(ScorerGraph(model, "none"), 16, tmp_path / "scorer.onnx")
    products = [node for node in onnx.load(tmp_path / "scorer.onnx").graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 6  # query, energies, value, gather, ka, kd
    assert hasattr(model.att, "folded")
