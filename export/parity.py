"""The gate every export passes: free axes are free, the graph is valid, and ONNX Runtime equals PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from vsum_runtime.export.onnx_from_torch import ScorerGraph
from vsum_runtime.export.torch_session import TorchSession
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.runtime.proposals import decode

TOLERANCE = 1e-5
"""Largest allowed difference of an output: absolute, and relative where the output is above 1.

Of two runs in single precision neither is exact. Where they differ by more, the same model in double precision is the
judge, from which ONNX Runtime may not differ by more either."""

STEPS_APART = 0.01
"""Largest allowed share of steps whose decoded scores differ by more than that: an end of a proposal that lies between
two steps up to the last bit may be rounded either way."""

GATE_LENGTHS: tuple[tuple[int, ...], ...] = (
    (1,),
    (4,),
    (5, 3, 1),
    (500,),
    (320, 211, 46, 1),
    (3000,),
)
"""Lengths of the videos in each batch that is compared: (1,1), (1,4), (3,5), (1,500), (4,320), (1,3000)."""


def check_scorer(path: Path, reference: ScorerGraph, feature_dim: int) -> dict[str, Any]:
    """Run the gate on a scorer graph.

    Every video of a padded batch, with random values in its padding, must get from ONNX Runtime what PyTorch gives
    that video alone. Proposals are compared as the network gives them, and again as the scores they are decoded to.

    Returns
    -------
    dict
        ``max_abs_difference`` per batch shape, ``tolerance``, ``backend``; where double precision had to judge,
    ``max_abs_difference_from_fp64``; with proposals also ``steps_apart``

    Raises
    ------
    ExportError
        which check failed, by how much
    """
    check_axes(path, {"features": ("batch", "time", feature_dim), "lengths": ("batch",)}, reference.outputs)
    rng = np.random.default_rng(0)
    session = open_session(path, "ort-cpu")
    differences, apart, judged = {}, {}, {}
    for lengths in GATE_LENGTHS:
        shape = f"{len(lengths)}x{max(lengths)}"
        features = _features(rng, len(lengths), max(lengths), feature_dim)
        differences[shape], apart[shape] = _difference(session, reference, features, lengths)
        if not differences[shape] <= TOLERANCE:
            judged[shape], _ = _difference(session, copy.deepcopy(reference).double(), features, lengths, np.float64)
            if not judged[shape] <= TOLERANCE:
                raise ExportError(
                    f"{path.name}: ONNX Runtime and PyTorch differ by {differences[shape]:.2e} at batch x time {shape} "
                    f"(lengths {lengths}), and by {judged[shape]:.2e} where PyTorch has double precision; at most "
                    f"{TOLERANCE:.0e} is allowed"
                )
        if apart[shape] > STEPS_APART:
            raise ExportError(
                f"{path.name}: decoded scores of ONNX Runtime and PyTorch differ at {apart[shape]:.1%} of the steps "
                f"of batch x time {shape}; at most {STEPS_APART:.0%} is allowed"
            )
    session.close()
    measured = {
        "reference": "pytorch fp32",
        "max_abs_difference": differences,
        "tolerance": TOLERANCE,
        "backend": "ort-cpu",
    }
    if judged:
        measured["max_abs_difference_from_fp64"] = judged
    return measured if reference.decoder is None else measured | {"steps_apart": apart}


def largest_difference(measured: Mapping[str, Any]) -> float:
    """What ``check_scorer`` measured, in one number: from the reference that judged each shape."""
    judged = {**measured["max_abs_difference"], **measured.get("max_abs_difference_from_fp64", {})}
    return float(max(judged.values()))


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
    session: Session,
    reference: ScorerGraph,
    features: NDArray[np.float32],
    lengths: tuple[int, ...],
    precision: type[np.floating[Any]] = np.float32,
) -> tuple[float, float]:
    """The largest difference of any output, and the share of steps whose decoded scores differ."""
    found = session.run({"features": features, "lengths": np.array(lengths, dtype=np.int64)})
    expected = TorchSession(reference)
    worst, apart = 0.0, 0
    for row, n_steps in enumerate(lengths):
        video = {"features": features[row : row + 1, :n_steps].astype(precision), "lengths": np.array([n_steps])}
        alone = [output[0] for output in expected.run(video)]
        unpadded = [output[row, :n_steps] for output in found]
        for ours, theirs in zip(unpadded, alone, strict=True):
            worst = max(worst, float((np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))).max()))
        worst = max(worst, *(float(np.abs(output[row, n_steps:]).sum()) for output in found))
        if reference.decoder is not None:
            decoded = decode(reference.decoder, *unpadded).scores - decode(reference.decoder, *alone).scores
            apart += int((np.abs(decoded) > TOLERANCE).sum())
    return worst, apart / sum(lengths)


def _features(rng: np.random.Generator, n_videos: int, n_steps: int, feature_dim: int) -> NDArray[np.float32]:
    """Non-negative rows of unit norm, like pooled network features."""
    rows = rng.gamma(0.5, size=(n_videos, n_steps, feature_dim))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return rows.astype(np.float32)
