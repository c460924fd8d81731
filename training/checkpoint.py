"""Checkpoints: a safetensors file with the weights, how they were made and, optionally, what a resumed run needs.

Tensors are the model's ``state_dict``. The one metadata entry ``vsum`` is a JSON object::

    {"format": "vsum-checkpoint", "format_version": 1, "model": "csta", "options": {...}, "feature_dim": 1280,
     "feature_norm": "none" | "l2", "dataset": {"name", "sha256", "recipe"}, "splits": {"name", "sha256"} | null,
     "split": 1 | null, "train_keys": [...], "validation_keys": [...], "seed": 0, "epoch": 12,
     "selection": {"rule": "...", "value": 0.2}, "config": {...}, "versions": {...}}

``splits`` and ``split`` are null where a model learned from the whole data set. The newest checkpoint of a run also
holds the other networks that are trained, as ``network/<name>/<tensor>``, the optimisers' states, as
``optimizer/<name>/<parameter>/<entry>``, and the ``log`` of all epochs. Random numbers need no state: every epoch
starts its generators from (seed, epoch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import models

FORMAT = "vsum-checkpoint"
FORMAT_VERSION = 1
_REQUIRED = (
    "model",
    "options",
    "feature_dim",
    "feature_norm",
    "dataset",
    "splits",
    "split",
    "seed",
    "epoch",
    "selection",
)
_NETWORK, _OPTIMIZER = "network/", "optimizer/"

Optimizers = Mapping[str, torch.optim.Optimizer]


def save_checkpoint(path: Path, model: torch.nn.Module, metadata: dict[str, Any]) -> None:
    """Write a checkpoint of a model, whole or not at all."""
    _save(path, dict(model.state_dict()), metadata)


def save_training(path: Path, networks: torch.nn.ModuleDict, optimizers: Optimizers, metadata: dict[str, Any]) -> None:
    """Write a checkpoint that a run can resume from: the networks, with the scorer as "model", and the optimisers."""
    tensors = dict(networks["model"].state_dict())
    for name, network in networks.items():
        if name != "model":
            tensors |= {f"{_NETWORK}{name}/{key}": tensor for key, tensor in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        parameters = _parameters(networks, optimizer)
        for index, entries in optimizer.state_dict()["state"].items():
            place = f"{_OPTIMIZER}{name}/{parameters[index]}"
            tensors |= {f"{place}/{entry}": value for entry, value in entries.items() if value is not None}
    _save(path, tensors, metadata)


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"vsum": json.dumps(whole)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the weights and the metadata of a checkpoint.

    Raises
    ------
    InputError
        not a safetensors file, not made by vsum-train, or of a version this code does not read
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith((_NETWORK, _OPTIMIZER))]  # noqa: SIM118 (not a dict)
        return {name: file.get_tensor(name) for name in names}, metadata


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a checkpoint without its tensors; raises as ``load_checkpoint``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("vsum", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: expected a checkpoint of vsum-train, cannot read it: {error}") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint of vsum-train, got another safetensors file")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected checkpoint version {FORMAT_VERSION}, got {metadata.get('format_version')!r}; "
            "use the version of vsum-runtime that wrote it"
        )
    if absent := [name for name in _REQUIRED if name not in metadata]:
        raise InputError(f"{path}: the metadata lack {', '.join(absent)}; train the model again")
    return metadata


def load_model(path: str | Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the metadata."""
    weights, metadata = load_checkpoint(path)
    model = models.build(metadata["model"], feature_dim=metadata["feature_dim"], **metadata["options"])
    load_weights(model, weights, source=path)
    return model.eval(), metadata


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], *, source: str | Path) -> None:
    """Load weights into a model; those of another model or of other options raise InputError."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differing := [name for name in sorted(shapes.keys() | stored.keys()) if shapes.get(name) != stored.get(name)]:
        examples = ", ".join(
            f"{name} {shapes.get(name, 'absent')} but {stored.get(name, 'absent')}" for name in differing[:3]
        )
        raise InputError(
            f"{source}: the weights do not fit the model they name: {len(differing)} of {len(shapes)} entries differ "
            f"(model but file: {examples}); they are of another model, other options or another version: train it again"
        )
    model.load_state_dict(weights)


def load_training(path: Path, networks: torch.nn.ModuleDict, optimizers: Optimizers) -> None:
    """Load what ``save_training`` wrote into new networks and optimisers."""
    load_weights(networks["model"], load_checkpoint(path)[0], source=path)
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())

        def below(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys if key.startswith(prefix)}

        for name, network in networks.items():
            if name != "model":
                network.load_state_dict(below(f"{_NETWORK}{name}/"))
        for name, optimizer in optimizers.items():
            parameters = _parameters(networks, optimizer)
            state = {index: below(f"{_OPTIMIZER}{name}/{parameter}/") for index, parameter in enumerate(parameters)}
            filled = {index: entries for index, entries in state.items() if entries}
            optimizer.load_state_dict({"state": filled, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(networks: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimiser's parameters, in its own order."""
    names = {parameter: name for name, parameter in networks.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
