"""Non-local ridge: a linear score for every step, averaged over the steps that look alike. Solved, not iterated.

A step is described by its features, divided by their L2 norm, along the principal directions of the training videos and
averaged over time by a Gaussian, and by three cues: how near it is to the middle of the video, that norm, and how
crowded its surroundings are, because what a video shows again and again is seldom its highlight. Steps are similar by
the cosine of what they are along those directions, less the video's mean. The score of a step is the mean of one linear
function of the descriptions over all steps, weighted by the softmax of their similarity to it: people give the same
importance to what looks the same, wherever in the video it is. These are the non-local means of Buades et al. (CVPR
2005) around a ridge regression; both are linear, so the weights have a closed form:
``training/procedures/nonlocal_ridge.py``.

On TVSum, settings chosen within the training part of each of five folds, Kendall's tau to the annotators is .198 for
the smoothed ridge alone, .209 with the cues and .222 with the averaging. Tried without gain: gradient descent from the
solved weights (worse from the tenth epoch on), Gaussian kernels, a second width of either mean, centring per video.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import real, whole

_RANK = 128  # 64 costs .005 of tau, 256 gains nothing
_CROWD_SHARPNESS = 10.0  # 6 to 20 are alike, 3 is worse
_LEAST_DEVIATION = 1e-3  # steps nearer to the video's mean than this resemble nothing: keeps still videos stable

N_CUES = 3


class NonLocalRidge(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Features come raw: the network divides by their norm itself, and uses the norm.

    Parameters
    ----------
    feature_dim : int
        D, >= 1
    rank : int
        principal directions, 1 to D; None: 128, or D where that is less
    sigma_steps : float
        standard deviation of the Gaussian over time, in steps, >= 0.1 (0.1 leaves all as it is)
    sharpness : float
        what cosines are multiplied by before the softmax; 0 gives every step the same score
    """

    output = "scores"
    kernel: Tensor
    card = Card("supervised", "ours, docs/default-model.md", 2026, "Apache-2.0")

    def __init__(
        self, feature_dim: int, *, rank: int | None = None, sigma_steps: float = 3.0, sharpness: float = 3.0
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.rank = whole("rank", rank, min(_RANK, feature_dim), least=1)
        if self.rank > feature_dim:
            raise InputError(f"rank: expected at most the feature size {feature_dim}, got {self.rank}")
        self.sigma_steps = real("sigma_steps", sigma_steps, least=0.1)
        self.sharpness = real("sharpness", sharpness, least=0)
        self.options = {"rank": self.rank, "sigma_steps": self.sigma_steps, "sharpness": self.sharpness}

        self.directions = nn.Linear(feature_dim, self.rank, bias=False)
        self.score = nn.Linear(self.rank + N_CUES, 1)
        nn.init.orthogonal_(self.directions.weight)
        radius = round(4 * self.sigma_steps)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / self.sigma_steps) ** 2).float()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.score.weight.dtype)
        descriptions, likeness = self.describe(features, lengths)
        logits = average_over_similar(self.score(descriptions), likeness, lengths, self.sharpness)
        padding = ~valid(lengths, features.shape[1])
        return torch.sigmoid(logits).squeeze(-1).masked_fill(padding, 0.0)

    def describe(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptions [B, T, rank + 3]; how alike steps are [B, T, T], 10 (cosine - 1). Anything in the padding."""
        n_steps = features.shape[1]
        inside = valid(lengths, n_steps).unsqueeze(-1)
        weight = inside.to(features.dtype)
        count = lengths.to(features.dtype)[:, None, None]

        # The input is read and not written: what is smaller is divided and masked.
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        rows = self.directions(features) / norm.clamp(min=1e-12)
        smooth = self._mean_over_time(torch.cat((rows, norm), dim=-1).masked_fill(~inside, 0.0), weight)
        rows, norm = smooth[..., :-1], smooth[..., -1:]

        deviation = rows - rows.sum(dim=1, keepdim=True) / count
        length = torch.linalg.vector_norm(deviation, dim=-1, keepdim=True).clamp(min=_LEAST_DEVIATION)
        direction = deviation * (math.sqrt(_CROWD_SHARPNESS) * weight / length)
        one = torch.ones_like(norm)
        likeness = torch.cat((direction, one), dim=-1) @ torch.cat((direction, -_CROWD_SHARPNESS * one), dim=-1).mT

        crowd = torch.exp(likeness) @ weight / count
        position = (torch.arange(n_steps, device=features.device)[:, None] + 0.5) / count
        middle = 1 - (2 * position - 1).abs()
        return torch.cat((rows, middle, norm, crowd), dim=-1), likeness

    def _mean_over_time(self, x: Tensor, weight: Tensor) -> Tensor:
        """Gaussian mean of x [B, T, C] over the steps inside the video, where weight [B, T, 1] is 1 and not 0.

        x is 0 in the padding, and so is the mean.
        """
        channels, radius = x.shape[-1], len(self.kernel) // 2
        total = F.conv1d(x.mT, self.kernel.expand(channels, 1, -1), padding=radius, groups=channels).mT
        total_weight = F.conv1d(weight.mT, self.kernel[None, None], padding=radius).mT
        return total * (weight / total_weight.clamp(min=0.1))  # the step itself weighs 1

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model is this project's own, and so are its names."""
        return dict(tensors)

    def reference_unused(self) -> dict[str, None]:
        return {}


def average_over_similar(values: Tensor, likeness: Tensor, lengths: Tensor, sharpness: float) -> Tensor:
    """Mean of values [B, T, C] over the steps of each video, weighted by the softmax of sharpness x cosine."""
    inside = valid(lengths, likeness.shape[-1]).unsqueeze(-1)
    weights = torch.softmax(sharpness / _CROWD_SHARPNESS * likeness, dim=-1)
    # The padding weighs something here, and nothing in the mean.
    totals = weights @ torch.cat((values.masked_fill(~inside, 0.0), inside.to(values.dtype)), dim=-1)
    return totals[..., :-1] / totals[..., -1:]
