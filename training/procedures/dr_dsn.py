"""Training of DR-DSN as published, by reinforcement and without labels: summaries are drawn and rewarded.

Source: Zhou, Qiao and Xiang, AAAI 2018, and its code, whose epoch is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.procedures.tensors import padded


@dataclass(frozen=True)
class DRDSNConfig:
    """How DR-DSN is trained. Adam, one video an update; 60 epochs, seed 1."""

    learning_rate: float = 1e-5
    decay_epochs: int = 30
    """The learning rate is multiplied by ``decay`` every so many epochs."""
    decay: float = 0.1
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    max_grad_norm: float = 5.0
    """Gradients of an update are scaled down to this total L2 norm."""
    episodes: int = 5
    """Summaries drawn per video and epoch."""
    share: float = 0.5
    """What the mean probability shall be."""
    share_weight: float = 0.01
    """Of the squared difference from ``share``."""
    momentum: float = 0.9
    """Share of its old value that the baseline of a video keeps in an epoch; the rest is the mean reward."""


class Reinforcement:
    """See ``Procedure``. The headline is a reward: more is better."""

    defaults: ClassVar[DRDSNConfig] = DRDSNConfig()
    labels: tuple[str, ...] = ()
    paced: ClassVar[bool] = False

    def __init__(self, model: nn.Module, config: DRDSNConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model, "baselines": _Baselines()})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(
                model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        }

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        config = self.config
        model, optimizer = self.networks["model"].train(), self.optimizers["model"]
        baselines = self.networks["baselines"].of(len(videos))  # type: ignore[operator]
        device = next(model.parameters()).device
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.decay ** ((epoch - 1) // config.decay_epochs)
        totals, losses = [], []
        for index in torch.randperm(len(videos)).tolist():
            features, lengths = padded([videos[index]], device)
            probabilities = model(features, lengths)[0]
            picked = torch.bernoulli(probabilities.detach().expand(config.episodes, -1))
            reward = torch.stack([torch.add(*rewards(features[0], picks > 0)) / 2 for picks in picked])
            log_likelihood = -F.binary_cross_entropy(probabilities.expand_as(picked), picked, reduction="none")
            advantage = reward - baselines[index]
            loss = length_penalty(probabilities, config) - (log_likelihood.mean(dim=1) * advantage).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            baselines[index] = config.momentum * baselines[index] + (1 - config.momentum) * reward.mean()
            totals.append(reward.mean())
            losses.append(loss.detach())
        return {"reward": float(torch.stack(totals).mean()), "loss": float(torch.stack(losses).mean())}


def length_penalty(probabilities: Tensor, config: DRDSNConfig) -> Tensor:
    """Probabilities [T] -> what keeps their mean near the wanted share."""
    return config.share_weight * (probabilities.mean() - config.share).square()


def rewards(features: Tensor, picked: Tensor, *, reach: int = 20) -> tuple[Tensor, Tensor]:
    """How good a summary is.

    Parameters
    ----------
    features : float [T, D]
    picked : bool [T]
        the steps of the summary
    reach : int
        steps further apart count as wholly unlike

    Returns
    -------
    diversity
        mean of 1 - cosine over the ordered pairs of picked steps; 0 if fewer than two are picked
    representativeness
        exp(-mean squared distance of a step to the nearest picked one); 0 if none is picked
    """
    index = picked.nonzero().squeeze(1)
    if len(index) == 0:
        return features.new_zeros(()), features.new_zeros(())
    kept = features[index]
    squared = features.square().sum(dim=1, keepdim=True) - 2 * features @ kept.T + kept.square().sum(dim=1)
    representativeness = torch.exp(-squared.amin(dim=1).clamp(min=0).mean())
    if len(index) == 1:
        return features.new_zeros(()), representativeness
    unit = F.normalize(kept, dim=1)
    unlike = 1 - unit @ unit.T
    unlike = unlike.masked_fill((index[:, None] - index).abs() > reach, 1.0).fill_diagonal_(0.0)
    return unlike.sum() / (len(index) * (len(index) - 1)), representativeness


class _Baselines(nn.Module):
    """The running mean reward of each training video, in their order; a buffer, so that a checkpoint holds it."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(0))

    def of(self, n_videos: int) -> Tensor:
        if len(self.value) != n_videos:
            self.value = self.value.new_zeros(n_videos)
        return self.value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (stored := state_dict.get(f"{prefix}value")) is not None:
            self.value = self.value.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
