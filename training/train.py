"""One split of one data set in, one trained model out: the published recipes, resumable, the test videos never read.

``training/runs.py`` describes the folder of a run. It is written after an epoch, as often as takes a tenth of the time
at most.

How a system is trained is its ``Procedure`` (``training/procedures/``). An epoch's random numbers depend on (seed,
epoch) alone, so on a CPU with the same number of threads a run that was killed and resumed ends with the same bits as
one in a single go.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training import models
from vsum_runtime.training.checkpoint import load_training, read_metadata, save_checkpoint, save_training
from vsum_runtime.training.datasets import Dataset, Split, Splits, Video, importance_at_picks, unit_rows
from vsum_runtime.training.declared import FEATURE_NORMS, parse_settings
from vsum_runtime.training.procedures import Procedure, find_recipe, options_before_training, procedure_class
from vsum_runtime.training.runs import RunFolder
from vsum_runtime.training.scores import step_scores
from vsum_runtime.training.selection import RULES, Epoch, eligible

_log = logging.getLogger(__name__)

_WRITING_SHARE = 0.1  # of the time; the largest systems have a gigabyte to write

Scorer = Callable[[Video], NDArray[np.float32]]
"""A video as the data set has it in, its scores [T] by the present weights out."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int
    """Passes over the training videos."""
    seed: int
    """Of the initial weights, all that is drawn in training and the choice of validation videos."""
    select: str
    """Rule that chooses the epoch, a key of ``training.selection.RULES``."""
    settings: Any
    """Hyper-parameters of the procedure, the dataclass that it documents."""
    validation_share: float = 0.2
    """Share of the training videos that a rule holds out, if it does."""
    feature_norm: str = "auto"
    """``none``; ``l2``: rows divided by their norm; ``auto``: l2 unless the median norm lies in 0.9 .. 1.1."""


def published(name: str) -> TrainConfig:
    """The settings of a recipe, as its authors published them."""
    recipe = find_recipe(name)
    settings = dataclasses.replace(procedure_class(recipe).defaults, **recipe.settings)
    return TrainConfig(recipe.epochs, recipe.seed, recipe.rules[0], settings, feature_norm=recipe.feature_norm)


