"""Training of our non-local ridge: its weights are solved for, in one pass and without random numbers.

The widths of its means and the penalty are chosen by cross-validation within the training videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video, importance_at_picks, unit_rows
from vsum_runtime.training.models.nonlocal_ridge import N_CUES, NonLocalRidge, average_over_similar

SIGMA_STEPS = (2.0, 3.0, 4.0)
SHARPNESS = (2.0, 3.0, 4.0, 6.0)
PENALTY = (10.0, 30.0, 100.0)
"""What ``fit`` chooses from; agreement with the annotators is flat around the middle."""

_CUE_SPREAD = 1 / 16  # standard deviation of a cue under the ridge penalty; descriptions have a mean norm of about 0.5


@dataclass(frozen=True)
class RidgeConfig:
    """There is nothing to set: cross-validation chooses."""


class Ridge:
    """See ``Procedure``. The headline is Kendall's tau in cross-validation: more is better."""

    defaults: ClassVar[RidgeConfig] = RidgeConfig()
    labels: tuple[str, ...] = ("gtscore",)
    optional_labels: ClassVar[tuple[str, ...]] = ("user_scores",)
    paced: ClassVar[bool] = True

    def __init__(self, model: NonLocalRidge, config: RidgeConfig, *, n_epochs: int) -> None:
        if n_epochs != 1:
            raise InputError(f"epochs: expected 1, as the weights are solved for, got {n_epochs}")
        self.networks = nn.ModuleDict({"model": model})
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.record: dict[str, Any] = {}
        self._rank = model.rank

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        device = next(self.networks.parameters()).device
        features = [video.features for video in videos if video.features is not None]
        model, settings = fit(features, [importance_at_picks(video) for video in videos], rank=self._rank)
        self.networks["model"] = model.to(device)
        self.record = {"tried": [asdict(setting) for setting in settings]}
        return {"cross_validation_tau": settings[0].tau}


@dataclass(frozen=True)
class Setting:
    """One point of the grid, and how well it did on training videos that its weights were not learned from."""

    sigma_steps: float
    sharpness: float
    penalty: float
    """Of the ridge regression, added to the sum of squares over all steps."""
    tau: float
    """Kendall's tau, mean over annotators, then over the videos, each scored while its fold was held out."""


def fit(
    features: Sequence[NDArray[np.float32]],
    importance: Sequence[NDArray[np.float64]],
    *,
    rank: int | None = None,
    folds: int = 8,
) -> tuple[NonLocalRidge, list[Setting]]:
    """Solve for the weights, after choosing the settings by cross-validation over the given videos.

    Parameters
    ----------
    features : float32 [T, D] per video
        raw
    importance : float64 [U, T] per video
        of each step to each annotator; the target is their mean
    rank : int
        as ``NonLocalRidge`` takes it
    folds : int
        parts that are held out in turn; at most one per video

    Returns
    -------
    model, settings
        with the weights from all videos; what was tried, the chosen setting first

    Raises
    ------
    InputError
        fewer than two videos, or arrays that do not fit together

    Notes
    -----
    The principal directions and the cues' spreads use all given videos, but no labels. The same input gives the same
    model on one machine. The logit of a score has mean 0 and standard deviation 1 over the given steps.
    """
    _check(features, importance, folds)
    targets = [users.mean(axis=0) for users in importance]
    held_out = np.random.default_rng(0).permutation(len(features)) % min(folds, len(features))
    directions = _principal_directions(features, NonLocalRidge(features[0].shape[1], rank=rank).rank)
    settings = []
    for sigma_steps in SIGMA_STEPS:
        described = _described(features, directions, sigma_steps)
        for sharpness in SHARPNESS:
            averaged = [video.averaged(sharpness) for video in described]
            moments = np.stack([_moments(x, y) for x, y in zip(averaged, targets, strict=True)])
            taus = np.empty((len(PENALTY), len(features)))
            for fold in range(held_out.max() + 1):
                lines = _ridge(moments[held_out != fold].sum(axis=0), PENALTY)
                for video in np.flatnonzero(held_out == fold).tolist():
                    taus[:, video] = [_tau(averaged[video] @ line, importance[video]) for line in lines]
            for penalty, tau in zip(PENALTY, taus.mean(axis=1), strict=True):
                settings.append(Setting(sigma_steps, sharpness, penalty, float(tau)))
    settings.sort(key=lambda setting: -setting.tau)
    return _solve(features, targets, directions, settings[0]), settings


