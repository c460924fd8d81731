"""Training of CA-SUM as published, without labels: the mean score of every video is drawn towards one number.

Source: Apostolidis et al., ICMR 2022, and its code, whose choices of epoch and of that number look at the training loss
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.procedures.tensors import padded

SIGMAS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The values of ``sigma`` that the authors try."""

_SETTLED = 20  # epochs that are not chosen


@dataclass(frozen=True)
class CASumConfig:
    """How CA-SUM is trained. Adam, constant learning rate, one step an epoch; 400 epochs, seed 12345."""

    learning_rate: float = 5e-4
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    max_grad_norm: float = 5.0
    """Of the gradients of all videos added up, which are scaled down to this total L2 norm."""
    sigma: float = 0.5
    """What the mean score of a video shall be; see ``SIGMAS`` and ``published_sigma``."""


class Length:
    """See ``Procedure``."""

    defaults: ClassVar[CASumConfig] = CASumConfig()
    labels: tuple[str, ...] = ()
    paced: ClassVar[bool] = False

    def __init__(self, model: nn.Module, config: CASumConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(
                model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        }

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        model, optimizer = self.networks["model"].train(), self.optimizers["model"]
        device = next(model.parameters()).device
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for video in videos:
            loss = length_loss(model(*padded([video], device))[0], self.config.sigma)
            loss.backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
        optimizer.step()
        return {"loss": float(torch.stack(losses).mean())}


def length_loss(scores: Tensor, sigma: float) -> Tensor:
    """Scores [T] -> how far their mean is from ``sigma``."""
    return (scores.mean() - sigma).abs()


def published_choice(log: Sequence[Mapping[str, float]]) -> int:
    """The epoch (from 1) of least training loss after the first 20; of a shorter run, of them all."""
    first = _SETTLED if len(log) > _SETTLED else 0
    return 1 + min(range(first, len(log)), key=lambda index: log[index]["loss"])


def published_sigma(logs: Mapping[float, Sequence[Mapping[str, float]]]) -> float:
    """Of sigma -> log of its run: the one whose chosen epoch has improved most on the untrained network.

    The first epoch's losses are the untrained network's, as its one update comes after them.
    """
    return max(logs, key=lambda sigma: logs[sigma][0]["loss"] - logs[sigma][published_choice(logs[sigma]) - 1]["loss"])
