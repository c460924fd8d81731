"""PyTorch model in, ONNX file out, with free batch and time axes.

``torch.export`` is called here and not left to the ONNX exporter: when a dimension turns out to be constant, the
exporter repairs the request and freezes the axis without a word, while ``torch.export`` raises.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from runtime.bundle import example_features
from runtime.errors import ExportError

OPSET = 18
_EXAMPLE_LENGTHS = (37, 52)  # a batch of 1 and a length of 1 tend to be taken as constants


class ScorerGraph(nn.Module):
    """What becomes the graph: raw features, normalised as in training, through the model."""

    def __init__(self, model: nn.Module, feature_norm: str) -> None:
        super().__init__()
        self.model = model
        self.l2 = feature_norm == "l2"

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        if self.l2:
            norms = torch.linalg.vector_norm(features, dim=2, keepdim=True)
            features = features / norms.clamp(min=1e-12)
        scores: Tensor = self.model(features, lengths)
        return scores


def scorer_onnx(graph: nn.Module, feature_dim: int, path: Path) -> None:
    """Write the scorer: ``features`` [batch, time, D], ``lengths`` [batch] -> ``scores`` [batch, time].

    Raises
    ------
    ExportError   the model cannot be exported with free axes, and where it is stuck
    """
    features, lengths = example_features(feature_dim, _EXAMPLE_LENGTHS)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    _write(
        graph,
        {"features": torch.from_numpy(features), "lengths": torch.from_numpy(lengths)},
        {"features": {0: batch, 1: time}, "lengths": {0: batch}},
        {"scores": ("batch", "time")},
        path,
    )


def network_onnx(network: nn.Module, height: int, width: int, feature_dim: int, path: Path) -> None:
    """Write a feature network: ``images`` [batch, 3, H, W] -> ``features`` [batch, D]."""
    _write(
        network,
        {"images": torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))},
        {"images": {0: torch.export.Dim("batch")}},
        {"features": ("batch", feature_dim)},
        path,
    )


def _write(
    module: nn.Module,
    example: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, Any]],
    outputs: Mapping[str, tuple[str | int, ...]],
    path: Path,
) -> None:
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.export.export(
                module, args=(), kwargs=dict(example), dynamic_shapes={k: dict(v) for k, v in dynamic.items()}
            )
            exported = torch.onnx.export(
                program,
                input_names=list(example),
                output_names=list(outputs),
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
        assert exported is not None
        model = exported.model_proto
    except Exception as error:
        raise ExportError(f"{type(module).__name__} cannot be exported with free axes: {error}") from error
    for value in model.graph.output:
        for axis, dim in zip(outputs[value.name], value.type.tensor_type.shape.dim, strict=True):
            # The exporter names a computed axis by its formula; a frozen one stays a number for the gate to find.
            if isinstance(axis, str) and dim.dim_param:
                dim.dim_param = axis
    onnx.save(model, path)
