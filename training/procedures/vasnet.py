"""Training of VASNet as published: squared error of the scores to the annotators' importance, one video an update.

Source: Fajtl et al., ACCV Workshops 2018, and its code. The authors keep the epoch that is best on the test videos;
nothing here looks at those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from training.datasets import Video
from training.procedures.tensors import importance, padded


@dataclass(frozen=True)
class VASNetConfig:
    """How VASNet is trained. Adam, constant learning rate, gradients left alone; 300 epochs, seed 12345."""

    learning_rate: float = 5e-5
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    batch_videos: int = 1
    """Videos per optimiser step, whose losses are averaged. More than one departs from the authors."""


class Regression:
    """See ``Procedure``."""

    defaults: ClassVar[VASNetConfig] = VASNetConfig()
    labels: ClassVar[tuple[str, ...]] = ("gtscore",)

    def __init__(self, model: nn.Module, config: VASNetConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        }

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        model, optimizer = self.networks["model"].train(), self.optimizers["model"]
        device = next(model.parameters()).device
        losses = []
        for batch in torch.randperm(len(videos)).split(self.config.batch_videos):
            drawn = [videos[index] for index in batch]
            features, lengths = padded(drawn, device)
            target = pad_sequence([importance(video) for video in drawn], batch_first=True).to(device)
            loss = (model(features, lengths) - target).square().sum(dim=1) / lengths  # scores in the padding are 0
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
            losses.append(loss.detach())
        return {"loss": float(torch.cat(losses).mean())}
