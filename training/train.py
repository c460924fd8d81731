"""One split of one data set in, one trained model out: the published recipes, resumable, the test videos never read.

A run lives in ``<runs>/<data set>/<model>/split<k>/``:

``last.safetensors``      weights, optimiser state and log after the newest epoch; a killed run goes on from it
``best.safetensors``      the weights that the selection rule chooses among the epochs so far
``epoch<e>.safetensors``  weights the rule may still choose; ``best`` is another name of one of them
``log.jsonl``             one line per epoch
``tensorboard/``          the same numbers, where TensorBoard is installed

The order of the videos and the dropout of an epoch depend on (seed, epoch) alone, so on a CPU with the same number of
threads a run that was killed and resumed ends with the same bits as one in a single go.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels import metrics
from runtime.atomic import replacing
from runtime.errors import InputError, VsumError
from training import models
from training.checkpoint import load_checkpoint, load_optimizer, load_weights, save_checkpoint
from training.datasets import Dataset, Split, Splits, Video, importance_at_picks, unit_rows

_log = logging.getLogger(__name__)

Sample = tuple[Tensor, Tensor, Tensor]
"""Features [1, T, D], lengths [1], targets [1, T]: one video, as every forward in training sees it."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The loss of a video is the mean squared error to its gtscore; the optimiser is Adam."""

    epochs: int
    """Passes over the training videos."""
    learning_rate: float
    """Constant."""
    weight_decay: float
    """L2 penalty inside the gradient."""
    batch_videos: int | None
    """Videos per optimiser step; their gradients are added up, not averaged. None: all of them."""
    max_grad_norm: float | None
    """Gradients of a step are scaled down to this total L2 norm. None: left alone."""
    seed: int
    """Of the initial weights, the order of the videos, dropout and the choice of validation videos."""
    select: str = "validation"
    """Rule that chooses the epoch, a key of ``RULES``."""
    validation_share: float = 0.2
    """Share of the training videos that the rule ``validation`` holds out."""
    feature_norm: str = "auto"
    """``none``; ``l2``: rows divided by their norm; ``auto``: l2 unless the median norm lies in 0.9 .. 1.1."""
    stretch_target: bool = False
    """The gtscore of each video is brought to 0 .. 1 first."""


PUBLISHED: dict[str, TrainConfig] = {
    "csta": TrainConfig(100, 1e-3, 1e-7, batch_videos=1, max_grad_norm=None, seed=123456),
    "pgl_sum": TrainConfig(200, 5e-5, 1e-5, batch_videos=None, max_grad_norm=5.0, seed=12345),
    "vasnet": TrainConfig(300, 5e-5, 1e-5, batch_videos=1, max_grad_norm=None, seed=12345, stretch_target=True),
}
"""Model -> the recipe of its authors, except that the epoch is chosen on held-out training videos."""


def published(model_name: str) -> TrainConfig:
    """The recipe of a model's authors."""
    if model_name not in PUBLISHED:
        raise InputError(f"model: expected one of {', '.join(PUBLISHED)}, got {model_name!r}")
    return PUBLISHED[model_name]


@dataclass(frozen=True)
class Epoch:
    """One line of a run's log."""

    epoch: int
    """Epochs done, from 1."""
    loss: float
    """Mean over the training videos, each before the step it takes part in."""
    validation_tau: float | None
    """Mean Kendall tau of the validation videos. None: nothing held out, or constant scores."""
    grad_norm: float
    """Mean over the steps, before scaling down."""
    seconds: float
    """Training and validation, without writing."""


def train_split(
    model_name: str,
    dataset: Dataset,
    splits: Splits | None,
    split: Split,
    *,
    config: TrainConfig | None = None,
    options: Mapping[str, Any] | None = None,
    runs: Path = Path("runs"),
    device: str = "cpu",
    fresh: bool = False,
    report: Callable[[Epoch], None] | None = None,
) -> Path:
    """Train on ``split.train_keys``, going on from where an earlier run in the same place stopped.

    Parameters
    ----------
    model_name, options : as ``training.models.build`` takes them
    splits : the file that ``split`` is from; None where it is from none
    config : None takes the model's published recipe
    runs : folder of all runs
    fresh : begin anew instead of going on
    report : called with every line of the log, those of the earlier run included

    Returns
    -------
    path of ``best.safetensors``

    Raises
    ------
    InputError   unknown model, option or rule; missing fields; an earlier run in the same place made otherwise
    """
    config = _checked(config or published(model_name))
    train_keys, validation_keys = _hold_out(split.train_keys, config)
    train_videos = dataset.select(train_keys, need=("features", "gtscore"))
    validation_videos = dataset.select(validation_keys, need=("features", "gtscore"))
    feature_dim = _features(train_videos[0]).shape[1]
    feature_norm = _feature_norm(config, train_videos)
    folder = runs / dataset.name / model_name / (f"split{split.number}" if splits else "whole")

    with _deterministic(config.seed):
        model = models.build(model_name, feature_dim=feature_dim, **(options or {})).to(device)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        identity = {
            "model": model_name,
            "options": model.options,
            "feature_dim": feature_dim,
            "feature_norm": feature_norm,
            "dataset": {"name": dataset.name, "sha256": dataset.sha256, "recipe": dataset.recipe},
            "splits": None if splits is None else {"name": splits.name, "sha256": splits.sha256},
            "split": None if splits is None else split.number,
            "train_keys": list(train_keys),
            "validation_keys": list(validation_keys),
            "seed": config.seed,
            "config": asdict(config),
        }
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        log = _resume(folder / "last.safetensors", identity, model, optimizer)
        folder.mkdir(parents=True, exist_ok=True)
        for remnant in folder.glob(".*.tmp"):  # of a write that was killed
            remnant.unlink()
        if report is not None:
            for line in log:
                report(line)
        samples = [_sample(video, feature_norm, config, device) for video in train_videos]
        held_out = [_sample(video, feature_norm, config, device) for video in validation_videos]
        references = [importance_at_picks(video) for video in validation_videos]
        with _tensorboard(folder / "tensorboard", done=len(log)) as plot:
            while len(log) < config.epochs:
                line = _run_epoch(len(log) + 1, model, optimizer, samples, held_out, references, config)
                log.append(line)
                _save(folder, identity, model, optimizer, log, config)
                plot(line)
                if report is not None:
                    report(line)
    return folder / "best.safetensors"


