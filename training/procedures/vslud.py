"""Training of VSLUD as published, from unpaired data: raw videos, and human summaries of other videos.

Source: Rochan and Wang, CVPR 2019 (UnpairedVSN), and a community code. A selector picks k steps of a video and rebuilds
their features so that a discriminator takes them for a human summary, that they stay near the originals, and that they
differ from one another. The partially supervised variant also shows some of the raw videos' own summaries.

Picking k steps has no gradient, and a selector without one ceases to learn as soon as it has learned to copy features.
Here the forward pass picks, and the backward pass is that of ``select``: a soft choice that spends the same budget, so
that every step competes for it. ``selection="soft"`` is what the community code does instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models.vslud import VSLUD, SummaryDiscriminator
from vsum_runtime.training.procedures.fcsn import balanced_cross_entropy, key_steps
from vsum_runtime.training.procedures.tensors import padded

SELECTIONS = ("ste_topk", "gumbel_topk", "soft")


@dataclass(frozen=True)
class VSLUDConfig:
    """How VSLUD is trained. One video and one summary an update; Adam for the selector, plain SGD for the
    discriminator; 1000 epochs, the last of which counts.
    """

    learning_rate: float = 1e-5
    """Of the selector."""
    discriminator_learning_rate: float = 2e-4
    adversarial_weight: float = 1.0
    """0: no discriminator and no human summaries, which is how SUM-FCN is trained without labels."""
    reconstruction_weight: float = 1.0
    diversity_weight: float = 1.0
    """The authors' beta; 1 for SumMe, 5 is reported for TVSum."""
    ratio: float = 0.15
    """Share of the steps that is selected; at least two are."""
    selection: str = "ste_topk"
    """``ste_topk``: the k best steps; ``gumbel_topk``: a draw of k steps, the better the likelier; ``soft``: all steps,
    weighed by their scores."""
    temperature: float = 1.0
    """Of the soft choice that stands behind the hard one, in the first epoch."""
    last_temperature: float = 0.1
    """In the last; in between it falls by the same factor every epoch."""
    paired_share: float = 0.0
    """Share of the raw videos that come with their own summary; the authors' partial supervision has 0.1."""
    pool_seed: int = 0
    """Divides the training videos into raw ones and those that only lend their summaries, for the whole run."""


