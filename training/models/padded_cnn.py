"""The image networks CSTA can stand on, over padded batches of images of different heights.

Every network here is torchvision's of the same name (its parameter names, its arithmetic, no classifier head), with one
addition: ``heights`` [B] says how many rows of each image [B, 3, H, W] are real. The rows below are kept at 0 before
each operator that looks up or down, which is what its own padding would be had the image ended there; for max-pools the
same holds because what they pool has passed a ReLU. ``heights=None`` means that all rows are real.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.batch import valid


class GoogLeNet(nn.Module):
    """Images float32 [B, 3, H, W] -> maps [B, 1024, about H/32, about W/32], and the heights of those.

    With ``heights``, H must be 15 or more. Lower images, which torchvision refuses, are as if zero rows followed
    wherever a pool would otherwise have nothing to see.
    """

    width = 1024

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, stride=2, padding=3)
        self.conv2 = _conv(64, 64, 1)
        self.conv3 = _conv(64, 192, 3, padding=1)
        self.inception3a = _Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = _Inception(256, 128, 128, 192, 32, 96, 64)
        self.inception4a = _Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = _Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = _Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = _Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = _Inception(528, 256, 160, 320, 32, 128, 128)
        self.inception5a = _Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = _Inception(832, 384, 192, 384, 48, 128, 128)

    def forward(self, x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, heights = self.conv1(x), _halved(heights)
        x, heights = _pool_3x3(x, heights)
        x = self.conv3(_keep(self.conv2(x), heights))
        x, heights = _pool_3x3(x, heights)
        for block in (self.inception3a, self.inception3b):
            x = block(x, heights)
        x, heights = _pool_3x3(x, heights)
        for block in (self.inception4a, self.inception4b, self.inception4c, self.inception4d, self.inception4e):
            x = block(x, heights)
        x, heights = F.max_pool2d(F.pad(_keep(x, heights), (0, 1, 0, 1)), 2, stride=2), _halved(heights)
        return self.inception5b(self.inception5a(x, heights), heights), heights


class _Inception(nn.Module):
    """Four branches side by side. What the literature calls the 5x5 branch has a 3x3 kernel, as in torchvision."""

    def __init__(self, n_in: int, n_1: int, n_3_in: int, n_3: int, n_5_in: int, n_5: int, n_pool: int) -> None:
        super().__init__()
        self.branch1 = _conv(n_in, n_1, 1)
        self.branch2 = nn.Sequential(_conv(n_in, n_3_in, 1), _conv(n_3_in, n_3, 3, padding=1))
        self.branch3 = nn.Sequential(_conv(n_in, n_5_in, 1), _conv(n_5_in, n_5, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _conv(n_in, n_pool, 1))

    def forward(self, x: Tensor, heights: Tensor | None) -> Tensor:
        y2, y3 = (branch[1](_keep(branch[0](x), heights)) for branch in (self.branch2, self.branch3))
        return torch.cat((self.branch1(x), y2, y3, self.branch4(_keep(x, heights))), dim=1)


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False),
            bn=nn.BatchNorm2d(n_out, eps=1e-3),
            relu=nn.ReLU(),
        )
    )


def _keep(x: Tensor, heights: Tensor | None) -> Tensor:
    """x [B, C, H, W] with the rows past heights [B] at 0."""
    return x if heights is None else x * valid(heights, x.shape[2])[:, None, :, None]


def _halved(heights: Tensor | None) -> Tensor | None:
    """Height after an operator of stride 2 that is padded by half its kernel, or after a 2x2 pool that rounds up."""
    return None if heights is None else (heights + 1) // 2


def _pool_3x3(x: Tensor, heights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Max-pool 3x3 of stride 2 that rounds up, of values >= 0; one row gives one row.

    A zero row below and a zero column to the right say the same as rounding up, and export to a plain pool.
    """
    if heights is not None:
        return F.max_pool2d(F.pad(_keep(x, heights), (0, 1, 0, 1)), 3, stride=2), (heights // 2).clamp(min=1)
    below = 2 if x.shape[2] == 1 else 1
    return F.max_pool2d(F.pad(x, (0, 1, 0, below)), 3, stride=2), None