def published_choice(log: Sequence[Epoch]) -> int:
    """The rule of PGL-SUM's authors, which looks at the training loss only.

    The candidate is the first epoch from the 17th on whose loss fell by at least 1 %, or the epoch before the first
    rise by as much, or else the first epoch. The epoch of least loss is taken instead if the loss moved less before it.
    """
    losses = [line.loss for line in log]
    candidate, change = _published_candidate(losses)
    least = int(np.argmin(losses))
    change_before_least = 100 * (losses[least] - losses[least - 1]) / losses[least]
    return 1 + (least if abs(change_before_least) < abs(change) else candidate)


def validation_choice(log: Sequence[Epoch]) -> int:
    """The first epoch of greatest validation tau."""
    return 1 + int(np.argmax([-np.inf if line.validation_tau is None else line.validation_tau for line in log]))


def last_choice(log: Sequence[Epoch]) -> int:
    """The last epoch."""
    return len(log)


RULES: dict[str, Callable[[Sequence[Epoch]], int]] = {
    "validation": validation_choice,
    "training-loss": published_choice,
    "last": last_choice,
}
"""Name -> the log so far in, the chosen epoch (from 1) out. No rule can see the test videos."""


def _published_candidate(losses: Sequence[float]) -> tuple[int, float]:
    """Index of the candidate, and the change in percent that made it one (0.0: none did yet)."""
    for i in range(15, len(losses) - 1):
        change = 100 * (losses[i + 1] - losses[i]) / losses[i + 1]
        if abs(change) >= 1:
            return (i + 1 if change < 0 else i), change
    return 0, 0.0


def _eligible(log: Sequence[Epoch], config: TrainConfig) -> set[int]:
    """Epochs so far whose weights must be kept, because the rule chooses them now or may do so later."""
    if config.select == "last" and len(log) < config.epochs:
        return set()
    eligible = {RULES[config.select](log)}
    if config.select == "training-loss":
        losses = [line.loss for line in log]
        candidate, change = _published_candidate(losses)
        eligible |= {1 + candidate, 1 + int(np.argmin(losses))}
        if change == 0.0:  # a rise in the next epoch makes this one the candidate
            eligible.add(len(log))
    return eligible


def _checked(config: TrainConfig) -> TrainConfig:
    if config.select not in RULES:
        raise InputError(f"select: expected one of {', '.join(RULES)}, got {config.select!r}")
    if config.epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {config.epochs}")
    if not 0 < config.validation_share < 1:
        raise InputError(f"validation_share: expected a share between 0 and 1, got {config.validation_share}")
    if config.seed < 0:
        raise InputError(f"seed: expected 0 or more, got {config.seed}")
    return config


