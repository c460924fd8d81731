"""CSTA: the matrix of step features seen as an image; a CNN turns it into an attention map over steps and features.

Source: Son, Park and Kim, "CSTA: CNN-based Spatiotemporal Attention for Video Summarization", CVPR 2024
(arXiv 2405.11905). A learned CLS row stands in front of the steps; with it there are N = T + 1 rows. What the authors
call layer norm after a skip is a batch norm of one channel; what they call adaptive pooling of CLS averages neighbours.

Departures from the authors' code, none of which changes a score: videos come in padded batches; the embeddings, which
see three channels that differ in the CLS row alone, are computed once for all other rows; fewer than 14 steps, where
the original stops in a pool, and more than 4999, where its position table ends, work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import InputError
from training.models.batch import at_least, check_batch, take_rows, valid
from training.models.padded_cnn import GoogLeNet

_LEAST_ROWS = 15  # of a padded batch of images: GoogLeNet's pools need as many


class CSTA(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    In training mode B must be 1: batch norm takes its statistics from one video.
    """

    output = "scores"

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.options: dict[str, object] = {}
        width = GoogLeNet.width
        self.CLS = nn.Parameter(torch.zeros(1, 3, 1, feature_dim))
        self.googlenet = GoogLeNet()
        self.key_embedding = nn.Linear(feature_dim, width)
        self.value_embedding = nn.Linear(feature_dim, width)
        self.layernorm1 = nn.BatchNorm2d(1)
        self.linear1 = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.LayerNorm(width, eps=1e-6))
        self.linear2 = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.dropout = nn.Dropout(0.6)
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
        self.register_buffer("frequencies", frequencies, persistent=False)
        for linear in (self.linear1[0], self.linear2[0]):
            nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(2))
            nn.init.constant_(linear.bias, 0.1)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.CLS.dtype)
        if not self.training and (torch.compiler.is_compiling() or features.shape[0] > 1):
            return self._scores(features, lengths)
        if features.shape[0] > 1:
            raise InputError(
                f"CSTA in training mode: expected one video, got a batch of {features.shape[0]}; batch norm takes its "
                "statistics from one video, so call the model once a video and add up the gradients"
            )
        n_steps = int(lengths)
        scores = self._scores(features[:, :n_steps], None)
        return F.pad(scores, (0, features.shape[1] - n_steps))

    def _scores(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        """``lengths=None``: no padding."""
        n_videos, n_steps, _ = features.shape
        n_rows = n_steps + 1
        rows = None if lengths is None else lengths + 1
        x = features if lengths is None else features.masked_fill(~valid(lengths, n_steps)[..., None], 0.0)

        key_cls = self.key_embedding(self.CLS).expand(n_videos, -1, -1, -1)
        key = torch.cat((key_cls, self.key_embedding(x)[:, None].expand(-1, 3, -1, -1)), dim=2)
        value = torch.cat((self.CLS[:, 0].expand(n_videos, -1, -1), x), dim=1)
        value = self.value_embedding(value)

        attention = self._cnn(key, rows) + key[:, 0]
        attention = self.layernorm1(attention[:, None])[:, 0]
        angle = torch.arange(n_rows, device=x.device)[:, None] * self.frequencies
        attention = attention + torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
        if rows is not None:
            over_time = attention.masked_fill(~valid(rows, n_rows)[..., None], -1e9).softmax(dim=1)
        else:
            over_time = attention.softmax(dim=1)
        over_features = attention.softmax(dim=2)
        mix = value * self.dropout(over_time) + value * self.dropout(over_features)
        mix = (mix[:, :-1] + mix[:, 1:]) / 2
        scores = self.linear2(self.linear1(mix)).squeeze(-1)
        return scores if lengths is None else scores.masked_fill(~valid(lengths, n_steps), 0.0)

    def _cnn(self, key: Tensor, rows: Tensor | None) -> Tensor:
        """Key images [B, 3, N, W] -> one vector a row [B, N, W]."""
        n_rows = key.shape[2]
        if rows is not None:
            key = key.masked_fill(~valid(rows, n_rows)[:, None, :, None], 0.0)
            key = F.pad(key, (0, 0, 0, at_least(_LEAST_ROWS, n_rows) - n_rows))
        maps, heights = self.googlenet(key, rows)
        columns_mean = maps.mean(dim=3).transpose(1, 2)
        if rows is None or heights is None:
            rows = torch.tensor([n_rows], device=key.device)
            heights = torch.tensor([maps.shape[2]], device=key.device)
        row = torch.arange(n_rows, device=key.device)
        rows, heights = rows[:, None], heights[:, None]
        first = (row * heights // rows).minimum(heights - 1)
        last = (((row + 1) * heights - 1) // rows).minimum(heights - 1)
        return (take_rows(columns_mean, first) + take_rows(columns_mean, last)) / 2

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def reference_unused(self) -> dict[str, tuple[int, ...]]:
        return {
            "googlenet.fc.weight": (1000, 1024),
            "googlenet.fc.bias": (1000,),
            "Positional_encoding_op.pe": (5000, 1024),
        }
