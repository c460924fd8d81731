"""Training of CSTA, PGL-SUM and VASNet as published: squared error of the scores to the annotators' importance.

Sources: Son et al., CVPR 2024; Apostolidis et al., ISM 2021; Fajtl et al., ACCV Workshops 2018, and their codes, which
differ in the settings below (``training.procedures.RECIPES``). The authors of CSTA and VASNet keep the epoch that is
best on the test videos; nothing here looks at those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.procedures.tensors import importance, padded


@dataclass(frozen=True)
class RegressionConfig:
    """How a scorer is trained by regression. Adam, constant learning rate; every video passes through alone."""

    learning_rate: float = 5e-5
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    batch_videos: int | None = 1
    """Videos per optimiser step. None: all of them."""
    average: bool = True
    """The gradients of a step's videos are averaged; otherwise they are added up."""
    max_grad_norm: float | None = None
    """Gradients of a step are scaled down to this total L2 norm. None: left alone."""
    stretch: bool = False
    """The gtscore of each video is brought to 0 .. 1 first."""


class Regression:
    """See ``Procedure``."""

    defaults: ClassVar[RegressionConfig] = RegressionConfig()
    labels: tuple[str, ...] = ("gtscore",)
    paced: ClassVar[bool] = False

    def __init__(self, model: nn.Module, config: RegressionConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(
                model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        }

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        config, model, optimizer = self.config, self.networks["model"].train(), self.optimizers["model"]
        device = next(model.parameters()).device
        losses, norms = [], []
        for batch in torch.randperm(len(videos)).split(config.batch_videos or len(videos)):
            optimizer.zero_grad(set_to_none=True)
            for index in batch:
                video = videos[index]
                target = importance(video) if config.stretch else torch.from_numpy(video.gtscore)
                loss = F.mse_loss(model(*padded([video], device))[0], target.to(device))
                (loss / len(batch) if config.average else loss).backward()
                losses.append(loss.detach())
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf))
            optimizer.step()
        return {"loss": float(torch.stack(losses).mean()), "grad_norm": float(torch.stack(norms).mean())}
