"""DSNet: attention over the whole video, then proposals of segments, with anchors of given widths or without.

Source: Zhu et al., "DSNet: A Flexible Detect-to-Summarize Network for Video Summarization", IEEE TIP 2021. What becomes
of a network's outputs is in ``runtime/proposals.py``; ``proposals`` does it for a model of this file.

Departures from the authors' code, none of which changes an output: videos come in padded batches; the mean over an
anchor is taken behind the linear layer that follows it, where a step has 128 numbers and not 1024. Of the authors'
choices of trunk only the attention is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.proposals import Decoder, Proposals, decode
from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, real, whole

_DROPOUT = 0.5
_MASKED = -1e9


class AnchorOutputs(NamedTuple):
    """What ``DSNetAB`` gives; 0 in the padding."""

    cls: Tensor
    """[B, T, A] confidence of each anchor, in (0, 1)."""
    loc: Tensor
    """[B, T, A, 2] shift of the anchor's centre in widths, logarithm of its stretch."""


class FreeOutputs(NamedTuple):
    """What ``DSNetAF`` gives; 0 in the padding."""

    cls: Tensor
    """[B, T] confidence of each step, in (0, 1)."""
    loc: Tensor
    """[B, T, 2] steps to the left and to the right end of the segment, > 0."""
    ctr: Tensor
    """[B, T] nearness to the middle of the segment, in (0, 1)."""