def changed(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Replace fields of a configuration, or of its ``settings``, by name; values may be text.

    Raises
    ------
    InputError
        a name that neither has, or a value of another kind
    """
    own = {field.name: str(field.type) for field in dataclasses.fields(config) if field.name != "settings"}
    theirs = {field.name: str(field.type) for field in dataclasses.fields(config.settings)}
    parsed = parse_settings(values, own | theirs)
    settings = dataclasses.replace(config.settings, **{name: parsed[name] for name in parsed if name in theirs})
    return dataclasses.replace(config, settings=settings, **{name: parsed[name] for name in parsed if name in own})


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
    """Train on ``split.train_keys``, going on from where an earlier run in the same place stopped.

    Parameters
    ----------
    name
        a key of ``training.procedures.RECIPES``
    splits
        the file that ``split`` is from; None where it is from none
    config
        None takes the published settings
    options
        of the model, on top of the recipe's, as ``training.models.build`` takes them
    folder
        of the run
    fresh
        begin anew instead of going on
    report
        called with every line of the log, those of the earlier run included
    watch
        called after every epoch with its number and a scorer; what it does has no effect on the run

    Returns
    -------
    the chosen weights

    Raises
    ------
    InputError
        unknown recipe, option or rule; missing fields; an earlier run in the same place made otherwise
    KeyboardInterrupt
        passed on; the epoch under way is lost, one that had ended is not
    """
    recipe = find_recipe(name)
    config = _checked(name, config or published(name))
    train_keys, validation_keys = _hold_out(split, config)
    train_videos = dataset.select(train_keys, need=("features",))
    feature_norm = _feature_norm(config, train_videos)
    feature_dim = _features(train_videos[0]).shape[1]

    with _deterministic(config.seed), _interruptible() as held:
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
        log = _resume(files.last, identity, procedure)
        files.create()
        if report is not None:
            for line in log:
                report(line)
        saver = _Saver(files, identity, procedure, config)
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
    """A procedure and the videos it learns from and is checked on."""

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
        seen = self._visible(video)
        if own := getattr(self._procedure, "score", None):
            return own(seen)
        return step_scores(self._procedure.networks["model"], _features(seen))

    def _visible(self, video: Video) -> Video:
        """What the procedure may see of a video: normalised features, and labels only where it names them."""
        features = unit_rows(_features(video)) if self._feature_norm == "l2" else _features(video)
        names = (*self._procedure.labels, *getattr(self._procedure, "optional_labels", ()))
        labels = {name: getattr(video, name) for name in names}
        return Video(video.key, video.n_frames, video.picks, features, **labels)


def _checked(name: str, config: TrainConfig) -> TrainConfig:
    rules = find_recipe(name).rules
    if config.select not in rules:
        raise InputError(f"select: expected one of {', '.join(rules)} for {name}, got {config.select!r}")
    if config.epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {config.epochs}")
    if not 0 < config.validation_share < 1:
        raise InputError(f"validation_share: expected a share between 0 and 1, got {config.validation_share}")
    if config.seed < 0:
        raise InputError(f"seed: expected 0 or more, got {config.seed}")
    return config


def _hold_out(split: Split, config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training videos and validation videos; the latter are the split's own, or else drawn with the run's seed."""
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


def _resume(path: Path, identity: dict[str, Any], procedure: Procedure) -> list[Epoch]:
    """Load what an earlier run left, if it was made in the same way, and return its log."""
    if not path.exists():
        return []
    found = read_metadata(path)
    wanted = json.loads(json.dumps(identity))
    if not procedure.paced:
        found["config"]["epochs"] = wanted["config"]["epochs"]  # a finished run may be lengthened
    if different := _differences(found, wanted):
        raise InputError(
            f"{path}: an earlier run was made otherwise ({'; '.join(different)}); choose another --runs, or --fresh"
        )
    load_training(path, procedure.networks, procedure.optimizers)
    return [Epoch(**line) for line in found["log"]]


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    told = []
    for name in wanted:
        if isinstance(wanted[name], dict) and isinstance(found.get(name), dict):
            told += _differences(found[name], wanted[name])
        elif found.get(name) != wanted[name]:
            told.append(f"{name} was {found.get(name)!r}, now {wanted[name]!r}"[:300])
    return told


def _mean_tau(scores: Sequence[NDArray[np.float32]], references: Sequence[NDArray[np.float64]]) -> float | None:
    """Mean over the annotators of a video, then over videos; pairs without a correlation are left out."""
    taus = [metrics.kendall_tau(curve, annotators) for curve, annotators in zip(scores, references, strict=True)]
    means = [float(np.nanmean(tau)) for tau in taus if not np.isnan(tau).all()]
    return math.fsum(means) / len(means) if means else None


class _Saver:
    """Keeps what the rule may choose, and writes it with the newest epoch from time to time.

    ``last`` comes after all it refers to, so a kill at any point costs the epochs since it was written, nothing else.
    """

    def __init__(self, files: RunFolder, identity: dict[str, Any], procedure: Procedure, config: TrainConfig) -> None:
        self._files, self._identity, self._procedure, self._config = files, identity, procedure, config
        self._rule = RULES[config.select]
        self._unwritten: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
        self._due = -math.inf

    def take(self, log: list[Epoch]) -> None:
        """The newest epoch, whose weights the procedure has now."""
        finished = len(log) == self._config.epochs
        kept = eligible(self._rule, log) if finished or self._config.select != "last" else set()
        metadata = self._metadata(log[-1])
        if len(log) in kept:
            self._unwritten[len(log)] = copy.deepcopy(self._procedure.networks["model"]), metadata
        self._unwritten = {epoch: held for epoch, held in self._unwritten.items() if epoch in kept}
        started = time.perf_counter()
        if finished or started >= self._due:
            self._write(log, kept, metadata)
            ended = time.perf_counter()
            self._due = ended + (ended - started) / _WRITING_SHARE

    def _write(self, log: list[Epoch], kept: set[int], metadata: dict[str, Any]) -> None:
        files, networks = self._files, self._procedure.networks
        for epoch, (model, its_metadata) in self._unwritten.items():
            save_checkpoint(files.epoch(epoch), model, its_metadata)
        self._unwritten = {}
        if kept:
            files.make_best(files.epoch(self._rule.choose(log)))
        lines = [asdict(line) for line in log]
        save_training(files.last, networks, self._procedure.optimizers, metadata | {"log": lines})
        files.write_log(lines)
        files.remove_epochs(keep=kept)

    def _metadata(self, line: Epoch) -> dict[str, Any]:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        selection = {"rule": self._config.select, "value": self._rule.value(line)}
        config = asdict(self._config) | getattr(self._procedure, "record", {})
        about = {"epoch": line.epoch, "selection": selection, "versions": versions}
        return self._identity | {"options": self._procedure.networks["model"].options, "config": config} | about


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and ask for repeatable algorithms (a GPU operation that has none warns); restore all afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # writes every new tensor twice; none is read unset
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled


@contextmanager
def _interruptible() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Let an interrupt (SIGINT) through at once, but for blocks ``with held():``, which end first.

    Compiled code and destructors can lose a KeyboardInterrupt or make another error of it. So one that came is
    remembered: the next held block ends with it, and an error that follows it is taken for it.
    """
    came = holding = False

    def handle(signum: int, frame: object) -> None:
        nonlocal came
        came = True
        if not holding:
            raise KeyboardInterrupt

    @contextmanager
    def held() -> Iterator[None]:
        nonlocal holding
        holding = True
        try:
            yield
        finally:
            holding = False
        if came:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield held  # whoever embeds this has a way of their own
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield held
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
