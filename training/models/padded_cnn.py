"""The picture networks CSTA can stand on, over padded batches of images of different heights.

Each is torchvision's of the same name (its weight names and arithmetic, without the classifier), called as
``network(images [B, 3, H, W], heights [B]) -> (maps [B, width, about H/32, about W/32], their heights [B])``. Rows of
an image past its height are kept at 0 before each operator that looks up or down, which is what the operator's own
padding would be had the image ended there; max-pools agree because what they pool has passed a ReLU. Without padding
``heights`` is None, and training mode, whose batch statistics would count the padding, needs that.

Weights start random (Kaiming normal by fan-out, as torchvision does for networks with batch norm).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.training.models.batch import valid


class GoogLeNet(nn.Module):
    """Inception v1 with batch norm. In images lower than 15 rows, which torchvision refuses, a pool that has a single
    row left to see gives that row.
    """

    width = 1024
    least_height = 15  # of a padded batch
    heads = ("fc.", "aux1.", "aux2.")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _named_conv(3, 64, 7, stride=2)
        self.conv2 = _named_conv(64, 64, 1)
        self.conv3 = _named_conv(64, 192, 3)
        self.inception3a = _Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = _Inception(256, 128, 128, 192, 32, 96, 64)
        self.inception4a = _Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = _Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = _Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = _Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = _Inception(528, 256, 160, 320, 32, 128, 128)
        self.inception5a = _Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = _Inception(832, 384, 192, 384, 48, 128, 128)
        _initialise(self)

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, heights = self.conv1(x), _halved(heights)
        x, heights = _pool_3x3(_keep(x, heights), heights)
        x = self.conv3(_keep(self.conv2(x), heights))
        x, heights = _pool_3x3(_keep(x, heights), heights)
        for block in (self.inception3a, self.inception3b):
            x = block(x, heights)
        x, heights = _pool_3x3(_keep(x, heights), heights)
        for block in (self.inception4a, self.inception4b, self.inception4c, self.inception4d, self.inception4e):
            x = block(x, heights)
        x, heights = F.max_pool2d(_round_up(_keep(x, heights)), 2, stride=2), _halved(heights)
        return self.inception5b(self.inception5a(x, heights), heights), heights


class _Inception(nn.Module):
    """Four branches side by side. What the literature calls the 5x5 branch has a 3x3 kernel, as in torchvision."""

    def __init__(self, n_in: int, n_1: int, n_3_in: int, n_3: int, n_5_in: int, n_5: int, n_pool: int) -> None:
        super().__init__()
        self.branch1 = _named_conv(n_in, n_1, 1)
        self.branch2 = nn.Sequential(_named_conv(n_in, n_3_in, 1), _named_conv(n_3_in, n_3, 3))
        self.branch3 = nn.Sequential(_named_conv(n_in, n_5_in, 1), _named_conv(n_5_in, n_5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _named_conv(n_in, n_pool, 1))

    def forward(self, x: Tensor, heights: Tensor | None) -> Tensor:
        y2, y3 = (branch[1](_keep(branch[0](x), heights)) for branch in (self.branch2, self.branch3))
        return torch.cat((self.branch1(x), y2, y3, self.branch4(_keep(x, heights))), dim=1)


def _named_conv(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(n_out, eps=1e-3), relu=nn.ReLU()))


def _pool_3x3(x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Max-pool of stride 2 that rounds up; one row gives one row."""
    if heights is None and x.shape[2] == 1:
        x = F.pad(x, (0, 0, 0, 1))
    return F.max_pool2d(_round_up(x), 3, stride=2), None if heights is None else (heights // 2).clamp(min=1)


def _round_up(x: Tensor) -> Tensor:
    """Values >= 0 so that a pool of stride 2 gives the size that rounding up would, in a form exporters agree on."""
    return F.pad(x, (0, 1, 0, 1))


class ResNet18(nn.Module):
    width = 512
    least_height = 1
    heads = ("fc.",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, stride=2), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Residual(64, 64, 1), _Residual(64, 64, 1))
        self.layer2 = nn.Sequential(_Residual(64, 128, 2), _Residual(128, 128, 1))
        self.layer3 = nn.Sequential(_Residual(128, 256, 2), _Residual(256, 256, 1))
        self.layer4 = nn.Sequential(_Residual(256, 512, 2), _Residual(512, 512, 1))
        _initialise(self)

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, heights = F.relu(self.bn1(self.conv1(x))), _halved(heights)
        x, heights = F.max_pool2d(_keep(x, heights), 3, stride=2, padding=1), _halved(heights)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x, heights = block(x, heights)
        return x, heights


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(n_in, n_out, 3, stride=stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = _conv(n_out, n_out, 3), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(_conv(n_in, n_out, 1, stride=stride), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = F.relu(self.bn1(self.conv1(_keep(x, heights))))
        if self.downsample is not None:
            x, heights = self.downsample(x), _halved(heights)
        return F.relu(x + self.bn2(self.conv2(_keep(y, heights)))), heights


class MobileNetV2(nn.Module):
    width = 1280
    least_height = 1
    heads = ("classifier.",)

    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_norm(3, 32, 3, stride=2, activation=nn.ReLU6)]
        n_in = 32
        for expansion, n_out, n_blocks, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for block in range(n_blocks):
                features.append(_InvertedResidual(n_in, n_out, expansion, stride if block == 0 else 1))
                n_in = n_out
        features.append(_conv_norm(n_in, 1280, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*features)
        _initialise(self)

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, heights = self.features[0](x), _halved(heights)
        for block in list(self.features)[1:-1]:
            x, heights = block(x, heights)
        return self.features[-1](x), heights


class _InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        n_hidden = n_in * expansion
        widen = [_conv_norm(n_in, n_hidden, 1, activation=nn.ReLU6)] if expansion != 1 else []
        depthwise = _conv_norm(n_hidden, n_hidden, 3, stride=stride, groups=n_hidden, activation=nn.ReLU6)
        self.conv = nn.Sequential(*widen, depthwise, _conv(n_hidden, n_out, 1), nn.BatchNorm2d(n_out))
        self.halves, self.adds = stride == 2, stride == 1 and n_in == n_out

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = self.conv[:-3](x)
        y = self.conv[-3:](_keep(y, heights))
        return x + y if self.adds else y, _halved(heights) if self.halves else heights


class EfficientNetB0(nn.Module):
    width = 1280
    least_height = 1
    heads = ("classifier.",)

    def __init__(self) -> None:
        super().__init__()
        stages = (
            (1, 3, 1, 16, 1),
            (6, 3, 2, 24, 2),
            (6, 5, 2, 40, 2),
            (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3),
            (6, 5, 2, 192, 4),
            (6, 3, 1, 320, 1),
        )
        n_all = sum(n_blocks for *_, n_blocks in stages)
        features: list[nn.Module] = [_conv_norm(3, 32, 3, stride=2, activation=nn.SiLU)]
        n_in, index = 32, 0
        for expansion, kernel, stride, n_out, n_blocks in stages:
            blocks = []
            for block in range(n_blocks):
                drop = 0.2 * index / n_all
                blocks.append(_MBConv(n_in, n_out, expansion, kernel, stride if block == 0 else 1, drop))
                n_in, index = n_out, index + 1
            features.append(nn.Sequential(*blocks))
        features.append(_conv_norm(n_in, 1280, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*features)
        _initialise(self)

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, heights = self.features[0](x), _halved(heights)
        for stage in list(self.features)[1:-1]:
            for block in cast(nn.Sequential, stage):
                x, heights = block(x, heights)
        return self.features[-1](x), heights


class _MBConv(nn.Module):
    """Inverted residual with squeeze and excitation; in training the residual branch is dropped now and then."""

    def __init__(self, n_in: int, n_out: int, expansion: int, kernel: int, stride: int, drop: float) -> None:
        super().__init__()
        n_hidden = n_in * expansion
        widen = [_conv_norm(n_in, n_hidden, 1, activation=nn.SiLU)] if expansion != 1 else []
        depthwise = _conv_norm(n_hidden, n_hidden, kernel, stride=stride, groups=n_hidden, activation=nn.SiLU)
        excitation = _Excitation(n_hidden, n_in // 4)
        self.block = nn.Sequential(*widen, depthwise, excitation, _conv_norm(n_hidden, n_out, 1, activation=None))
        self.halves, self.adds, self.drop = stride == 2, stride == 1 and n_in == n_out, drop

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        *widen, depthwise, excitation, narrow = self.block
        y = depthwise(_keep(widen[0](x) if widen else x, heights))
        heights = _halved(heights) if self.halves else heights
        y = narrow(excitation(_keep(y, heights), heights))
        if not self.adds:
            return y, heights
        if self.training:
            y = F.dropout(torch.ones_like(y[:, :1, :1, :1]), self.drop) * y
        return x + y, heights


class _Excitation(nn.Module):
    def __init__(self, n_channels: int, n_squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(n_channels, n_squeezed, 1), nn.Conv2d(n_squeezed, n_channels, 1)

    def forward(self, x: Tensor, heights: Tensor | None) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        if heights is not None:  # rows past the heights are 0
            mean = mean * (x.shape[2] / heights)[:, None, None, None]
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(mean))))


def _conv(n_in: int, n_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def _conv_norm(
    n_in: int, n_out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: Any
) -> nn.Sequential:
    last = [activation()] if activation else []
    return nn.Sequential(_conv(n_in, n_out, kernel, stride=stride, groups=groups), nn.BatchNorm2d(n_out), *last)


def _keep(x: Tensor, heights: Tensor | None) -> Tensor:
    """x [B, C, H, W] with the rows past heights [B] at 0."""
    return x if heights is None else x * valid(heights, x.shape[2])[:, None, :, None]


def _halved(heights: Tensor | None) -> Tensor | None:
    """Height after an operator of stride 2 whose padding is half its kernel, or a 2x2 pool that rounds up."""
    return None if heights is None else (heights + 1) // 2


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
