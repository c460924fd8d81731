"""Videos in, tensors of one update out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vsum_runtime.training.datasets import Video


def padded(videos: Sequence[Video], device: torch.device) -> tuple[Tensor, Tensor]:
    """Features [B, T, D] with zeros after a shorter video, and lengths [B]."""
    rows = [torch.from_numpy(video.features) for video in videos]
    lengths = torch.tensor([len(video_rows) for video_rows in rows], device=device)
    return pad_sequence(rows, batch_first=True).to(device), lengths


def importance(video: Video) -> Tensor:
    """The video's ``gtscore`` [T] from its least value, 0, to its greatest, 1; a constant one becomes 0."""
    values = torch.from_numpy(video.gtscore)
    values = values - values.min()
    return values / values.max() if values.max() > 0 else values
