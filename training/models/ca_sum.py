"""CA-SUM: attention kept inside blocks of steps, strengthened by how unlike and how attended the rest of the video is.

Source: Apostolidis et al., "Summarizing Videos using Concentrated Attention and Considering the Uniqueness and
Diversity of the Video Frames", ICMR 2022.

Departures from the authors' code: videos come in padded batches; where no step outside the block differs from a step,
its share of attention outside, 0 / 0, is read as 0, so that videos of 60 steps or fewer have scores; two steps are
equal where their cosine is 1 as far as float32 can tell.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.folding import product
from vsum_runtime.training.models.options import chosen, whole

_DROPOUT = 0.5
_MASKED = -1e9  # finite, as its product with a weight of 0 enters the entropy
_EQUAL = 1e-6  # two equal frames have a computed dissimilarity of this size, of either sign


class CASum(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    output_size : int
        width of the attention; None: D
    block_size : int
        steps in a block, >= 1
    """

    output = "scores"
    card = Card("unsupervised", "CA-SUM, ICMR", 2022, "academic, non-commercial")

    def __init__(self, feature_dim: int, *, output_size: int | None = None, block_size: int = 60) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.output_size = width = whole("output_size", output_size, feature_dim, least=1)
        self.block_size = whole("block_size", block_size, least=1)

        self.attention = _Attention(feature_dim, width, self.block_size)
        self.linear_1 = nn.Linear(feature_dim, feature_dim)
        self.linear_2 = nn.Linear(feature_dim, 1)
        self.norm_y = nn.LayerNorm(feature_dim, eps=1e-6)
        self.norm_linear = nn.LayerNorm(feature_dim, eps=1e-6)
        self.dropout = nn.Dropout(_DROPOUT)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)
            elif "norm" not in name:
                nn.init.xavier_uniform_(parameter, math.sqrt(2))

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.linear_1.weight.dtype)
        steps = valid(lengths, features.shape[1])
        x = features.masked_fill(~steps.unsqueeze(-1), 0.0)
        y = self.norm_y(self.dropout(self.attention(x, steps, lengths) + x))
        y = self.norm_linear(self.dropout(F.relu(self.linear_1(y))))
        return torch.sigmoid(self.linear_2(y)).squeeze(-1).masked_fill(~steps, 0.0)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters have the authors' names."""
        return dict(tensors)

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}


class _Attention(nn.ModuleDict):
    """x [B, T, D], 0 past lengths int64 [B], and steps bool [B, T], False there -> [B, T, D]."""

    def __init__(self, feature_dim: int, width: int, block_size: int) -> None:
        super().__init__({name: nn.Linear(feature_dim, width, bias=False) for name in ("Wk", "Wq", "Wv")})
        self["out"] = nn.Linear(width + 2, feature_dim, bias=False)
        self.block_size = block_size

    def forward(self, x: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
        energies = self["Wq"](x) @ self["Wk"](x).mT
        concentrated, columns = _attend(energies, self["Wv"](x), x, steps, lengths, self.block_size)
        return self["out"](torch.cat((concentrated, columns), dim=-1))

    def folded(self) -> nn.Module:
        """The same with two large matrices instead of four: energies are x Q'K x', and values may be mapped first."""
        layers: Any = self
        width, feature_dim = layers["Wv"].weight.shape
        if 2 * width < feature_dim:
            return self
        out = layers["out"].weight
        return _FoldedAttention(
            product(layers["Wk"].weight.mT, layers["Wq"].weight),
            product(out[:, :width], layers["Wv"].weight),
            product(out[:, width:]),
            self.block_size,
        )


class _FoldedAttention(nn.Module):
    """``_Attention`` for inference."""

    def __init__(self, query: nn.Linear, value: nn.Linear, columns: nn.Linear, block_size: int) -> None:
        super().__init__()
        self.query, self.value, self.columns, self.block_size = query, value, columns, block_size

    def forward(self, x: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
        energies = self.query(x) @ x.mT
        concentrated, columns = _attend(energies, self.value(x), x, steps, lengths, self.block_size)
        return concentrated + self.columns(columns)


def _attend(
    energies: Tensor, values: Tensor, x: Tensor, steps: Tensor, lengths: Tensor, block_size: int
) -> tuple[Tensor, Tensor]:
    """Energies [B, T, T], values [B, T, W] -> what each step gathers of the values, and its two columns [B, T, 2]."""
    energies = energies.to(x.dtype)  # under autocast they come in half precision, which cannot hold _MASKED
    log_weights = energies.masked_fill(~steps.unsqueeze(1), _MASKED).log_softmax(dim=-1)
    weights = log_weights.exp()

    entropy = -(weights * log_weights).sum(dim=-1) / lengths.clamp(min=2).log().unsqueeze(-1)
    uniqueness = F.normalize(entropy.masked_fill(~steps, 0.0), p=1.0, dim=-1)  # T = 1: 0

    block = torch.arange(x.shape[1], device=x.device) // block_size
    inside = block == block.unsqueeze(-1)
    unit = F.normalize(x, dim=-1)
    unlike = 1 - unit @ unit.mT
    unlike = unlike.masked_fill((unlike < _EQUAL) | inside | ~steps.unsqueeze(1), 0.0)
    share = (unlike * weights).sum(dim=-1) / unlike.sum(dim=-1).clamp(min=_EQUAL)

    # A row gets the shares of the columns. Those of the padding fall away: its values are 0, as Wv has no bias.
    concentrated = (weights + share.unsqueeze(1)).masked_fill(~inside, 0.0) @ values
    return concentrated, torch.stack((uniqueness, share), dim=-1).detach()
