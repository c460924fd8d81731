"""The training loop: one split of a data set -> one trained model. It can be stopped and resumed.

How a system is trained is its ``Procedure`` (``training/procedures/``). No test video is ever read. An epoch's random
numbers depend on (seed, epoch) alone, so on a CPU with the same number of threads a run that was killed and resumed
ends with the same bits as one that was not. ``training/runs.py`` describes the folder of a run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training import models
from vsum_runtime.training.config import TrainConfig, checked, published
from vsum_runtime.training.datasets import Dataset, Split, Splits, Video, importance_at_picks, unit_rows
from vsum_runtime.training.declared import FEATURE_NORMS
from vsum_runtime.training.interrupts import interruptible
from vsum_runtime.training.procedures import Procedure, find_recipe, options_before_training, procedure_class
from vsum_runtime.training.runs import RunFolder
from vsum_runtime.training.saver import Saver, resume
from vsum_runtime.training.scores import step_scores
from vsum_runtime.training.selection import RULES, Epoch

_log = logging.getLogger(__name__)


Scorer = Callable[[Video], NDArray[np.float32]]
"""A video of the data set -> its scores [T] by the current weights."""


def train_split(
    name: str,
    dataset: Dataset,
    splits: Splits | None,
    split: Split,
    *,
    config: TrainConfig | None = None,
    options: Mapping[str, Any] | None = None,
    folder: Path,
    device: str = "cpu",
    fresh: bool = False,
    report: Callable[[Epoch], None] | None = None,
    watch: Callable[[int, Scorer], None] | None = None,
) -> Path:
    """Train on ``split.train_keys``; a run that was stopped in the same folder is resumed.

    Parameters
    ----------
    name
        a key of ``training.procedures.RECIPES``
    splits
        the file that ``split`` comes from; None: from no file
    config
        None: the published settings
    options
        of the model, on top of the recipe's, as ``training.models.build`` takes them
    folder
        of the run
    fresh
        start over instead of resuming
    report
        called with every line of the log, including those of a resumed run
    watch
        called after every epoch with its number and a scorer; what it does has no effect on the run

    Returns
    -------
    path of the chosen weights

    Raises
    ------
    InputError
        unknown recipe, option or rule; missing fields; a run with other settings in the same folder
    KeyboardInterrupt
        passed on; the epoch under way is lost, finished ones are kept
    """
    recipe = find_recipe(name)
    config = checked(name, config or published(name))
    train_keys, validation_keys = _hold_out(split, config)
    train_videos = dataset.select(train_keys, need=("features",))
    feature_norm = _feature_norm(config, train_videos)
    feature_dim = _features(train_videos[0]).shape[1]

    with _deterministic(config.seed), interruptible() as held:
        model_name = recipe.model or name
        model: Any = models.build(model_name, feature_dim=feature_dim, **{**recipe.options, **(options or {})})
        procedure = procedure_class(recipe)(model, config.settings, n_epochs=config.epochs)
        procedure.networks.to(device)
        run = _Run(procedure, feature_norm, dataset, train_keys, validation_keys, seed=config.seed)
        identity = {
            "model": model_name,
            "recipe": name,
            "options": options_before_training(name, model.options),
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
        files = RunFolder(folder)
        if fresh:
            files.remove()
        log = resume(files.last, identity, procedure)
        files.create()
        if report is not None:
            for line in log:
                report(line)
        saver = Saver(files, identity, procedure, config)
        with _tensorboard(files.tensorboard, done=len(log)) as plot:
            while len(log) < config.epochs:
                started = time.perf_counter()
                objectives = run.learn(len(log) + 1)
                with held():
                    line = run.check(len(log) + 1, objectives, started)
                    log.append(line)
                    if watch is not None:
                        watch(line.epoch, run.score)
                    saver.take(log)
                    plot(line)
                    if report is not None:
                        report(line)
    return files.best


class _Run:
    """A procedure with its training videos and validation videos."""

    def __init__(
        self,
        procedure: Procedure,
        feature_norm: str,
        dataset: Dataset,
        train_keys: Sequence[str],
        validation_keys: Sequence[str],
        *,
        seed: int,
    ) -> None:
        self._procedure, self._feature_norm, self._seed = procedure, feature_norm, seed
        self._videos = [self._visible(v) for v in dataset.select(train_keys, need=("features", *procedure.labels))]
        self._held_out = dataset.select(validation_keys, need=("features", *procedure.labels))
        for video in self._held_out:
            if not hasattr(procedure, "validate") and video.user_scores is None and video.gtscore is None:
                raise InputError(
                    f"{dataset.name}: {video.key}: validation needs user_scores or gtscore, which are missing; "
                    "choose the epoch by a rule that needs no labels, such as --select last"
                )

    def learn(self, number: int) -> dict[str, float]:
        torch.manual_seed(int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]))
        return self._procedure.run_epoch(self._videos, number)

    def check(self, number: int, objectives: dict[str, float], started: float) -> Epoch:
        tau = None
        if validate := getattr(self._procedure, "validate", None):
            objectives |= validate([self._visible(video) for video in self._held_out], number) if self._held_out else {}
        else:
            curves = [self.score(video) for video in self._held_out]
            if all(np.isfinite(curve).all() for curve in curves):
                tau = _mean_tau(curves, [importance_at_picks(video) for video in self._held_out])
            else:
                objectives["validation score"] = math.nan
        if not all(math.isfinite(value) for value in objectives.values()):
            raise VsumError(f"epoch {number}: {objectives}: training diverged; lower --learning-rate")
        return Epoch(number, objectives, tau, time.perf_counter() - started)

    def score(self, video: Video) -> NDArray[np.float32]:
        visible = self._visible(video)
        if own := getattr(self._procedure, "score", None):
            return own(visible)
        return step_scores(self._procedure.networks["model"], _features(visible))

    def _visible(self, video: Video) -> Video:
        """What the procedure may see of a video: normalised features, and labels only where it names them."""
        features = unit_rows(_features(video)) if self._feature_norm == "l2" else _features(video)
        names = (*self._procedure.labels, *getattr(self._procedure, "optional_labels", ()))
        labels = {name: getattr(video, name) for name in names}
        return Video(video.key, video.n_frames, video.picks, features, **labels)


def _hold_out(split: Split, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training keys and validation keys; the split's own validation videos, or some drawn with the run's seed."""
    keys = split.train_keys
    if not keys:
        raise InputError("split: expected at least one training video, got none")
    if not RULES[config.select].holds_out:
        return keys, ()
    if split.validation_keys:
        return keys, split.validation_keys
    if len(keys) < 2:
        raise InputError("select: holding out a validation part needs two training videos; use --select last")
    count = min(max(1, round(config.validation_share * len(keys))), len(keys) - 1)
    held_out = set(np.random.default_rng(config.seed).permutation(sorted(keys))[:count].tolist())
    return tuple(key for key in keys if key not in held_out), tuple(key for key in keys if key in held_out)


