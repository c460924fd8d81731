"""Training of DSNet as published, both forms: proposals are drawn to the segments that annotators' importance selects.

Source: Zhu et al., IEEE TIP 2021, and its code. The authors keep the epoch that is best on the test videos; nothing
here looks at those. Where the original divides by a count of 0, the term is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.kernels import knapsack, shot_scores
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models.dsnet import AnchorOutputs, DSNetAB, DSNetAF, FreeOutputs
from vsum_runtime.training.procedures.tensors import importance, padded

_TINY = 1e-8


@dataclass(frozen=True)
class AnchorConfig:
    """How DSNet with anchors is trained. Adam, constant learning rate, gradients left alone; 300 epochs, seed 12345."""

    learning_rate: float = 5e-5
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    batch_videos: int = 1
    """Videos per optimiser step, whose losses are averaged. More than one departs from the authors."""
    positive_iou: float = 0.6
    """An anchor that overlaps a segment more than this (intersection over union) is positive."""
    negatives: float = 2.0
    """Anchors that touch no segment drawn as negative, per positive one."""
    incomplete_iou: float = 0.3
    """An anchor that overlaps some segment, but none more than this, is incomplete."""
    incompletes: float = 1.0
    """Incomplete anchors drawn as negative, per positive one."""
    loc_weight: float = 1.0
    """Of the error of the boxes."""


@dataclass(frozen=True)
class FreeConfig:
    """How DSNet without anchors is trained; otherwise as ``AnchorConfig``."""

    learning_rate: float = 5e-5
    weight_decay: float = 1e-5
    """L2 penalty inside the gradient."""
    batch_videos: int = 1
    """Videos per optimiser step, whose losses are averaged. More than one departs from the authors."""
    loc_weight: float = 1.0
    """Of the error of the boxes."""
    ctr_weight: float = 1.0
    """Of the error of the centreness."""


class AnchorBased:
    """See ``Procedure``."""

    defaults: ClassVar[AnchorConfig] = AnchorConfig()
    labels: tuple[str, ...] = ("gtscore", "shots")
    paced: ClassVar[bool] = False

    def __init__(self, model: DSNetAB, config: AnchorConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers = _adam(model, config)
        self._model = model

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        return _run_epoch(self._model, self.optimizers["model"], videos, self.config.batch_videos, self._loss)

    def _loss(self, outputs: AnchorOutputs, segments: NDArray[np.int64]) -> dict[str, Tensor]:
        config = self.config
        iou, offsets = anchor_targets(
            segments, len(outputs.cls), self._model.anchor_scales, positive_iou=config.positive_iou
        )
        labels = draw_labels(iou, config)
        device = outputs.cls.device
        return anchor_loss(outputs, labels.to(device), offsets.to(device), config)


class AnchorFree:
    """See ``Procedure``."""

    defaults: ClassVar[FreeConfig] = FreeConfig()
    labels: tuple[str, ...] = ("gtscore", "shots")
    paced: ClassVar[bool] = False

    def __init__(self, model: DSNetAF, config: FreeConfig, *, n_epochs: int) -> None:
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers = _adam(model, config)
        self._model = model

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        return _run_epoch(self._model, self.optimizers["model"], videos, self.config.batch_videos, self._loss)

    def _loss(self, outputs: FreeOutputs, segments: NDArray[np.int64]) -> dict[str, Tensor]:
        cls, loc, centre = (target.to(outputs.cls.device) for target in free_targets(segments, len(outputs.cls)))
        return free_loss(outputs, cls, loc, centre, self.config)


def key_segments(video: Video) -> NDArray[np.int64]:
    """The segments [K, 2] of steps, half-open, that a summary of the video's own importance would keep.

    Shots are worth the mean importance of their frames in whole thousandths, cut and not rounded, as the authors'
    knapsack takes integers.
    """
    assert video.shots is not None
    values = shot_scores.pool(importance(video).numpy(), video.picks, video.shots, video.n_frames)
    chosen = knapsack.pack(np.floor(1000 * values), video.shots[:, 1] - video.shots[:, 0], video.capacity)
    frames = np.zeros(video.n_frames + 1, dtype=np.int8)  # some files end their picks at n_frames
    for start, end in video.shots[chosen]:
        frames[start:end] = 1
    edges = np.diff(frames[video.picks], prepend=0, append=0)
    return np.stack((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)), axis=1)


def anchor_targets(
    segments: NDArray[np.int64], n_steps: int, widths: Sequence[int], *, positive_iou: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Compare the anchors of all steps, which may reach over the video's ends, with the target segments [K, 2].

    Returns
    -------
    iou : float32 [T, A]
        largest intersection over union with a segment
    offsets : float32 [T, A, 2]
        what ``loc`` shall be at positive anchors, 0 elsewhere; where several segments make an
        anchor positive the last counts
    """
    step = torch.arange(n_steps, dtype=torch.float32)[:, None]
    width = torch.tensor(widths, dtype=torch.float32)
    iou = torch.zeros(n_steps, len(widths))
    offsets = torch.zeros(n_steps, len(widths), 2)
    for start, end in segments.tolist():
        both = (torch.clamp(step + width / 2, max=end) - torch.clamp(step - width / 2, min=start)).clamp(min=0)
        overlap = both / (width + (end - start) - both)
        iou = torch.maximum(iou, overlap)
        shift = ((start + end) / 2 - step) / width
        stretch = ((end - start) / width).log().expand_as(shift)
        offsets = torch.where((overlap > positive_iou)[..., None], torch.stack((shift, stretch), dim=-1), offsets)
    return iou, offsets


