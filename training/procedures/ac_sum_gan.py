"""Training of AC-SUM-GAN as published, without labels: four updates per batch, each of other networks.

Source: Apostolidis et al., IEEE TCSVT 31(8), 2021, and its code. There the videos of a batch are worked through one by
one and their gradients averaged; here those of like lengths go together, with the same result. The actor is rewarded
for picking fragments from which the video can be rebuilt; as published, what it learns does not reach the importance,
which learns from ``sparsity`` alone (``state_gradient`` lets it).

The authors train for every ``sparsity`` of 0.1, 0.2 .. 1.0, choose the epoch by ``best_epoch`` and then the sparsity by
the F-score on the test videos. ``best_run`` chooses both without labels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models.ac_sum_gan import ACSUMGAN, Networks
from vsum_runtime.training.procedures.tensors import padded

_log = logging.getLogger(__name__)

_TOGETHER = 8  # videos of like lengths in one padded batch; all 40 of TVSum together would be two thirds padding

_LossAndLog = tuple[Tensor, dict[str, Tensor]]
_Losses = Callable[[Tensor, Tensor], _LossAndLog]
"""Features and lengths in; losses [B] to go down by and what is logged of each video [B] out."""


@dataclass(frozen=True)
class ACSUMGANConfig:
    """How AC-SUM-GAN is trained. Adam, constant learning rates; 100 epochs."""

    sparsity: float = 0.5
    """What the mean importance of a video shall be (the authors' regularization factor)."""
    batch_videos: int | None = None
    """Videos per update. None: all of them, as published for TVSum."""
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 1e-5
    """Of the discriminator and, in the same update, of the compression."""
    max_grad_norm: float = 5.0
    """Gradients of an update are scaled down to this total L2 norm."""
    entropy_weight: float = 0.1
    """Of the entropy of the actor's choice, per step of an episode."""
    discount: float = 0.99
    """Of a reward, per step that it lies ahead."""
    state_gradient: bool = False
    """Let the actor's and the critic's losses reach the importance too. Not published."""


class ActorCriticGAN:
    """See ``Procedure``. The headline is the distance of a rebuilt video from the video itself: less is better."""

    defaults: ClassVar[ACSUMGANConfig] = ACSUMGANConfig()
    labels: tuple[str, ...] = ()
    paced: ClassVar[bool] = False

    def __init__(self, model: ACSUMGAN, config: ACSUMGANConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = Networks(model)
        networks: Any = self.networks
        autoencoder, discriminator, critic = (networks[n] for n in ("autoencoder", "discriminator", "critic"))
        self._trained: dict[str, list[nn.Parameter]] = {
            "encoder": _parameters(autoencoder.encoder, autoencoder.mean, autoencoder.variance),
            "decoder": _parameters(autoencoder.decoder, autoencoder.feedback),
            "discriminator": _parameters(discriminator, model.compress),
            "actor": _parameters(model),
            "critic": _parameters(critic),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(
                parameters,
                config.discriminator_learning_rate if name == "discriminator" else config.learning_rate,
                fused=True,
            )
            for name, parameters in self._trained.items()
        }

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        self.networks.train()
        device = next(self.networks.parameters()).device
        totals: dict[str, float] = {}
        for batch in torch.randperm(len(videos)).split(self.config.batch_videos or len(videos)):
            parts = _alike([videos[index] for index in batch], device)
            for line in (
                self._update(parts, self._encode, "encoder"),
                self._update(parts, self._decode, "decoder"),
                self._update(parts, self._discriminate, "discriminator"),
                self._update(parts, self._act, "actor", "critic"),
            ):
                for name, value in line.items():
                    totals[name] = totals.get(name, 0.0) + value * len(batch) / len(videos)
        return {"reconstruction": totals.pop("reconstruction")} | totals

    def _update(self, parts: Sequence[tuple[Tensor, Tensor]], losses: _Losses, *names: str) -> dict[str, float]:
        """Change what ``names`` train, by the mean loss of all videos; returns means of what is logged."""
        parameters = [parameter for name in names for parameter in self._trained[name]]
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        n_videos = sum(len(lengths) for _, lengths in parts)
        logged: dict[str, float] = {}
        for features, lengths in parts:
            loss, line = losses(features, lengths)
            (loss.sum() / n_videos).backward(inputs=parameters)
            for name, value in line.items():
                logged[name] = logged.get(name, 0.0) + float(value.detach().sum()) / n_videos
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        for name in names:
            self.optimizers[name].step()
        return logged | {f"{names[0]}_grad_norm": float(norm)}

    def _encode(self, features: Tensor, lengths: Tensor) -> _LossAndLog:
        with torch.no_grad():
            steps, weighed = self._weighed(features, lengths)
        rebuilt, mean, log_variance = self.networks["autoencoder"](weighed, lengths, draw_noise(steps))
        prior = (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=(0, 2)) / 2
        loss = self._distance(steps, rebuilt, lengths) + prior
        return loss, {"encoder": loss, "prior": prior}

    def _decode(self, features: Tensor, lengths: Tensor) -> _LossAndLog:
        with torch.no_grad():
            steps, weighed = self._weighed(features, lengths)
        rebuilt, _, _ = self.networks["autoencoder"](weighed, lengths, draw_noise(steps))
        distance = self._distance(steps, rebuilt, lengths)
        generator = (self.networks["discriminator"](rebuilt, lengths)[1] - 1).square()
        step_distance = torch.linalg.vector_norm(steps - rebuilt, dim=2)
        valid = torch.arange(steps.shape[1], device=lengths.device) < lengths[:, None]
        return distance + generator, {
            "reconstruction": distance,
            "step_distance": (step_distance * valid).sum(dim=1) / lengths,
            "generator": generator,
            "decoder": distance + generator,
        }

    def _discriminate(self, features: Tensor, lengths: Tensor) -> _LossAndLog:
        with torch.no_grad():
            steps, weighed = self._weighed(features, lengths)
            rebuilt, _, _ = self.networks["autoencoder"](weighed, lengths, draw_noise(steps))
        steps = self._model.compressed(features, lengths)
        original = (self.networks["discriminator"](steps, lengths)[1] - 1).square()
        summary = self.networks["discriminator"](rebuilt, lengths)[1].square()
        return original + summary, {"original": original, "summary": summary}

    def _act(self, features: Tensor, lengths: Tensor) -> _LossAndLog:
        steps = self._model.compressed(features, lengths)
        importance = self._model.importance(steps, lengths)
        sparsity = (importance.sum(dim=1) / lengths - self.config.sparsity).abs()
        actor, critic, logged = self._play(steps, importance, lengths)
        loss = actor + sparsity + critic
        return loss, {"sparsity": sparsity, "actor": actor, "critic": critic, **logged}

    def _play(self, steps: Tensor, importance: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One episode: losses of actor and critic [B], and what is logged about it."""
        model, config = self._model, self.config
        episode = model.episode(importance if config.state_gradient else importance.detach(), lengths)
        log_likelihoods, entropies, values, new, weights = [], [], [], [], []
        for _ in range(model.termination_point):
            choice = model.actor(episode.state).log_softmax(dim=-1)
            action = draw_actions(choice)
            log_likelihoods.append(choice.gather(1, action[:, None]).squeeze(1))
            entropies.append(-(choice.exp() * choice).sum(dim=1))
            values.append(self.networks["critic"](episode.state).squeeze(1))
            new.append(episode.pick(action))
            weights.append(episode.weights())
        with torch.no_grad():
            rewards, probability = self._judge(steps, importance * torch.stack(weights), lengths)
        rewards = rewards * torch.stack(new)  # a repeated pick earns nothing
        returns = [rewards[-1]]
        for reward in rewards[:-1].flip(0):
            returns.insert(0, reward + config.discount * returns[0])
        advantage = torch.stack(returns) - torch.stack(values)
        gain = (torch.stack(log_likelihoods) * advantage.detach()).mean(dim=0)
        actor = -gain - config.entropy_weight * torch.stack(entropies).mean(dim=0)
        critic = advantage.square().mean(dim=0)
        played = episode.counts  # without as many steps as fragments there is no episode to learn from
        logged = {"reward": rewards.mean(dim=0) * played, "summary_probability": probability[-1] * played}
        return actor * played, critic * played, logged

    def _judge(self, steps: Tensor, importance: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What each of n weighings, importance [n, B, T], is worth: rewards and the discriminator's verdicts [n, B]."""
        discriminator, n_weighings = self.networks["discriminator"], len(importance)
        weighed = (steps * importance[..., None]).flatten(0, 1)
        rebuilt, _, _ = self.networks["autoencoder"](weighed, lengths.repeat(n_weighings), draw_noise(weighed))
        hidden, probability = discriminator(rebuilt, lengths.repeat(n_weighings))
        distance = hidden.unflatten(0, (n_weighings, -1)) - discriminator(steps, lengths)[0]
        return 1 - torch.linalg.vector_norm(distance, dim=2), probability.unflatten(0, (n_weighings, -1))

    @property
    def _model(self) -> ACSUMGAN:
        model = self.networks["model"]
        assert isinstance(model, ACSUMGAN)
        return model

    def _weighed(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed steps [B, T, H], and the same weighed by their importance and an episode of the actor."""
        steps = self._model.compressed(features, lengths)
        importance = self._model.importance(steps, lengths)
        episode = self._model.episode(importance, lengths)
        for _ in range(self._model.termination_point):
            episode.pick(draw_actions(self._model.actor(episode.state)))
        return steps, steps * (importance * episode.weights())[..., None]

    def _distance(self, steps: Tensor, rebuilt: Tensor, lengths: Tensor) -> Tensor:
        """Between the discriminator's views of a video and of its reconstruction, [B]."""
        hidden, hidden_rebuilt = (self.networks["discriminator"](x, lengths)[0] for x in (steps, rebuilt))
        return torch.linalg.vector_norm(hidden - hidden_rebuilt, dim=1)


def _alike(videos: Sequence[Video], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Padded batches of videos of like lengths."""
    longest_first = sorted(videos, key=lambda video: -len(video.picks))
    starts = range(0, len(videos), _TOGETHER)
    return [padded(longest_first[start : start + _TOGETHER], device) for start in starts]


def draw_actions(logits: Tensor) -> Tensor:
    """One fragment per video, int64 [B], from unnormalised log probabilities [B, n]."""
    return torch.distributions.Categorical(logits=logits).sample()


def draw_noise(steps: Tensor) -> Tensor:
    """What the autoencoder adds for steps [B, T, H]: standard normal numbers [2, B, H]."""
    return torch.randn(2, steps.shape[0], steps.shape[2], device=steps.device, dtype=steps.dtype)


def best_epoch(log: Sequence[Mapping[str, float]]) -> int:
    """The authors' choice of an epoch, from 1, by what ``run_epoch`` returned for each: a reward that is great while
    the actor's loss is small, both relative to their greatest value.
    """
    return best_run({0.0: log})[1]


def best_run(logs: Mapping[float, Sequence[Mapping[str, float]]]) -> tuple[float, int]:
    """Sparsity and epoch, from 1, that maximise the authors' criterion over the logs of runs of one split.

    Where no reward is positive, relative rewards would be in reverse order; rewards are then rescaled to 0 .. 1.
    """
    pairs = [(sparsity, epoch) for sparsity, log in logs.items() for epoch in range(1, len(log) + 1)]
    actor = np.abs([line["actor"] for log in logs.values() for line in log])
    reward = np.array([line["reward"] for log in logs.values() for line in log])
    if reward.max() <= 0:
        _log.info("no reward is positive: the epoch is chosen by rewards rescaled to 0 .. 1")
        reward = reward - reward.min()
    scale = reward.max() or math.inf
    return pairs[int(np.argmax((1 - actor / (actor.max() or 1.0)) * reward / scale))]


def _parameters(*networks: nn.Module) -> list[nn.Parameter]:
    return [parameter for network in networks for parameter in network.parameters()]