def _feature_norm(config: TrainConfig, videos: Sequence[Video]) -> str:
    if config.feature_norm not in FEATURE_NORMS:
        raise InputError(f"feature_norm: expected {', '.join(FEATURE_NORMS)}, got {config.feature_norm!r}")
    if config.feature_norm != "auto":
        return config.feature_norm
    median = np.median(np.concatenate([np.linalg.norm(_features(video), axis=1) for video in videos]))
    return "none" if 0.9 <= median <= 1.1 else "l2"


def _features(video: Video) -> NDArray[np.float32]:
    assert video.features is not None
    return video.features


def _mean_tau(scores: Sequence[NDArray[np.float32]], references: Sequence[NDArray[np.float64]]) -> float | None:
    """Mean over the annotators of a video, then over videos; pairs without a correlation are left out."""
    taus = [metrics.kendall_tau(curve, annotators) for curve, annotators in zip(scores, references, strict=True)]
    means = [float(np.nanmean(tau)) for tau in taus if not np.isnan(tau).all()]
    return math.fsum(means) / len(means) if means else None


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and choose deterministic algorithms (a GPU operation without one warns); restore all afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill_before = memory.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # writes every new tensor twice, and none is read before it is set
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = fill_before


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
            for name, value in (line.objectives | {"validation_tau": line.validation_tau}).items():
                if value is not None:
                    writer.add_scalar(name, value, line.epoch)
            writer.flush()

        yield plot
