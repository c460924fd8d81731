"""FCSN: a fully convolutional network over time decides for every step whether it is a key frame.

Source: Rochan, Ye and Wang, "Video Summarization Using Fully Convolutional Sequence Networks", ECCV 2018 (SUM-FCN).
Neither weights nor code of the authors are public; two community forms of the network are here. Variant B follows the
paper's figure, every convolution with batch norm and ReLU; variant A, on which VSLUD stands, is FCN-16s turned into one
dimension, its input padded by 100 steps on both sides.

Departures from those codes, none of which changes a score: time has one axis, not an image of height 1; videos come in
padded batches; in variant B any number of steps works, not just multiples of 32 (what is too long is cut at the end);
in variant A up to 26 steps, where an instance norm sees one value, work and that value becomes 0.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import at_least, check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, real, whole

_BLOCKS = {
    "A": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "B": ((1024, 1024), (1024, 1024), (1024, 1024, 1024), (2048, 2048, 2048), (2048, 2048, 2048)),
}
_TOP = 4096  # channels of the two last layers of the encoder


class FCSN(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    n_class : int
        2: key frame or not; others are not known
    variant                   "A" or "B", see above
    dropout : float
        of the two last layers of the encoder; in variant A whole channels drop out
    """

    output = "scores"
    card = Card("supervised", "SUM-FCN, ECCV", 2018, "no code of the authors")

    def __init__(self, feature_dim: int, *, n_class: int = 2, variant: str = "B", dropout: float = 0.5) -> None:
        super().__init__()
        self.n_class = whole("n_class", n_class, least=1)
        if self.n_class != 2:
            raise InputError(f"n_class: expected 2, key frame or not, got {n_class}")
        self.feature_dim = feature_dim
        self.variant = str(choice("variant", variant, ("A", "B")))
        self.dropout = real("dropout", dropout, least=0, most=1)
        self.encoder = Encoder(feature_dim, self.variant, self.dropout)
        self.head = _HeadA() if self.variant == "A" else _HeadB()

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        no, yes = self.logits(features, lengths).unbind(dim=1)
        return torch.sigmoid(yes - no).masked_fill(~valid(lengths, features.shape[1]), 0.0)

    def logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[B, 2, T]: no key frame, key frame; what stands in the padding means nothing."""
        pool4, n_pool4, top, n_top = self.encoder(features, lengths)
        return self.head(pool4, n_pool4, top, n_top, features.shape[1])

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        views = {}
        for key, tensor in tensors.items():
            name = key.partition(".")[2]
            if self.variant == "A":
                views[name] = tensor.unsqueeze(2) if tensor.ndim == 3 else tensor
            else:
                block = re.match(r"(?:conv|bn|fc)(\d)", name)
                views[f"conv{block[1]}.{name}" if block else name] = tensor
        return views

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}


class Encoder(nn.ModuleDict):
    """Five blocks of convolutions, each of which halves time, and two wide layers on top.

    Features [B, T, D] -> channels of the fourth block [B, C, about T/16] and of the top [B, 4096, about T/32], each
    with its lengths [B]; zeros follow what is valid. In training, batch norm takes its statistics from all that is
    valid in the batch.
    """

    def __init__(self, feature_dim: int, variant: str, dropout: float) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self._margin, reach = (100, 7) if variant == "A" else (1, 1)
        n_in = feature_dim
        for block, widths in enumerate(_BLOCKS[variant], start=1):
            for layer, width in enumerate(widths, start=1):
                padding = self._margin if block == layer == 1 else 1
                self[f"conv{block}_{layer}"] = nn.Conv1d(n_in, width, 3, padding=padding)
                self[f"bn{block}_{layer}"] = MaskedNorm(width)
                n_in = width
        self["fc6"] = nn.Conv1d(n_in, _TOP, reach)
        self["fc7"] = nn.Conv1d(_TOP, _TOP, 1)
        if variant == "B":
            self["bn6"], self["bn7"] = MaskedNorm(_TOP), MaskedNorm(_TOP)
        self._blocks = [len(widths) for widths in _BLOCKS[variant]]
        self.dropout = nn.Dropout1d(dropout) if variant == "A" else nn.Dropout(dropout)

    def folded(self) -> nn.Module:
        """The same with convolutions of images as layers, which exporters join with the norm behind them."""
        images = copy.deepcopy(self)
        for name, layer in self.items():
            if isinstance(layer, nn.Conv1d):
                size, padding = (1, layer.kernel_size[0]), (0, int(layer.padding[0]))
                images[name] = image = nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=padding)
                image.weight, image.bias = nn.Parameter(layer.weight.detach().unsqueeze(2)), layer.bias
        return images

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        top: Any = self["fc6"]
        check_batch(features, lengths, self.feature_dim, top.weight.dtype)
        margins, reach = 2 * (self._margin - 1), top.kernel_size[-1]
        # Zeros at the end make the first layer as long as the pools halve evenly and the top two rows or more, which
        # torch.export can follow. What they and the padding become is set back to zero wherever a layer looks across:
        # then convolutions see the zeros that pad them anyway, and pools, of values >= 0, round up.
        n_first = 32 * at_least(reach + 1, (features.shape[1] + margins + 31) // 32)
        # An image of height 1, and pooled as one: ONNX Runtime is quicker with images, and max_pool1d would freeze T.
        x = keep(F.pad(features.mT, (0, n_first - margins - features.shape[1])), lengths).unsqueeze(2)
        factor = 2 ** torch.arange(6, device=x.device)
        halved = (lengths[:, None] + margins + factor - 1) // factor  # [B, 6], each once more, rounded up
        n = halved[:, 0]
        pool4, n_pool4 = x, n
        for block, n_layers in enumerate(self._blocks, start=1):
            for layer in range(1, n_layers + 1):
                x = self[f"bn{block}_{layer}"](_convolve(self[f"conv{block}_{layer}"], x), n)
                x = keep(F.relu(x), n)
            x = F.max_pool2d(x, (1, 2))
            n = halved[:, block]
            if block == 4:
                pool4, n_pool4 = x, n
        n = n - (reach - 1)
        for layer in (6, 7):
            x = _convolve(self[f"fc{layer}"], x)
            x = self[f"bn{layer}"](x, n) if f"bn{layer}" in self else x
            x = keep(self.dropout(F.relu(x).squeeze(2)).unsqueeze(2), n)
        return pool4.squeeze(2), n_pool4, x.squeeze(2), n


class _HeadA(nn.Module):
    """Scores of the top, normalised per video and doubled in time; plus those of the fourth block; 16 times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.score_fr = nn.Conv1d(_TOP, 2, 1)
        self.score_pool4 = nn.Conv1d(_BLOCKS["A"][3][-1], 2, 1)
        self.bn_score_pool4 = MaskedNorm(2)
        self.upscore2 = nn.ConvTranspose1d(2, 2, 4, stride=2)
        self.upscore16 = nn.ConvTranspose1d(2, 2, 32, stride=16)

    def forward(self, pool4: Tensor, n_pool4: Tensor, top: Tensor, n_top: Tensor, n_steps: int) -> Tensor:
        x = self.upscore2(_instance_norm(self.score_fr(top), n_top))
        skip = self.bn_score_pool4(self.score_pool4(pool4), n_pool4)
        x = keep(x + skip[:, :, 5:-5], 2 * n_top + 2)
        return _part(self.upscore16(x), 27, n_steps)