def _solve(
    features: Sequence[NDArray[np.float32]],
    targets: Sequence[NDArray[np.float64]],
    directions: Tensor,
    setting: Setting,
) -> NonLocalRidge:
    described = _described(features, directions, setting.sigma_steps)
    averaged = [video.averaged(setting.sharpness) for video in described]
    moments = np.sum([_moments(x, y) for x, y in zip(averaged, targets, strict=True)], axis=0)
    (line,) = _ridge(moments, [setting.penalty])
    logits = np.concatenate([x @ line for x in averaged])
    line, bias = line / logits.std(), -logits.mean() / logits.std()

    model = _model(directions, setting.sigma_steps, setting.sharpness)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(line / described[0].scale))
        model.score.bias.fill_(bias)
    return model.eval()


def _model(directions: Tensor, sigma_steps: float, sharpness: float) -> NonLocalRidge:
    rank, feature_dim = directions.shape
    model = NonLocalRidge(feature_dim, rank=rank, sigma_steps=sigma_steps, sharpness=sharpness)
    with torch.no_grad():
        model.directions.weight.copy_(directions)
    return model


@dataclass(frozen=True)
class _Described:
    """One video as ``NonLocalRidge.describe`` sees it."""

    descriptions: Tensor
    similarity: Tensor
    scale: NDArray[np.float64]
    """[rank + 3] what the descriptions are divided by for the regression: it brings each cue to its spread."""

    def averaged(self, sharpness: float) -> NDArray[np.float64]:
        """[T, rank + 3], scaled."""
        lengths = torch.tensor([self.descriptions.shape[1]])
        mean = average_over_similar(self.descriptions, self.similarity, lengths, sharpness)
        return np.asarray(mean[0].double().numpy() / self.scale)


def _described(features: Sequence[NDArray[np.float32]], directions: Tensor, sigma_steps: float) -> list[_Described]:
    model = _model(directions, sigma_steps, 0.0)
    with torch.no_grad():
        pairs = [
            model.describe(torch.from_numpy(np.asarray(x, np.float32))[None], torch.tensor([len(x)])) for x in features
        ]
    cues = torch.cat([descriptions[0, :, -N_CUES:] for descriptions, _ in pairs]).double().numpy()
    scale = np.ones(len(directions) + N_CUES)
    # A cue that varies by less than a thousandth of its mean is rounding, such as the norm of normalised features.
    scale[-N_CUES:] = np.maximum(cues.std(axis=0), 1e-3 * np.abs(cues.mean(axis=0))) / _CUE_SPREAD
    return [_Described(*pair, scale) for pair in pairs]


def _principal_directions(features: Sequence[NDArray[np.float32]], rank: int) -> Tensor:
    """[rank, D], of the unit rows of all videos about their mean."""
    total: Any = 0.0
    moments: Any = 0.0
    count = 0
    for video in features:
        rows = unit_rows(video).astype(np.float64)
        total, moments, count = total + rows.sum(axis=0), moments + rows.T @ rows, count + len(rows)
    _, vectors = np.linalg.eigh(moments - np.outer(total, total) / count)
    return torch.from_numpy(vectors[:, ::-1][:, :rank].T.astype(np.float32))


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of products of the columns of [x, y, 1]: all that a regression needs to know, and additive over videos."""
    columns = np.column_stack((x, y, np.ones(len(y))))
    return np.asarray(columns.T @ columns)


def _ridge(moments: NDArray[np.float64], penalties: Sequence[float]) -> list[NDArray[np.float64]]:
    """The weights for each penalty; the intercept is not penalised."""
    sums = moments[-1, :-1]
    centred = moments[:-1, :-1] - np.outer(sums, sums) / moments[-1, -1]
    values, vectors = np.linalg.eigh(centred[:-1, :-1])
    along = vectors.T @ centred[:-1, -1]
    return [vectors @ (along / (np.maximum(values, 0) + penalty)) for penalty in penalties]


def _tau(scores: NDArray[np.float64], users: NDArray[np.float64]) -> float:
    """Mean over the annotators; one without a rank correlation counts 0."""
    return float(np.nan_to_num(metrics.kendall_tau(scores, users)).mean())


def _check(features: Sequence[NDArray[np.float32]], importance: Sequence[NDArray[np.float64]], folds: int) -> None:
    if len(features) != len(importance) or len(features) < 2 or folds < 2:
        raise InputError(
            "fit: expected features and importance of the same two or more videos and two or more folds, "
            f"got {len(features)} and {len(importance)} videos, {folds} folds"
        )
    for i, (rows, users) in enumerate(zip(features, importance, strict=True)):
        if rows.ndim != 2 or users.ndim != 2 or users.shape[1] != len(rows) or rows.shape[1] != features[0].shape[1]:
            raise InputError(
                f"fit: video {i}: expected features [T, {features[0].shape[1]}] and importance [U, T], "
                f"got {list(rows.shape)} and {list(users.shape)}"
            )