class Unpaired:
    """See ``Procedure``. The headline is the selector's objective: less is better, the discriminator being as it is."""

    defaults: ClassVar[VSLUDConfig] = VSLUDConfig()
    labels: tuple[str, ...] = ("gtscore", "shots")
    paced: ClassVar[bool] = True

    def __init__(self, model: VSLUD, config: VSLUDConfig, *, n_epochs: int) -> None:
        if config.selection not in SELECTIONS:
            raise InputError(f"selection: expected one of {', '.join(SELECTIONS)}, got {config.selection!r}")
        self.config = config
        if not config.adversarial_weight and not config.paired_share:
            self.labels = ()
        self._n_epochs = n_epochs
        self._model = model
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
        }
        if config.adversarial_weight:
            options = {key: value for key, value in model.options.items() if key != "n_class"}
            self._discriminator = SummaryDiscriminator(model.feature_dim, **options)
            self._discriminator.to(next(model.parameters()).device)
            self.networks["discriminator"] = self._discriminator
            self.optimizers["discriminator"] = torch.optim.SGD(
                self._discriminator.parameters(), config.discriminator_learning_rate, fused=True
            )

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        config = self.config
        self.networks.train()
        progress = (epoch - 1) / max(1, self._n_epochs - 1)
        temperature = config.temperature * (config.last_temperature / config.temperature) ** progress
        raw, paired, summaries = self._pool(len(videos))
        lent = [summaries[index] for index in torch.randperm(len(summaries))] if config.adversarial_weight else raw
        lines = []
        for index, other in zip([raw[index] for index in torch.randperm(len(raw))], lent, strict=False):
            summary, line = self._update_selector(videos[index], temperature, paired=index in paired)
            if config.adversarial_weight:
                line |= self._update_discriminator(summary.detach(), videos[other])
            lines.append(line)
        return {name: float(torch.stack([line[name] for line in lines]).mean()) for name in lines[0]}

    def _pool(self, n_videos: int) -> tuple[list[int], set[int], list[int]]:
        """Indices of raw videos, of those among them that are paired with their summary, and of lent summaries."""
        order = np.random.default_rng(self.config.pool_seed).permutation(n_videos).tolist()
        if not self.config.adversarial_weight:
            raw, summaries = order, []
        elif n_videos < 2:
            raise InputError(f"unpaired training: expected a raw video and a summary of another, got {n_videos} video")
        else:
            raw, summaries = order[: n_videos // 2], order[n_videos // 2 :]
        return raw, set(raw[: round(self.config.paired_share * len(raw))]), summaries

    def _update_selector(self, video: Video, temperature: float, *, paired: bool) -> tuple[Tensor, dict[str, Tensor]]:
        config, model = self.config, self._model
        features, lengths = padded([video], next(model.parameters()).device)
        logits = model.logits(features, lengths)
        chosen, weight, summary = self._rebuilt(features, logits, temperature)
        reconstruction, diversity = summary_losses(summary[0], features[0, chosen], weight)
        loss = config.reconstruction_weight * reconstruction + config.diversity_weight * diversity
        line = {"reconstruction": reconstruction, "diversity": diversity}
        if config.adversarial_weight:
            line["adversarial"] = F.softplus(-self._verdict(summary))  # -log of the probability of being human
            loss = loss + config.adversarial_weight * line["adversarial"]
        if config.paired_share:
            keys = torch.from_numpy(key_steps(video))
            line["supervised"] = balanced_cross_entropy(logits[0], keys) if paired else torch.zeros_like(loss)
            loss = loss + line["supervised"]
        self.optimizers["model"].zero_grad(set_to_none=True)
        loss.backward(inputs=list(model.parameters()))
        self.optimizers["model"].step()
        line = {"loss": loss, **line, "score_spread": torch.sigmoid(logits[0, 1] - logits[0, 0]).std(correction=0)}
        return summary, {name: value.detach() for name, value in line.items()}

    def _rebuilt(self, features: Tensor, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """The steps that are selected [K], their weights in the losses [K], and their features as rebuilt [1, K, D]."""
        margin = logits[0, 1] - logits[0, 0]
        if self.config.selection == "soft":
            chosen, mask = torch.arange(len(margin), device=margin.device), torch.sigmoid(margin)
            weight = mask
        else:
            n_chosen = min(max(2, int(self.config.ratio * len(margin))), len(margin))
            if self.config.selection == "gumbel_topk":
                margin = margin - torch.empty_like(margin).exponential_().log()
            chosen, mask = select(margin, n_chosen, temperature)
            weight = torch.ones_like(mask[chosen])
        lengths = torch.tensor([len(chosen)], device=margin.device)
        summary = self._model.reconstruct(features[:, chosen], logits[:, :, chosen], mask[None, chosen], lengths)
        return chosen, weight, summary

    def _update_discriminator(self, rebuilt: Tensor, human: Video) -> dict[str, Tensor]:
        assert human.features is not None
        rows = torch.from_numpy(human.features[key_steps(human)])[None].to(rebuilt.device)
        real, fake = F.softplus(-self._verdict(rows)), F.softplus(self._verdict(rebuilt))
        self.optimizers["discriminator"].zero_grad(set_to_none=True)
        (real + fake).backward()
        self.optimizers["discriminator"].step()
        return {"discriminator_real": real.detach(), "discriminator_fake": fake.detach()}

    def _verdict(self, summary: Tensor) -> Tensor:
        """Logit of the probability that a human made the summary [1, K, D]."""
        return self._discriminator.logit(summary, torch.tensor([summary.shape[1]], device=summary.device))[0]


def select(margin: Tensor, n_chosen: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Choose steps by their margins [T], differentiably.

    Parameters
    ----------
    margin : float [T]
        how much a step is preferred
    n_chosen : int
        k, 1 .. T
    temperature : float
        > 0; the lower, the fewer steps around the threshold have a gradient

    Returns
    -------
    chosen : int64 [k]
        the steps of greatest margin, ascending; of equal ones the earlier
    mask : float [T]
        1 for chosen steps, 0 for others; its gradient is that of the soft choice

    Notes
    -----
    The soft choice is r = sigmoid((margin - threshold) / temperature), with the threshold at which it adds up to k.
    With a = r (1 - r) / temperature, its derivative is dr_t / dmargin_j = a_t (1[t = j] - a_j / sum(a)): what one step
    gains, others lose. k = T leaves nothing to choose, and no gradient.
    """
    order = torch.argsort(margin.detach(), descending=True, stable=True)
    chosen = order[:n_chosen].sort().values
    hard = torch.zeros_like(margin).index_fill(0, chosen, 1.0)
    if n_chosen == len(margin):
        return chosen, hard
    x = margin / temperature
    threshold = _threshold(x.detach(), n_chosen)
    distance = x.detach() - threshold
    share = (F.logsigmoid(distance) + F.logsigmoid(-distance)).softmax(dim=0)  # a / sum(a), also where a underflows
    soft = torch.sigmoid(x - threshold - (share * (x - x.detach())).sum())
    return chosen, hard + (soft - soft.detach())


def _threshold(x: Tensor, n_chosen: int) -> Tensor:
    """By bisection: where sigmoid(x - threshold) adds up to ``n_chosen`` < T."""
    values = x.double()
    reach = np.log(len(x)) + 1
    low, high = values.min() - reach, values.max() + reach
    for _ in range(60):
        middle = (low + high) / 2
        above = torch.sigmoid(values - middle).sum() > n_chosen
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2).to(x.dtype)


def summary_losses(summary: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """How far rebuilt steps [K, D] are from the originals, and how alike they are among themselves.

    Parameters
    ----------
    weight : float [K]
        1 where steps were chosen; scores where all steps are used softly; M is their sum

    Returns
    -------
    reconstruction
        sum of weight^2 times the squared distance, divided by M
    diversity
        weighted sum of the cosines of all ordered pairs, divided by M (M - 1); 0 if M < 2
    """
    total = weight.sum()
    reconstruction = (weight.square() * (summary - features).square().sum(dim=1)).sum() / total
    if total < 2:
        return reconstruction, torch.zeros_like(reconstruction)
    unit = F.normalize(summary, dim=1) * weight[:, None]
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return reconstruction, pairs / (total * (total - 1))