class _HeadB(nn.Module):
    """Scores of the top, doubled in time; plus those of the fourth block; 16 times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.fc8 = nn.Conv1d(_TOP, 2, 1)
        self.bn8 = MaskedNorm(2)
        self.conv_pool4 = nn.Conv1d(_BLOCKS["B"][3][-1], 2, 1)
        self.bn_pool4 = MaskedNorm(2)
        self.deconv1 = nn.ConvTranspose1d(2, 2, 4, stride=2, padding=1, bias=False)
        self.deconv2 = nn.ConvTranspose1d(2, 2, 16, stride=16, bias=False)

    def forward(self, pool4: Tensor, n_pool4: Tensor, top: Tensor, n_top: Tensor, n_steps: int) -> Tensor:
        x = self.deconv1(keep(F.relu(self.bn8(self.fc8(top), n_top)), n_top))
        skip = self.bn_pool4(self.conv_pool4(pool4), n_pool4)
        return _part(self.deconv2(keep(x + skip, n_pool4)), 0, n_steps)


class MaskedNorm(nn.BatchNorm1d):
    """Batch norm of x [B, C, T] or [B, C, 1, T], of which in training only what lies before lengths [B] counts.

    One value alone has no statistics: it takes the running ones.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        n = lengths.sum()
        if not self.training or n == 1:
            mean, variance = self.running_mean, self.running_var
            if self.training:  # the next call will change them in place
                mean, variance = mean.clone(), variance.clone()
            return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        over = (0, *range(2, x.ndim))
        mean = keep(x, lengths).sum(dim=over, keepdim=True) / n
        deviation = x - mean
        variance = keep(deviation, lengths).square().sum(dim=over, keepdim=True) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
        weight, bias = self.weight.view_as(mean[0]), self.bias.view_as(mean[0])
        return deviation * torch.rsqrt(variance + self.eps) * weight + bias


def _convolve(layer: Any, x: Tensor) -> Tensor:
    """``layer`` of x [B, C, 1, T]."""
    if isinstance(layer, nn.Conv2d):
        return layer(x)
    return F.conv2d(x, layer.weight.unsqueeze(2), layer.bias, padding=(0, int(layer.padding[0])))


def keep(x: Tensor, lengths: Tensor) -> Tensor:
    """x [B, C, T] or [B, C, 1, T] with what is past lengths [B] at 0."""
    padding = ~valid(lengths, x.shape[-1]).unsqueeze(1)
    return x.masked_fill(padding if x.ndim == 3 else padding.unsqueeze(1), 0.0)


def _part(x: Tensor, start: int, size: int) -> Tensor:
    """``x[:, :, start : start + size]``, of which torch.export need not prove that it lies within x for every T."""
    return x.index_select(2, start + torch.arange(size, device=x.device))


def _instance_norm(x: Tensor, lengths: Tensor) -> Tensor:
    """x [B, C, T], 0 past its lengths or not -> the same, each channel of each video with mean 0 and variance 1."""
    n = lengths[:, None, None]
    x = keep(x, lengths)
    x = keep(x - x.sum(dim=2, keepdim=True) / n, lengths)
    return x * torch.rsqrt(x.square().sum(dim=2, keepdim=True) / n + 1e-5)
