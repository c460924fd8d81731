"""Every model of the table, through the vsum-export door: its bundle scores as PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from vsum_runtime.export import cli
from vsum_runtime.export.engine_from_onnx import BuildConfig, build_engine, load_library
from vsum_runtime.export.half_precision import half_precision, islands_of, islands_on_record
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES
from vsum_runtime.runtime.errors import BackendError
from vsum_runtime.training.checkpoint import load_model
from vsum_runtime.training.models import MODELS
from vsum_runtime.training.models.csta import CSTA
from vsum_runtime.training.scores import step_scores
from vsum_runtime.training.trained_rows import score_with_bundle, score_with_checkpoint

D = 16
D_OF = {"csta": 128}  # of 16 values, its map of the whole video has too few to even out the last bits
LENGTHS = (1, 2, 3, 14, 60, 193, 700, 1500)
SMALL: dict[str, dict[str, Any]] = {
    "ac_sum_gan": {"hidden_size": 12},
    "dr_dsn": {"hid_dim": 12},
    "pgl_sum": {"heads": 4, "num_segments": 4},
    "sspvs": {"nhid_vid": 32, "iter": 2},
}
"""Options of a quicker model, where the defaults are slow or do not divide D."""


def videos(feature_dim: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.gamma(0.5, size=(n_steps, feature_dim)).astype(np.float32) for n_steps in LENGTHS]


def check_graph_is_clean(path: Path, model: torch.nn.Module) -> None:
    """Norms folded, every weight once and at most once, no table of positions."""
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    stored = sum(value.ByteSize() for value in graph.initializer)
    assert stored <= 1.01 * sum(4 * parameter.numel() for parameter in model.parameters()) + 20_000
    if isinstance(model, CSTA):
        # keys of the rows, keys of three CLS rows, values, two layers of the classifier
        assert [node.op_type for node in graph.node].count("MatMul") == 5


@dataclass(frozen=True)
class Exported:
    """A small model with random weights and its bundle."""

    name: str
    checkpoint: Path
    bundle: Path


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "csta")) for name in MODELS]
)
def exported(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    made = checkpoint(folder / "model.safetensors", name=name, feature_dim=D_OF.get(name, D), **SMALL.get(name, {}))
    assert cli.main(["--checkpoint", str(made), "--out", str(folder / "bundle")]) == 0
    return Exported(name, made, folder / "bundle")


def test_a_bundle_scores_a_ragged_batch_as_pytorch_scores_each_video_alone(exported: Exported) -> None:
    feature_dim, out = D_OF.get(exported.name, D), exported.bundle
    model, _ = load_model(exported.checkpoint)
    check_graph_is_clean(out / "scorer.onnx", model)
    with Summarizer(out) as summarizer:
        summarizer._scorer.session.batch_tokens = 100_000  # one padded batch, as a GPU backend makes
        together = summarizer.score(videos(feature_dim))
    for video, scores in zip(videos(feature_dim), together, strict=True):
        alone = step_scores(model, video / np.linalg.norm(video, axis=1, keepdims=True))
        apart = np.abs(scores - alone) > 1e-5
        # The last bit may flip the rounding of a proposal's end.
        assert apart.mean() <= (0.01 if model.output == "proposals" else 0), np.abs(scores - alone).max()


@pytest.mark.trt_build
def test_both_precisions_build_with_the_shipped_profiles_in_the_types_of_their_graphs(
    exported: Exported, tmp_path: Path
) -> None:
    try:
        rtx = load_library("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))
    config = BuildConfig(compute_capabilities=("8.9",))
    single = build_engine(exported.bundle / "scorer.onnx", config, rtx)
    assert set(single.products) == {"FLOAT"}
    model = onnx.load(exported.bundle / "scorer.onnx")
    islands = [island for island in islands_on_record(exported.name) or [] if island in islands_of(model)]
    onnx.save(half_precision(model, islands), tmp_path / "half.onnx")
    half = build_engine(tmp_path / "half.onnx", config, rtx)
    assert sum(half.products.values()) == sum(single.products.values())
    halves = set(islands_of(model)) - set(islands)
    assert ("HALF" in half.products) == any(island.endswith((":products", ":recurrence")) for island in halves)
    assert len(single.memory_bytes) == len(half.memory_bytes) == len(PROFILES)
    assert 0 < max(half.memory_bytes) <= max(single.memory_bytes) < 8e9


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("dsnet_ab", {"cls": ["batch", "time", 2], "loc": ["batch", "time", 2, 2]}),
        ("dsnet_af", {"cls": ["batch", "time"], "loc": ["batch", "time", 2], "ctr": ["batch", "time"]}),
    ],
)
def test_a_bundle_of_proposals_summarizes_and_is_evaluated(
    name: str, outputs: dict[str, Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"anchor_scales": [3, 8]} if name == "dsnet_ab" else {}
    made = checkpoint(tmp_path / "model.safetensors", name=name, feature_dim=D, nms_thresh=0.3, **options)
    out = tmp_path / "bundle"
    assert cli.main(["--checkpoint", str(made), "--out", str(out)]) == 0
    video = np.random.default_rng(3).random((40, D), dtype=np.float32)
    with Summarizer(out) as summarizer:
        manifest = summarizer.bundle.manifest
        assert (manifest["model"]["output"], manifest["graph"]["outputs"]) == ("proposals", outputs)
        assert manifest["decoder"] == {"anchor_widths": options.get("anchor_scales", []), "iou_threshold": 0.3}
        assert max(manifest["parity"]["steps_apart"].values()) <= 0.01
        summary = summarizer.summarize_features(video)
    assert len(summary.chosen) > 0
    for score in (score_with_bundle(out, [video]), score_with_checkpoint(made, [video])):
        np.testing.assert_allclose(score[2][0], summary.scores, atol=1e-5)


def test_a_gate_that_decodes_other_scores_leaves_no_bundle(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = checkpoint(tmp_path / "model.safetensors", name="dsnet_af", feature_dim=D)
    monkeypatch.setattr("vsum_runtime.export.parity.STEPS_APART", -1.0)
    assert cli.main(["--checkpoint", str(made), "--out", str(tmp_path / "bundle")]) == 1
    assert "decoded scores of ONNX Runtime and PyTorch differ at 0.0% of the steps" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
