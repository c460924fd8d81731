"""The gate every export passes: free axes are free, the graph is valid, and ONNX Runtime equals PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from runtime.backends import open_session
from runtime.backends.base import Session
from runtime.errors import ExportError

TOLERANCE = 1e-5
"""Largest allowed absolute difference of a score."""

GATE_LENGTHS: tuple[tuple[int, ...], ...] = (
    (1,),
    (4,),
    (5, 3, 1),
    (500,),
    (320, 211, 46, 1),
    (3000,),
)
"""Lengths of the videos in each batch that is compared: (1,1), (1,4), (3,5), (1,500), (4,320), (1,3000)."""


def check_scorer(path: Path, reference: nn.Module, feature_dim: int) -> dict[str, Any]:
    """Run the gate on a scorer graph.

    Every video of a padded batch, with random values in its padding, must get from ONNX Runtime what PyTorch gives
    that video alone.

    Returns
    -------
    dict   ``max_abs_difference`` per batch shape, ``tolerance``, ``backend``

    Raises
    ------
    ExportError   which check failed, by how much
    """
    check_axes(path, {"features": ("batch", "time", feature_dim), "lengths": ("batch",)}, {"scores": ("batch", "time")})
    rng = np.random.default_rng(0)
    session = open_session(path, "ort-cpu")
    differences = {}
    for lengths in GATE_LENGTHS:
        shape = f"{len(lengths)}x{max(lengths)}"
        differences[shape] = _difference(session, reference, lengths, feature_dim, rng)
        if not differences[shape] <= TOLERANCE:
            raise ExportError(
                f"{path.name}: ONNX Runtime and PyTorch differ by {differences[shape]:.2e} at batch x time {shape} "
                f"(lengths {lengths}); at most {TOLERANCE:.0e} is allowed"
            )
    session.close()
    return {
        "reference": "pytorch fp32",
        "max_abs_difference": differences,
        "tolerance": TOLERANCE,
        "backend": "ort-cpu",
    }


def check_network(path: Path, reference: nn.Module, height: int, width: int, feature_dim: int) -> dict[str, Any]:
    """Run the gate on a feature network, with features compared relative to the largest one."""
    check_axes(path, {"images": ("batch", 3, height, width)}, {"features": ("batch", feature_dim)})
    session = open_session(path, "ort-cpu")
    worst = 0.0
    for batch in (1, 3):
        images = np.random.default_rng(batch).standard_normal((batch, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = reference(torch.from_numpy(images)).numpy()
        worst = max(worst, float(np.abs(session.run({"images": images})[0] - expected).max() / np.abs(expected).max()))
    session.close()
    if not worst <= 1e-4:
        raise ExportError(f"{path.name}: ONNX Runtime and PyTorch differ by {worst:.2e} of the largest feature")
    return {"network_max_relative_difference": worst}


def check_axes(
    path: Path, inputs: Mapping[str, tuple[str | int, ...]], outputs: Mapping[str, tuple[str | int, ...]]
) -> None:
    """Raise ExportError unless the graph is valid and has exactly these axes, free where a name is given."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for declared, values in ((inputs, model.graph.input), (outputs, model.graph.output)):
        found = {
            value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in values
        }
        if found != dict(declared):
            raise ExportError(
                f"{path.name}: expected the axes {dict(declared)}, got {found}; a number is a frozen axis"
            )


def _difference(
    session: Session, reference: nn.Module, lengths: tuple[int, ...], feature_dim: int, rng: np.random.Generator
) -> float:
    features = _features(rng, len(lengths), max(lengths), feature_dim)
    scores = session.run({"features": features, "lengths": np.array(lengths, dtype=np.int64)})[0]
    worst = 0.0
    for row, n_steps in enumerate(lengths):
        with torch.no_grad():
            alone = reference(torch.from_numpy(features[row : row + 1, :n_steps]), torch.tensor([n_steps]))[0].numpy()
        worst = max(
            worst, float(np.abs(scores[row, :n_steps] - alone).max()), float(np.abs(scores[row, n_steps:]).sum())
        )
    return worst


def _features(rng: np.random.Generator, n_videos: int, n_steps: int, feature_dim: int) -> NDArray[np.float32]:
    """Non-negative rows of unit norm, like pooled network features."""
    rows = rng.gamma(0.5, size=(n_videos, n_steps, feature_dim))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return rows.astype(np.float32)