def _hold_out(keys: Sequence[str], config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training videos and validation videos; the latter are drawn with the run's seed."""
    if not keys:
        raise InputError("split: expected at least one training video, got none")
    if config.select != "validation":
        return tuple(keys), ()
    if len(keys) < 2:
        raise InputError("select: holding out a validation part needs two training videos; use --select training-loss")
    count = min(max(1, round(config.validation_share * len(keys))), len(keys) - 1)
    held_out = set(np.random.default_rng(config.seed).permutation(sorted(keys))[:count].tolist())
    return tuple(key for key in keys if key not in held_out), tuple(key for key in keys if key in held_out)


def _feature_norm(config: TrainConfig, videos: Sequence[Video]) -> str:
    if config.feature_norm not in ("auto", "none", "l2"):
        raise InputError(f"feature_norm: expected auto, none or l2, got {config.feature_norm!r}")
    if config.feature_norm != "auto":
        return config.feature_norm
    median = np.median(np.concatenate([np.linalg.norm(_features(video), axis=1) for video in videos]))
    return "none" if 0.9 <= median <= 1.1 else "l2"


def _features(video: Video) -> NDArray[np.float32]:
    assert video.features is not None
    return video.features


def _sample(video: Video, feature_norm: str, config: TrainConfig, device: str) -> Sample:
    rows = unit_rows(_features(video)) if feature_norm == "l2" else _features(video)
    target = np.asarray(video.gtscore)
    if config.stretch_target:
        target = (target - target.min()) / max(np.ptp(target), 1e-12)
    return (
        torch.from_numpy(rows)[None].to(device),
        torch.tensor([len(rows)], device=device),
        torch.from_numpy(target.astype(np.float32))[None].to(device),
    )


def _resume(path: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
    """Load what an earlier run left, if it was made in the same way, and return its log."""
    if not path.exists():
        return []
    weights, metadata = load_checkpoint(path)
    found = metadata | {"config": asdict(TrainConfig(**metadata["config"]))}  # fields added since take their defaults
    found["config"]["epochs"] = identity["config"]["epochs"]  # a finished run may be lengthened
    wanted = json.loads(json.dumps(identity))
    if different := [name for name in wanted if wanted[name] != found.get(name)]:
        told = "; ".join(f"{name} was {found.get(name)!r}, now {wanted[name]!r}"[:300] for name in different)
        raise InputError(f"{path}: an earlier run was made otherwise ({told}); choose another --runs, or --fresh")
    load_weights(model, weights, source=path)
    load_optimizer(path, model, optimizer)
    return [Epoch(**line) for line in metadata["log"]]


def _run_epoch(
    number: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    references: Sequence[NDArray[np.float64]],
    config: TrainConfig,
) -> Epoch:
    started = time.perf_counter()
    dropout_seed, order_seed = np.random.SeedSequence([config.seed, number]).generate_state(2)
    torch.manual_seed(int(dropout_seed))
    order = np.random.default_rng(order_seed).permutation(len(samples))
    per_step = config.batch_videos or len(samples)
    losses, norms = [], []
    model.train()
    for first in range(0, len(order), per_step):
        optimizer.zero_grad()
        for index in order[first : first + per_step]:
            features, lengths, target = samples[index]
            loss = nn.functional.mse_loss(model(features, lengths), target)
            loss.backward()
            losses.append(loss.detach())
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf))
        optimizer.step()
    mean_loss, grad_norm = float(torch.stack(losses).mean()), float(torch.stack(norms).mean())
    scores = _scores(model, held_out)
    if not (
        math.isfinite(mean_loss) and math.isfinite(grad_norm) and all(np.isfinite(curve).all() for curve in scores)
    ):
        raise VsumError(
            f"epoch {number}: loss {mean_loss}, gradient {grad_norm}: training diverged; lower --learning-rate"
        )
    return Epoch(number, mean_loss, _mean_tau(scores, references), grad_norm, time.perf_counter() - started)


def _scores(model: nn.Module, samples: Sequence[Sample]) -> list[NDArray[np.float64]]:
    model.eval()
    with torch.inference_mode():
        return [model(features, lengths)[0].double().cpu().numpy() for features, lengths, _ in samples]


def _mean_tau(scores: Sequence[NDArray[np.float64]], references: Sequence[NDArray[np.float64]]) -> float | None:
    """Mean over the annotators of a video, then over videos; pairs without a correlation are left out."""
    taus = [metrics.kendall_tau(curve, annotators) for curve, annotators in zip(scores, references, strict=True)]
    means = [float(np.nanmean(tau)) for tau in taus if not np.isnan(tau).all()]
    return math.fsum(means) / len(means) if means else None


def _save(
    folder: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    log: list[Epoch],
    config: TrainConfig,
) -> None:
    """Write the newest epoch. ``last`` comes after all it refers to, so a kill at any point costs one epoch at most."""
    newest = log[-1]
    value = {"validation": newest.validation_tau, "training-loss": newest.loss, "last": None}[config.select]
    metadata = identity | {
        "epoch": newest.epoch,
        "selection": {"rule": config.select, "value": value},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    eligible = _eligible(log, config)
    if newest.epoch in eligible:
        save_checkpoint(folder / f"epoch{newest.epoch}.safetensors", model, metadata)
    if eligible:
        _link(folder / f"epoch{RULES[config.select](log)}.safetensors", folder / "best.safetensors")
    lines = [asdict(line) for line in log]
    save_checkpoint(folder / "last.safetensors", model, metadata | {"log": lines}, optimizer=optimizer)
    with replacing(folder / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for old in folder.glob("epoch*.safetensors"):
        if int(old.stem.removeprefix("epoch")) not in eligible:
            old.unlink()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and ask for repeatable algorithms (a GPU operation that has none warns); restore both afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _tensorboard(folder: Path, *, done: int) -> Iterator[Callable[[Epoch], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.info("no TensorBoard log: the package tensorboard is not installed")
        yield lambda line: None
        return
    with SummaryWriter(str(folder), purge_step=done + 1) as writer:

        def plot(line: Epoch) -> None:
            for name in ("loss", "validation_tau", "grad_norm"):
                if (value := getattr(line, name)) is not None:
                    writer.add_scalar(name, value, line.epoch)
            writer.flush()

        yield plot
