"""The main path of export: load a checkpoint, write its graphs, prove them, write the bundle."""

from __future__ import annotations

import logging
import platform
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from vsum_runtime.export.half_precision import find_islands, half_precision, islands_of, islands_on_record
from vsum_runtime.export.in_blocks import in_blocks
from vsum_runtime.export.memory import LONG_LENGTHS, memory_bytes
from vsum_runtime.export.onnx_from_torch import OPSET, ScorerGraph, network_onnx, scorer_onnx
from vsum_runtime.export.parity import check_network, check_scorer
from vsum_runtime.export.precision_gate import LIMIT, Gate, dataset_probes, example_probes, failures
from vsum_runtime.export.quantized_onnx import int8
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.calls import score
from vsum_runtime.runtime.errors import ExportError, InputError
from vsum_runtime.runtime.proposals import Decoder
from vsum_runtime.runtime.recipe import Recipe
from vsum_runtime.training.backbones import load_backbone
from vsum_runtime.training.checkpoint import load_model

log = logging.getLogger(__name__)

BACKBONE_OF_DIM = {1280: "efficientnet_lite0", 1024: "googlenet"}
"""Feature size -> the feature network that ``features="auto"`` puts into the bundle."""

LONG_ABOVE_STEPS = 1500
"""Longer videos are scored in blocks of queries on a CPU: up to here one product for all of them is quicker."""

_EXAMPLE_LENGTHS = (7, 3)
_RECURRENT_BATCH_TOKENS = 4096
_DIGEST = re.compile(r"\b[0-9a-f]{64}$")  # how the recipe of a file from vsum-features ends; others are free text
_RECORD = ("dataset", "splits", "split", "train_keys", "validation_keys", "seed", "epoch", "selection", "config")


@dataclass(frozen=True)
class ExportConfig:
    """One export."""

    checkpoint: Path
    """File that vsum-train wrote."""
    out: Path
    """Bundle directory to write."""
    precision: str = "fp32"
    """"fp16" adds the graph in half precision, for GPUs; the CPU keeps taking the float32 one. "int8" quantizes the
    graph: the bundle is then one for CPUs."""
    auto_precision: bool = False
    """Search the islands this model needs in float32, even where there are some on record for its architecture."""
    measure_on: Path | None = None
    """HDF5 file of features to compare precisions on; None: made-up features."""
    features: str = "auto"
    """Feature network to include: a name, "none", or "auto" by the model's feature size."""
    weights: Path | None = None
    """File of the feature network's published weights; None: from the package that ships it, or the internet."""


def export(config: ExportConfig) -> bundles.Bundle:
    """Turn a checkpoint into a bundle that has passed the parity gate.

    Raises
    ------
    InputError
        the checkpoint is not one, or belongs to another model
    ExportError
        a step failed, or parity was not reached; no bundle is left
    """
    model, meta = load_model(config.checkpoint)
    feature_dim = int(meta["feature_dim"])
    graph = ScorerGraph(model, meta["feature_norm"])
    backbone = BACKBONE_OF_DIM.get(feature_dim, "none") if config.features == "auto" else config.features

    if config.weights is not None and backbone == "none":
        raise InputError(
            f"weights: are those of a feature network, and this export has none (features of {feature_dim} values); "
            f"name one: --features {' or '.join(BACKBONE_OF_DIM.values())}"
        )
    with tempfile.TemporaryDirectory() as folder:
        files, parity, recipe = {}, {}, None
        if backbone != "none":
            network, found = load_backbone(backbone, weights=config.weights)
            if found.feature_dim != feature_dim:
                raise InputError(
                    f"features {backbone!r}: gives {found.feature_dim} values, the model takes {feature_dim}; "
                    'choose another, or "none"'
                )
            _warn_of_another_recipe(meta, found)
            files[found.network] = Path(folder) / found.network
            network_onnx(network, found.height, found.width, feature_dim, files[found.network])
            parity = check_network(files[found.network], network, found.height, found.width, feature_dim)
            recipe = found.to_dict()
        files["scorer.onnx"] = Path(folder) / "scorer.onnx"
        scorer_onnx(graph, feature_dim, files["scorer.onnx"])
        parity |= check_scorer(files["scorer.onnx"], graph, feature_dim)
        single = files["scorer.onnx"]
        if config.precision == "int8":
            files["scorer.onnx"] = Path(folder) / "scorer.int8.onnx"
            parity["int8"] = _int8(config, meta, graph.decoder, single, files["scorer.onnx"])
        manifest: dict[str, Any] = {
            "model": {
                "architecture": meta["model"],
                "options": meta["options"],
                "feature_dim": feature_dim,
                "output": model.output,
            },
            "graph": {
                "file": "scorer.onnx",
                "precision": "int8" if config.precision == "int8" else "fp32",
                "memory_bytes": memory_bytes(files["scorer.onnx"], feature_dim),
                "batch_tokens": batch_tokens(files["scorer.onnx"]),
                "opset": OPSET,
                "inputs": {"features": ["batch", "time", feature_dim], "lengths": ["batch"]},
                "outputs": {name: list(axes) for name, axes in graph.outputs.items()},
            },
            "features": recipe,
            "example": _example(files["scorer.onnx"], feature_dim, graph.decoder),
            "parity": parity,
            "training": {key: meta.get(key) for key in _RECORD},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        }
        if (blocked := in_blocks(onnx.load(single))) is not None:
            files["scorer.long.onnx"] = Path(folder) / "scorer.long.onnx"
            onnx.save(blocked, files["scorer.long.onnx"])
            manifest["graph"]["long"] = {
                "file": "scorer.long.onnx",
                "above_steps": LONG_ABOVE_STEPS,
                "parity": check_scorer(files["scorer.long.onnx"], graph, feature_dim),
                "memory_bytes": memory_bytes(files["scorer.long.onnx"], feature_dim, LONG_LENGTHS),
            }
        if config.precision == "fp16":
            files["scorer.fp16.onnx"] = Path(folder) / "scorer.fp16.onnx"
            manifest["half"] = _half(config, meta, graph.decoder, files["scorer.onnx"], files["scorer.fp16.onnx"])
        if graph.decoder is not None:
            manifest["decoder"] = graph.decoder.to_dict()
        return bundles.write(config.out, manifest, files)