class DSNetAB(nn.Module):
    """Anchor-based: features float32 [B, T, D], lengths int64 [B] -> ``AnchorOutputs``.

    Parameters
    ----------
    feature_dim : int
        D, a multiple of ``num_head``
    base_model : str
        "attention"
    num_hidden : int
        width of the layer that the three outputs share
    num_head : int
        attention heads
    anchor_scales             widths of the A anchors of a step, each >= 1 step
    nms_thresh : float
        see ``runtime.proposals.Decoder``
    """

    output = "proposals"
    card = Card("supervised", "DSNet, IEEE TIP", 2021, "MIT")

    def __init__(
        self,
        feature_dim: int,
        *,
        base_model: str = "attention",
        num_hidden: int = 128,
        num_head: int = 8,
        anchor_scales: Sequence[int] = (4, 8, 16, 32),
        nms_thresh: float = 0.5,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.base_model = choice("base_model", base_model, ("attention",))
        self.num_hidden = width = whole("num_hidden", num_hidden, least=1)
        self.num_head = whole("num_head", num_head, least=1)
        self.anchor_scales = [whole("anchor_scales", scale, least=1) for scale in anchor_scales]
        self.nms_thresh = real("nms_thresh", nms_thresh, least=1e-6, most=1)
        if not self.anchor_scales:
            raise InputError("anchor_scales: expected at least one width, got none")
        n_anchors = len(self.anchor_scales)
        self.output_axes = {"cls": ("batch", "time", n_anchors), "loc": ("batch", "time", n_anchors, 2)}
        self.decoder = Decoder(tuple(self.anchor_scales), self.nms_thresh)

        self.trunk = _Trunk(feature_dim, self.num_head)
        self.fc1 = nn.Sequential(nn.Linear(feature_dim, width), nn.Tanh(), nn.Dropout(_DROPOUT), nn.LayerNorm(width))
        self.fc_cls = nn.Linear(width, 1)
        self.fc_loc = nn.Linear(width, 2)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, math.sqrt(2))
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, 0.1)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> AnchorOutputs:
        x = self.trunk(features, lengths)
        first: Any = self.fc1[0]
        projected = F.linear(x, first.weight).mT  # [B, num_hidden, T], 0 in the padding
        # The window of step t starts at t - width // 2; steps outside the video count as zeros.
        means = [F.avg_pool1d(F.pad(projected, (k // 2, k - 1 - k // 2)), k, stride=1) for k in self.anchor_scales]
        hidden = self.fc1[1:](torch.stack(means, dim=1).permute(0, 3, 1, 2) + first.bias)
        padding = ~valid(lengths, features.shape[1])[..., None]
        cls = torch.sigmoid(self.fc_cls(hidden)).squeeze(-1).masked_fill(padding, 0.0)
        return AnchorOutputs(cls, self.fc_loc(hidden).masked_fill(padding[..., None], 0.0))

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return _without_trunk(tensors)

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}


class DSNetAF(nn.Module):
    """Anchor-free: features float32 [B, T, D], lengths int64 [B] -> ``FreeOutputs``.

    Parameters are those of ``DSNetAB``, without anchors.
    """

    output = "proposals"
    card = Card("supervised", "DSNet, IEEE TIP", 2021, "MIT")

    def __init__(
        self,
        feature_dim: int,
        *,
        base_model: str = "attention",
        num_hidden: int = 128,
        num_head: int = 8,
        nms_thresh: float = 0.4,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.base_model = choice("base_model", base_model, ("attention",))
        self.num_hidden = width = whole("num_hidden", num_hidden, least=1)
        self.num_head = whole("num_head", num_head, least=1)
        self.nms_thresh = real("nms_thresh", nms_thresh, least=1e-6, most=1)
        self.output_axes = {"cls": ("batch", "time"), "loc": ("batch", "time", 2), "ctr": ("batch", "time")}
        self.decoder = Decoder((), self.nms_thresh)

        self.trunk = _Trunk(feature_dim, self.num_head)
        self.fc1 = nn.Sequential(nn.Linear(feature_dim, width), nn.ReLU(), nn.Dropout(_DROPOUT), nn.LayerNorm(width))
        self.fc_cls = nn.Linear(width, 1)
        self.fc_loc = nn.Linear(width, 2)
        self.fc_ctr = nn.Linear(width, 1)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> FreeOutputs:
        hidden = self.fc1(self.trunk(features, lengths))
        padding = ~valid(lengths, features.shape[1])[..., None]
        cls, loc, ctr = (
            torch.sigmoid(self.fc_cls(hidden)),
            torch.exp(self.fc_loc(hidden)),
            torch.sigmoid(self.fc_ctr(hidden)),
        )
        cls, loc, ctr = (output.masked_fill(padding, 0.0) for output in (cls, loc, ctr))
        return FreeOutputs(cls.squeeze(-1), loc, ctr.squeeze(-1))

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return _without_trunk(tensors)

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}


def proposals(model: DSNetAB | DSNetAF, features: Tensor, lengths: Tensor) -> list[Proposals]:
    """Each video's proposals and the step scores [T] they make; no gradient."""
    with torch.no_grad():
        outputs = [output.cpu().numpy() for output in model(features, lengths)]
    return [
        decode(model.decoder, *(output[video, :n_steps] for output in outputs))
        for video, n_steps in enumerate(lengths.tolist())
    ]


class _Trunk(nn.Module):
    """Self-attention of H heads over all steps, a skip, a norm: [B, T, D] -> [B, T, D], 0 in the padding."""

    def __init__(self, feature_dim: int, heads: int) -> None:
        super().__init__()
        if feature_dim % heads:
            raise InputError(f"num_head: expected a divisor of the feature size {feature_dim}, got {heads}")
        self.heads = heads
        self.base_model = nn.ModuleDict({name: nn.Linear(feature_dim, feature_dim, bias=False) for name in "QKV"})
        self.base_model["fc"] = nn.Sequential(nn.Linear(feature_dim, feature_dim, bias=False), nn.Dropout(_DROPOUT))
        self.layer_norm = nn.LayerNorm(feature_dim)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.layer_norm.normalized_shape[0], self.layer_norm.weight.dtype)
        steps = valid(lengths, features.shape[1])
        x = features.masked_fill(~steps[..., None], 0.0)
        query, key, value = (self.base_model[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in "QKV")
        dropout = _DROPOUT if self.training else 0.0
        # A number to add: a Boolean mask becomes three more passes over all pairs of steps when exported.
        mask = torch.zeros_like(x[..., 0]).masked_fill(~steps, _MASKED)[:, None, None]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        y = self.layer_norm(self.base_model["fc"](y.transpose(1, 2).flatten(2)) + x)
        return y.masked_fill(~steps[..., None], 0.0)


def _without_trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our parameter names -> by the authors', which have the trunk's parts at the top."""
    return {name.removeprefix("trunk."): tensor for name, tensor in tensors.items()}
