from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_scorer
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.training.models import build

WITH_TEXT: dict[str, Any] = {"nhead_vid": 4, "nhid_vid": 64, "with_info_guide": True, "text_encoder": "small"}


@pytest.mark.slow
def test_all_stages_share_one_set_of_encoder_weights_and_pass_the_gate(tmp_path: Path) -> None:
    model = build("sspvs", feature_dim=520, nhead_vid=4, nhid_vid=520, nlayers_vid=1, iter=2).eval()
    graph, path = ScorerGraph(model, "l2"), tmp_path / "scorer.onnx"
    scorer_onnx(graph, 520, path)
    check_scorer(path, graph, 520)
    stored = sum(value.ByteSize() for value in onnx.load(path).graph.initializer)
    assert 0.99 < stored / sum(4 * parameter.numel() for parameter in model.parameters()) < 1.01


@pytest.mark.slow
def test_a_model_with_text_that_reads_none_as_empty_passes_the_gate(tmp_path: Path) -> None:
    graph = ScorerGraph(build("sspvs", feature_dim=32, missing_text="empty", **WITH_TEXT).eval(), "none")
    scorer_onnx(graph, 32, tmp_path / "scorer.onnx")
    check_scorer(tmp_path / "scorer.onnx", graph, 32)


def test_a_model_that_needs_text_is_not_exported_without(tmp_path: Path) -> None:
    graph = ScorerGraph(build("sspvs", feature_dim=32, **WITH_TEXT), "none")
    with pytest.raises(ExportError, match=r"trained with text and got none"):
        scorer_onnx(graph, 32, tmp_path / "scorer.onnx")
    assert not list(tmp_path.iterdir())
