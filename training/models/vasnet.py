"""VASNet: one self-attention over the whole video, then a dense layer and a regressor for each step.

Source: Fajtl et al., "Summarizing Videos with Attention", ACCV Workshops 2018. A constant scales the energies, and the
attention weights are used the other way round: step j gathers what the steps i give away to it, A[i, j] of each.

Departures from the authors' code, none of which changes a score: videos come in padded batches; the two dense layers
that are never used are not kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.folding import product
from vsum_runtime.training.models.options import choice, chosen, flag, real, whole

_DROPOUT = 0.5


class VASNet(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D, >= 2
    hidden_size : int
        width of the dense layer, >= 2; None: D
    q_scale : float
        factor of the queries
    aperture, ignore_itself   switches of the authors that their published runs leave off; only None and False are known
    """

    output = "scores"
    card = Card("supervised", "VASNet, ACCV Workshops", 2018, "MIT")

    def __init__(
        self,
        feature_dim: int,
        *,
        hidden_size: int | None = None,
        q_scale: float = 0.06,
        aperture: None = None,
        ignore_itself: bool = False,
    ) -> None:
        super().__init__()
        if feature_dim < 2:
            raise InputError(f"feature_dim: expected at least 2, the norm divides by D - 1; got {feature_dim}")
        self.feature_dim = feature_dim
        self.hidden_size = width = whole("hidden_size", hidden_size, feature_dim, least=2)
        self.q_scale = real("q_scale", q_scale, least=0)
        self.aperture = choice("aperture", aperture, (None,))
        self.ignore_itself = flag("ignore_itself", ignore_itself)
        if self.ignore_itself:
            raise InputError("ignore_itself: expected False, attention that leaves out the step itself is not offered")

        self.att = _Attention(feature_dim, self.q_scale)
        self.ka = nn.Linear(feature_dim, width)
        self.kd = nn.Linear(width, 1)
        self.layer_norm_y = _Norm(feature_dim)
        self.layer_norm_ka = _Norm(width)
        self.dropout = nn.Dropout(_DROPOUT)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, math.sqrt(2))
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, 0.1)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.kd.weight.dtype)
        padding = ~valid(lengths, features.shape[1])
        x = features.masked_fill(padding.unsqueeze(-1), 0.0)
        y = self.layer_norm_y(self.dropout(self.att(x, padding, self.dropout) + x))
        y = self.layer_norm_ka(self.dropout(F.relu(self.ka(y))))
        return torch.sigmoid(self.kd(y)).squeeze(-1).masked_fill(padding, 0.0)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our parameters have the authors' names."""
        return dict(tensors)

    def reference_unused(self) -> dict[str, Tensor | None]:
        """Two dense layers that the authors make and never call."""
        return {"kb.": None, "kc.": None}


class _Attention(nn.ModuleDict):
    """What each step gathers from all others: x [B, T, D], 0 in the padding bool [B, T] -> [B, T, D]."""

    def __init__(self, width: int, q_scale: float) -> None:
        super().__init__({name: nn.Linear(width, width, bias=False) for name in ("K", "Q", "V", "output_linear")})
        self.q_scale = q_scale

    def forward(self, x: Tensor, padding: Tensor, dropout: nn.Module) -> Tensor:
        y = _gather(self.q_scale * self["Q"](x), self["K"](x), self["V"](x), padding, dropout)
        return self["output_linear"](y)

    def folded(self) -> nn.Module:
        """The same with two matrices instead of four: energies are x Q'K x', and what is gathered is mapped first."""
        layers: Any = self
        key, query, value, out = (layers[name].weight for name in ("K", "Q", "V", "output_linear"))
        return _FoldedAttention(product(key.mT, query, scale=self.q_scale), product(out, value))


class _FoldedAttention(nn.Module):
    """``_Attention`` for inference."""

    def __init__(self, query: nn.Linear, value: nn.Linear) -> None:
        super().__init__()
        self.query, self.value = query, value

    def forward(self, x: Tensor, padding: Tensor, dropout: nn.Module) -> Tensor:
        return _gather(self.query(x), x, self.value(x), padding, dropout)


def _gather(query: Tensor, key: Tensor, value: Tensor, padding: Tensor, dropout: nn.Module) -> Tensor:
    weights = torch.softmax((query @ key.mT).masked_fill(padding.unsqueeze(1), -torch.inf), dim=-1)
    # Padded rows of the weights give nothing away: their values are 0, as no layer before has a bias.
    return dropout(weights).mT @ value


class _Norm(nn.Module):
    """Over the last axis: the deviation divides by n - 1, and epsilon is added to it, not to the variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1e-6) + self.beta
