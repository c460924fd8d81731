"""The checkpoint file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training import checkpoint, models
from vsum_runtime.training.checkpoint import (
    load_checkpoint,
    load_model,
    load_training,
    read_metadata,
    save_checkpoint,
    save_training,
)

METADATA: dict[str, Any] = {
    "model": "pgl_sum",
    "options": {"heads": 2, "num_segments": 2},
    "feature_dim": 16,
    "feature_norm": "l2",
    "dataset": {"name": "made_up", "sha256": "0" * 64, "recipe": ""},
    "splits": None,
    "split": None,
    "seed": 5,
    "epoch": 3,
    "selection": {"rule": "last", "value": None},
}


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("pgl_sum", feature_dim=16, **METADATA["options"])


def test_weights_and_metadata_come_back(model: torch.nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", model, METADATA)
    weights, metadata = load_checkpoint(tmp_path / "c.safetensors")
    assert metadata == {"format": "vsum-checkpoint", "format_version": 1, **METADATA}
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_all_metadata_are_json_under_one_key(model: torch.nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", model, METADATA)
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["vsum"]
        assert json.loads(file.metadata()["vsum"])["model"] == "pgl_sum"


def test_the_model_of_a_checkpoint_gives_the_same_scores(model: torch.nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", model, METADATA)
    loaded, _ = load_model(tmp_path / "c.safetensors")
    features = torch.rand(1, 9, 16)
    assert not loaded.training
    assert torch.equal(loaded(features, torch.tensor([9])), model.eval()(features, torch.tensor([9])))


def training(model: torch.nn.Module) -> tuple[torch.nn.ModuleDict, dict[str, torch.optim.Optimizer]]:
    """A scorer and a judge of it, each with its optimiser."""
    torch.manual_seed(7)
    networks = torch.nn.ModuleDict({"model": model, "judge": torch.nn.Linear(9, 1)})
    return networks, {
        "scorer": torch.optim.Adam(model.parameters(), lr=0.01),
        "judge": torch.optim.SGD(networks["judge"].parameters(), lr=0.01, momentum=0.9),
    }


def step(networks: torch.nn.ModuleDict, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """On made-up features, without dropout."""
    networks.eval()
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    features = torch.linspace(-1, 1, 9 * 16).reshape(1, 9, 16)
    networks["judge"](networks["model"](features, torch.tensor([9]))).square().sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()


def test_training_goes_on_as_if_never_saved(model: torch.nn.Module, tmp_path: Path) -> None:
    networks, optimizers = training(model)
    for _ in range(3):
        step(networks, optimizers)
    save_training(tmp_path / "c.safetensors", networks, optimizers, METADATA)
    step(networks, optimizers)

    again, fresh = training(models.build("pgl_sum", feature_dim=16, **METADATA["options"]))
    load_training(tmp_path / "c.safetensors", again, fresh)
    step(again, fresh)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in networks.state_dict().items())


def test_the_scorer_is_read_without_what_trained_it(model: torch.nn.Module, tmp_path: Path) -> None:
    networks, optimizers = training(model)
    step(networks, optimizers)
    save_training(tmp_path / "c.safetensors", networks, optimizers, METADATA)
    assert load_checkpoint(tmp_path / "c.safetensors")[0].keys() == model.state_dict().keys()
    assert load_model(tmp_path / "c.safetensors")[1]["epoch"] == 3


def test_a_failed_write_leaves_the_old_checkpoint(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, model, METADATA)
    before = path.read_bytes()

    def full_disk(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(VsumError, match="No space left on device"):
        save_checkpoint(path, model, METADATA | {"epoch": 4})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_another_model_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", model, METADATA | {"options": {"heads": 2, "num_segments": 4}})
    with pytest.raises(InputError, match="the weights do not fit"):
        load_model(tmp_path / "c.safetensors")


def test_what_is_no_checkpoint_is_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="cannot read it"):
        read_metadata(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot read it"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="another safetensors file"):
        load_checkpoint(path)
    save_checkpoint(path, model, METADATA)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot read it"):
        load_checkpoint(path)


def test_other_versions_and_missing_metadata_are_refused(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, model, {name: value for name, value in METADATA.items() if name != "epoch"})
    with pytest.raises(InputError, match="the metadata lack epoch"):
        load_checkpoint(path)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save_checkpoint(path, model, METADATA)
    monkeypatch.undo()
    with pytest.raises(InputError, match="expected checkpoint version 1, got 2"):
        load_checkpoint(path)
