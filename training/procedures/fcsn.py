"""Training of FCSN with labels: every step is a key frame or not, and both kinds weigh the same.

Source: Rochan, Ye and Wang, ECCV 2018 (SUM-FCN), and a community code. Its training without labels, by reconstruction
and diversity, is that of ``vslud`` with variant B and ``adversarial_weight=0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.kernels import knapsack, shot_scores
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models.fcsn import FCSN


@dataclass(frozen=True)
class FCSNConfig:
    """How FCSN is trained. Stochastic gradient descent; 100 epochs."""

    learning_rate: float = 1e-3
    momentum: float = 0.9
    batch_videos: int = 5
    """Videos per update."""
    sampled_steps: int = 320
    """Every video is brought to so many steps, evenly spaced; those of a shorter one repeat."""


class KeyFrames:
    """See ``Procedure``. The headline is the cross-entropy: less is better."""

    defaults: ClassVar[FCSNConfig] = FCSNConfig()
    labels: tuple[str, ...] = ("gtscore", "shots")
    paced: ClassVar[bool] = False

    def __init__(self, model: FCSN, config: FCSNConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.SGD(model.parameters(), config.learning_rate, momentum=config.momentum, fused=True)
        }
        self._model = model

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        model, optimizer, n_steps = self._model.train(), self.optimizers["model"], self.config.sampled_steps
        device = next(model.parameters()).device
        total = 0.0
        for batch in torch.randperm(len(videos)).split(self.config.batch_videos):
            features, keys = zip(*(_sampled(videos[index], n_steps) for index in batch), strict=True)
            lengths = torch.full((len(batch),), n_steps, device=device)
            logits = model.logits(torch.stack(features).to(device), lengths)
            loss = torch.stack([balanced_cross_entropy(*pair) for pair in zip(logits, keys, strict=True)]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        return {"cross_entropy": total / len(videos)}


def balanced_cross_entropy(logits: Tensor, keys: Tensor) -> Tensor:
    """Of logits [2, T] (no key frame, key frame) and ``keys`` bool [T]; both kinds of step weigh the same."""
    keys = keys.to(logits.device)
    counts = torch.stack(((~keys).sum(), keys.sum()))
    return F.cross_entropy(logits.T, keys.long(), weight=len(keys) / (2 * counts.clamp(min=1).to(logits)))


def key_steps(video: Video) -> NDArray[np.bool_]:
    """[T] True for the steps within the shots that the ground truth would keep: the knapsack at 15 % over ``gtscore``.

    Where that keeps no step, as with one long shot, those are kept whose scores are among the greatest 15 %.
    """
    assert video.shots is not None
    assert video.gtscore is not None
    values = shot_scores.pool(video.gtscore, video.picks, video.shots, video.n_frames)
    kept = video.shots[knapsack.pack(values, video.shots[:, 1] - video.shots[:, 0], video.capacity)]
    keys: NDArray[np.bool_] = np.any((video.picks[:, None] >= kept[:, 0]) & (video.picks[:, None] < kept[:, 1]), axis=1)
    if not keys.any():
        n_keys = max(1, len(keys) * video.capacity // video.n_frames)
        keys[np.argsort(-video.gtscore, kind="stable")[:n_keys]] = True
    return keys


def _sampled(video: Video, n_steps: int) -> tuple[Tensor, Tensor]:
    """Features [n_steps, D] and keys bool [n_steps], at the middle of as many equal parts of the video."""
    features = torch.from_numpy(video.features)
    index = (2 * torch.arange(n_steps) + 1) * len(features) // (2 * n_steps)
    return features[index], torch.from_numpy(key_steps(video))[index]