def batch_tokens(graph: Path) -> int:
    """Padded steps worth scoring in one call on any backend; 1 where that depends on the backend.

    A recurrent network reads its weights once for each step of a call, however many videos have that step: four videos
    a call take half the time of one a call. More gain nothing, and others lose to the padding.
    """
    recurrent = any(node.op_type == "LSTM" for node in onnx.load(graph).graph.node)
    return _RECURRENT_BATCH_TOKENS if recurrent else 1


def _warn_of_another_recipe(meta: dict[str, Any], recipe: Recipe) -> None:
    learned = str((meta.get("dataset") or {}).get("recipe") or "")
    if _DIGEST.search(learned) and not learned.endswith(recipe.digest):
        log.warning(
            "the model learned from features of the recipe %s, the bundle's network makes those of %s: scores of "
            "videos may mean little; train on features that vsum-features extracts by the bundle's recipe",
            learned,
            f"{recipe.name} {recipe.digest}",
        )


def _half(
    config: ExportConfig, meta: dict[str, Any], decoder: Decoder | None, single: Path, path: Path
) -> dict[str, Any]:
    """Write the half-precision graph and prove it; its entry of the manifest."""
    gate, model = _gate(config, meta, decoder, single), onnx.load(single)
    islands = None if config.auto_precision else islands_on_record(meta["model"])
    if islands is None:
        islands = find_islands(model, gate.passes)
    else:  # options may leave a part out
        islands = [island for island in islands if island in islands_of(model)]
    onnx.save(half_precision(model, islands), path)
    measured = {**gate.check(path), **_measured_on(config)}
    return {"file": path.name, "precision": "fp16", "islands": islands, "parity": measured}


def _int8(
    config: ExportConfig, meta: dict[str, Any], decoder: Decoder | None, single: Path, path: Path
) -> dict[str, Any]:
    """Write the quantized graph and prove it; what was measured."""
    int8(single, path)
    session = open_session(path, "ort-cpu")
    measured = _gate(config, meta, decoder, single).measure(session)
    session.close()
    if problems := failures(measured, LIMIT):
        raise ExportError(f"int8 is not equal enough to float32: {'; '.join(problems)}; export this model in fp32")
    return {"reference": "onnx fp32", "limit": LIMIT, "backend": "ort-cpu", **measured, **_measured_on(config)}


def _gate(config: ExportConfig, meta: dict[str, Any], decoder: Decoder | None, single: Path) -> Gate:
    feature_dim = int(meta["feature_dim"])
    if config.measure_on is None:
        return Gate(single, example_probes(feature_dim), decoder)
    learned_from = {*(meta.get("train_keys") or ()), *(meta.get("validation_keys") or ())}
    return Gate(single, dataset_probes(config.measure_on, feature_dim, learned_from), decoder)


def _measured_on(config: ExportConfig) -> dict[str, str]:
    return {"on": "example" if config.measure_on is None else config.measure_on.name}


def _example(graph: Path, feature_dim: int, decoder: Decoder | None) -> dict[str, Any]:
    features, lengths = bundles.example_features(feature_dim, _EXAMPLE_LENGTHS)
    session = open_session(graph, "ort-cpu")
    scores = score(session, [features[video, :n_steps] for video, n_steps in enumerate(lengths)], decoder)
    session.close()
    return {"lengths": lengths.tolist(), "scores": [np.round(each.astype(float), 7).tolist() for each in scores]}
