"""Lines of a results table: what is judged in, agreement per seed, split and video out."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.baselines import LinearBaseline
from vsum_runtime.training.datasets import Dataset, Split, Splits, Video, unit_rows
from vsum_runtime.training.judge import (
    Agreement,
    Rules,
    evaluate_scores,
    judge_ceiling,
    judge_human,
    judge_random,
    judge_uniform,
    mean,
)
from vsum_runtime.training.procedures import find_recipe, options_before_training
from vsum_runtime.training.protocols import PROTOCOLS
from vsum_runtime.training.runs import RunFolder, all_best

log = logging.getLogger(__name__)

LINEAR = "linear, smoothed"
"""Name of the row that every model is compared with."""

BySplit = Mapping[int, Mapping[str, Agreement]]
"""Split number -> video -> agreement."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    by_seed: Mapping[int, BySplit]
    """Seed of the training -> agreements. Scorers that draw nothing have seed 0."""
    seen_in_training: int | None = 0
    """Test videos that the model had learned from or was chosen by; None where that is not recorded."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How the row was made, in values for JSON; empty for the rows that everything is compared with."""

    @property
    def mean(self) -> Agreement:
        """Over the videos of a split, then over splits, then over seeds."""
        return mean([mean_of_splits(by_split) for by_split in self.by_seed.values()])

    def values(self, measure: str) -> dict[int, dict[str, float]]:
        """One measure of every video, averaged over seeds."""
        first = next(iter(self.by_seed.values()))
        return {
            number: {
                key: getattr(mean([by_split[number][key] for by_split in self.by_seed.values()]), measure)
                for key in videos
            }
            for number, videos in first.items()
        }


def mean_of_splits(by_split: BySplit) -> Agreement:
    """Over the videos of a split, then over splits."""
    return mean([mean(list(videos.values())) for videos in by_split.values()])


def reference_rows(dataset: Dataset, splits: Sequence[Split], rules: Rules, *, draws: int = 100) -> list[Row]:
    """The rows random, uniform, one human, leave-one-out ceiling and linear baseline, as far as the labels allow."""
    keys = dict.fromkeys(key for split in splits for key in split.test_keys)
    tested = dataset.select(list(keys), need=rules.needs)
    judges: dict[str, Callable[[Video], Agreement]] = {
        f"random ({draws} draws)": lambda video: judge_random(video, rules, draws=draws),
        "uniform (all steps alike)": lambda video: judge_uniform(video, rules),
    }
    protocol = PROTOCOLS[rules.protocol]
    if all(len(getattr(video, protocol.reference)) > 1 for video in tested):  # people are judged by one another
        judges["one human"] = lambda video: judge_human(video, rules)
        if protocol.against == "each" and all(video.user_scores is not None for video in tested):
            judges["leave-one-out ceiling"] = lambda video: judge_ceiling(video, rules)
    rows = []
    for name, judged_by in judges.items():
        by_key = {video.key: judged_by(video) for video in tested}
        rows.append(Row(name, {0: {split.number: {key: by_key[key] for key in split.test_keys} for split in splits}}))
    if all(video.features is not None and video.gtscore is not None for video in dataset.videos.values()):
        by_split = {}
        for split in splits:
            line = LinearBaseline.fit(dataset.select(split.train_keys))
            scores = {video.key: line.score(video) for video in dataset.select(split.test_keys)}
            by_split[split.number] = evaluate_scores(dataset, scores, split.test_keys, rules)
        rows.append(Row(LINEAR, {0: by_split}))
    return rows


Scorer = Callable[[Path, Sequence[NDArray[np.float32]]], tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]]
"""A path and features [T, D] of videos in; a name, the record of the training and the scores [T] out."""


def row_of_path(
    dataset: Dataset, splits: Splits, chosen: Sequence[Split], rules: Rules, path: str, score: Scorer
) -> Row:
    """Judge what ``path`` names; ``{split}`` in it stands for the number of each split."""
    name, by_split, seen = "", {}, []
    for split in chosen:
        where = Path(path.replace("{split}", str(split.number)))
        name, training, by_split[split.number] = _judged(dataset, split, rules, where, score)
        seen.append(_seen_in_training(training, dataset, splits, split))
        learned = (training.get("dataset") or {}).get("recipe")
        if learned and dataset.recipe and learned != dataset.recipe:
            log.warning(
                "%s learned from features of the recipe %r and is judged on those of %r: its scores may mean little",
                where,
                learned,
                dataset.recipe,
            )
    return Row(name, {0: by_split}, None if None in seen else sum(filter(None, seen)), {"source": path})