def draw_labels(iou: Tensor, config: AnchorConfig) -> Tensor:
    """Anchors' overlaps [T, A] -> 1 positive, -1 negative (drawn anew at every call), 0 ignored."""
    labels = (iou > config.positive_iou).to(torch.int8)
    n_positive = int(labels.sum())
    for candidates, ratio in (
        (iou == 0, config.negatives),
        ((iou > 0) & (iou <= config.incomplete_iou), config.incompletes),
    ):
        among = candidates.flatten().nonzero().squeeze(1)
        drawn = among[torch.randperm(len(among))[: int(ratio * n_positive)]]
        labels.view(-1)[drawn] = -1
    return labels


def anchor_loss(
    outputs: AnchorOutputs, labels: Tensor, offsets: Tensor, config: AnchorConfig = AnchorBased.defaults
) -> dict[str, Tensor]:
    """Loss of one video, whose outputs are [T, A] and [T, A, 2], and its two terms."""
    cls = _probability(outputs.cls)
    positive, negative = labels == 1, labels == -1
    class_loss = (_mean(-cls[positive].log()) + _mean(-(1 - cls[negative]).log())) / 2
    box_loss = _mean(F.smooth_l1_loss(outputs.loc[positive], offsets[positive], reduction="none"))
    return {"loss": class_loss + config.loc_weight * box_loss, "cls": class_loss, "loc": box_loss}


def free_targets(segments: NDArray[np.int64], n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the outputs of each step shall be, given the target segments [K, 2].

    Returns
    -------
    inside : bool [T]
        steps of a segment, the positive ones
    distances : float32 [T, 2]
        steps to the first and to the last step of the segment, 0 elsewhere
    centreness : float32 [T]
        the smaller distance by the larger one; 0 elsewhere, and in a segment of one step
    """
    inside, distances = torch.zeros(n_steps, dtype=torch.bool), torch.zeros(n_steps, 2)
    for start, end in segments.tolist():
        onward = torch.arange(end - start)
        inside[start:end] = True
        distances[start:end] = torch.stack((onward, onward.flip(0)), dim=1).float()
    centreness = distances.amin(dim=1) / (distances.amax(dim=1) + _TINY)
    return inside, distances, centreness


def free_loss(
    outputs: FreeOutputs,
    inside: Tensor,
    distances: Tensor,
    centreness: Tensor,
    config: FreeConfig = AnchorFree.defaults,
) -> dict[str, Tensor]:
    """Loss of one video, whose outputs are [T], [T, 2] and [T], and its three terms.

    The class term is a focal loss; its published weight alpha is given to both classes, and so has no effect.
    """
    cls = _probability(outputs.cls)
    right = torch.where(inside, cls, 1 - cls)
    class_loss = ((1 - right).square() * -right.log()).sum() / inside.sum()

    predicted, target = outputs.loc[inside], distances[inside]
    both = torch.minimum(predicted, target).sum(dim=1)
    either = predicted.sum(dim=1) + target.sum(dim=1) - both
    iou = both / torch.where(either > 0, either, _TINY)
    box_loss = -(iou + _TINY).log().mean()
    centre_loss = F.binary_cross_entropy(outputs.ctr[inside], centreness[inside])
    return {
        "loss": class_loss + config.loc_weight * box_loss + config.ctr_weight * centre_loss,
        "cls": class_loss,
        "loc": box_loss,
        "ctr": centre_loss,
    }


def _probability(cls: Tensor) -> Tensor:
    """Kept from 0 and 1, whose logarithm has no end."""
    tiny = torch.finfo(cls.dtype).eps
    return cls.clamp(tiny, 1 - tiny)


def _mean(values: Tensor) -> Tensor:
    """0 for no values."""
    return values.sum() / max(values.numel(), 1)


def _adam(model: nn.Module, config: AnchorConfig | FreeConfig) -> dict[str, torch.optim.Optimizer]:
    return {
        "model": torch.optim.Adam(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
    }


def _run_epoch(
    model: DSNetAB | DSNetAF,
    optimizer: torch.optim.Optimizer,
    videos: Sequence[Video],
    batch_videos: int,
    loss_of: Callable[..., dict[str, Tensor]],
) -> dict[str, float]:
    """One pass over the videos that have target segments; ``loss_of`` takes one video's outputs and segments."""
    usable = [(video, segments) for video in videos if len(segments := key_segments(video))]
    if not usable:
        raise InputError(f"DSNet: expected a video whose summary has a shot, got {len(videos)} without any")
    model.train()
    device = next(model.parameters()).device
    log: list[dict[str, Tensor]] = []
    for batch in torch.randperm(len(usable)).split(batch_videos):
        drawn = [usable[index] for index in batch]
        features, lengths = padded([video for video, _ in drawn], device)
        outputs = model(features, lengths)
        terms = []
        for row, (n_steps, (_, segments)) in enumerate(zip(lengths.tolist(), drawn, strict=True)):
            terms.append(loss_of(type(outputs)(*(output[row, :n_steps] for output in outputs)), segments))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([term["loss"] for term in terms]).mean().backward()
        optimizer.step()
        log += [{name: value.detach() for name, value in term.items()} for term in terms]
    return {name: float(torch.stack([term[name] for term in log]).mean()) for name in log[0]}