def rows_of_runs(
    dataset: Dataset,
    splits: Splits,
    chosen: Sequence[Split],
    rules: Rules,
    folders: Sequence[Path],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Judge every model that was trained on these splits, by what the checkpoints say of themselves.

    Runs of one recipe with the same settings are one row, whatever folders they lie in. A seed counts where it has all
    of the chosen splits; what is left out is reported.

    Raises
    ------
    InputError
        no folder, or two runs of the same settings, seed and split
    """
    from vsum_runtime.training.checkpoint import read_metadata

    recipes: dict[str, dict[tuple[int, int], tuple[Path, dict[str, Any]]]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--runs: expected a folder of vsum-train, found no {folder}")
        for path in all_best([folder]):
            metadata = read_metadata(path)
            if metadata["dataset"]["sha256"] not in (dataset.sha256, dataset.source_sha256):
                report(f"left out {path}: it learned from another data set")
            elif (metadata["splits"] or {}).get("sha256") != splits.sha256:
                report(f"left out {path}: it learned from other splits")
            elif not _tries_a_value(path, metadata):
                runs = recipes.setdefault(json.dumps(_recipe(path, metadata), sort_keys=True), {})
                run = metadata["seed"], metadata["split"]
                if run in runs:
                    raise InputError(f"--runs: {path} and {runs[run][0]} are the same recipe, seed and split; keep one")
                runs[run] = path, metadata
    rows = []
    for recipe, runs in recipes.items():
        by_seed: dict[int, BySplit] = {}
        epochs: dict[int, dict[int, int]] = {}
        for seed in sorted({seed for seed, _ in runs}):
            if absent := [str(split.number) for split in chosen if (seed, split.number) not in runs]:
                report(f"left out {json.loads(recipe)['recipe']}, seed {seed}: it lacks split {', '.join(absent)}")
                continue
            by_split: dict[int, Mapping[str, Agreement]] = {}
            for split in chosen:
                path, metadata = runs[seed, split.number]
                report(f"judging {path}")
                _, _, by_split[split.number] = _judged(dataset, split, rules, path, score_with_checkpoint)
                epochs.setdefault(seed, {})[split.number] = metadata["epoch"]
            by_seed[seed] = by_split
        if not by_seed:
            continue
        made = [runs[seed, split.number][1] for seed in by_seed for split in chosen]
        seen = [
            _seen_in_training(runs[seed, split.number][1], dataset, splits, split)
            for seed in by_seed
            for split in chosen
        ]
        about = {
            **json.loads(recipe),
            "selection": made[0]["selection"]["rule"],
            "feature_norm": sorted({metadata["feature_norm"] for metadata in made}),
            "epochs": epochs,
            "parameters": count_parameters(made[0]),
            "versions": made[0].get("versions", {}),
            "picked_on_test": _picked_on_test([[runs[seed, split.number][0] for split in chosen] for seed in by_seed]),
            "command": training_command(made[0], sorted(by_seed), swept=json.loads(recipe)["swept"]),
        }
        rows.append(Row(about["recipe"], by_seed, None if None in seen else max(filter(None, seen), default=0), about))
    return [_distinct(row, rows) for row in rows]


def score_with_bundle(
    path: Path, features: Sequence[NDArray[np.float32]]
) -> tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]:
    """Scores by the runtime, as every user gets them."""
    from vsum_runtime.runtime import Summarizer

    with Summarizer(path) as summarizer:
        manifest = summarizer.bundle.manifest
        name = f"{summarizer.bundle.name}, {manifest['graph'].get('precision')} bundle on {summarizer.backend}"
        return name, manifest.get("training") or {}, summarizer.score(features)


def score_with_checkpoint(
    path: Path, features: Sequence[NDArray[np.float32]]
) -> tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]:
    """Scores by torch."""
    from vsum_runtime.training.checkpoint import load_model
    from vsum_runtime.training.scores import step_scores

    model, metadata = load_model(path)
    scores = []
    for rows in features:
        if rows.shape[1] != metadata["feature_dim"]:
            raise InputError(f"{path}: takes features of size {metadata['feature_dim']}, got {rows.shape[1]}")
        scores.append(step_scores(model, unit_rows(rows) if metadata["feature_norm"] == "l2" else rows))
    return f"{metadata['model']}, checkpoint of epoch {metadata['epoch']}", metadata, scores


def count_parameters(metadata: Mapping[str, Any]) -> int:
    """Learned numbers of the model that scores."""
    from vsum_runtime.training import models

    model = models.build(metadata["model"], feature_dim=metadata["feature_dim"], **metadata["options"])
    return sum(parameter.numel() for parameter in model.parameters())


def training_command(metadata: Mapping[str, Any], seeds: Sequence[int], *, swept: str | None = None) -> str:
    """The vsum-train command that makes all splits of a row again; what is as published is not spelled out.

    The number of threads is: sums are rounded by it, and training carries the last bit far.
    """
    from vsum_runtime.training import models
    from vsum_runtime.training.train import published

    name = metadata.get("recipe", metadata["model"])
    words = ["vsum-train", "--model", name, "--dataset", f"{metadata['dataset']['name']}.h5"]
    words += ["--splits", metadata["splits"]["name"], "--split", "all"]
    if find_recipe(name).chosen_options:
        options = options_before_training(name, metadata["options"]).items()
        return shlex.join([*words, *(word for option, value in options for word in ("--option", f"{option}={value}"))])
    usual = _flat(asdict(published(name)))
    flags = ("select", "feature_norm", "epochs", "batch_videos", "learning_rate", "weight_decay")
    for setting, value in _flat(metadata["config"]).items():
        if setting not in ("seed", swept) and setting in usual and value != usual[setting]:
            given = "none" if value is None else str(value)
            flag = f"--{setting.replace('_', '-')}"
            words += [flag, given] if setting in flags else ["--set", f"{setting}={given}"]
    default: Any = models.build(metadata["model"], feature_dim=metadata["feature_dim"]).options
    for option, value in metadata["options"].items():
        if default.get(option) != value:
            words += ["--option", f"{option}={'none' if value is None else value}"]
    words += ["--sweep"] if swept else []
    if threads := (metadata.get("versions") or {}).get("threads"):
        words += ["--threads", str(threads)]
    return shlex.join([*words, "--seeds", ",".join(map(str, seeds))])


def _judged(
    dataset: Dataset, split: Split, rules: Rules, path: Path, score: Scorer
) -> tuple[str, Mapping[str, Any], dict[str, Agreement]]:
    videos = dataset.select(split.test_keys, need=("features",))
    name, training, scores = score(path, [video.features for video in videos if video.features is not None])
    by_key = dict(zip(split.test_keys, scores, strict=True))
    return name, training, evaluate_scores(dataset, by_key, split.test_keys, rules)


def _recipe(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one row share: all but seed and split, and what a fit or a sweep chose by itself."""
    name, swept = metadata.get("recipe", metadata["model"]), None
    options = options_before_training(name, metadata["options"])
    config = {} if options.keys() != metadata["options"].keys() else _flat(metadata["config"])
    config.pop("seed", None)
    setting = _sweepable(metadata)
    if setting is not None and RunFolder.of(path).chosen_among_values_of(setting):
        swept = setting
        config.pop(setting)
    return {"recipe": name, "model": metadata["model"], "options": options, "config": config, "swept": swept}


def _tries_a_value(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether the run tried one value of a sweep; the chosen one lies above it."""
    setting = _sweepable(metadata)
    return setting is not None and RunFolder.of(path).tries_a_value_of(setting)


def _sweepable(metadata: Mapping[str, Any]) -> str | None:
    from vsum_runtime.training.many import SWEEPS

    sweep = SWEEPS.get(metadata.get("recipe", metadata["model"]))
    return None if sweep is None else sweep.setting


def _picked_on_test(paths: Sequence[Sequence[Path]]) -> dict[str, float] | None:
    """What picking each split's epoch by test tau would have shown; ``paths`` are best weights by seed and split."""
    seeds = []
    for of_seed in paths:
        logs = [[line for line in RunFolder.of(path).read_peek() if line["tau"] is not None] for path in of_seed]
        if not all(logs):
            return None
        best = [max(log, key=lambda line: line["tau"]) for log in logs]
        seeds.append(mean([Agreement(line["f_mean"], line["f_max"], line["tau"], line["rho"]) for line in best]))
    whole = asdict(mean(seeds))
    whole.pop("left_out")
    return whole


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training, those of its procedure beside those that all share."""
    inner = config.get("settings")
    return {**{k: v for k, v in config.items() if k != "settings"}, **(inner if isinstance(inner, dict) else {})}


def _distinct(row: Row, rows: Sequence[Row]) -> Row:
    """The row under a name that tells it from others of the same model."""
    alike = [other.about for other in rows if other.name == row.name]
    if len(alike) == 1:
        return row
    told = [
        f"{name} {value}"
        for part in ("options", "config")
        for name, value in row.about[part].items()
        if any(other[part].get(name) != value for other in alike)
    ]
    return Row(f"{row.name} ({', '.join(told)})", row.by_seed, row.seen_in_training, row.about)


def _seen_in_training(training: Mapping[str, Any], dataset: Dataset, splits: Splits, split: Split) -> int | None:
    """How many test videos the model learned from or was chosen by; None where its record does not tell."""
    trained_on = (training.get("dataset") or {}).get("sha256")
    if trained_on is None or trained_on not in (dataset.sha256, dataset.source_sha256):
        return None
    keys = [*training.get("train_keys", ()), *training.get("validation_keys", ())]
    if not keys:
        number = training.get("split")
        if number is None or (training.get("splits") or {}).get("sha256") != splits.sha256:
            return None
        keys = list(splits.splits[number - 1].train_keys)
    return len(set(keys) & set(split.test_keys))
