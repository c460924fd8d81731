"""Rows of trained models: checkpoints and bundles, found, scored and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Dataset, Split, Splits, unit_rows
from vsum_runtime.training.judge import (
    Agreement,
    Rules,
    evaluate_scores,
    mean,
)
from vsum_runtime.training.provenance import (
    count_parameters,
    seen_in_training,
    shared_settings,
    training_command,
    tries_a_value,
)
from vsum_runtime.training.rows import BySplit, Row
from vsum_runtime.training.runs import RunFolder, all_best

log = logging.getLogger(__name__)

Scorer = Callable[[Path, Sequence[NDArray[np.float32]]], tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]]
"""A path and the features [T, D] of videos -> a name, the record of the training, the scores [T]."""


def row_of_path(
    dataset: Dataset, splits: Splits, chosen: Sequence[Split], rules: Rules, path: str, score: Scorer
) -> Row:
    """Judge the model at ``path``, in which ``{split}`` stands for the number of each split."""
    name, by_split, seen = "", {}, []
    for split in chosen:
        where = Path(path.replace("{split}", str(split.number)))
        name, training, by_split[split.number] = _judged(dataset, split, rules, where, score)
        seen.append(seen_in_training(training, dataset, splits, split))
        learned = (training.get("dataset") or {}).get("recipe")
        if learned and dataset.recipe and learned != dataset.recipe:
            log.warning(
                "%s was trained on features of the recipe %r and is judged on features of %r: "
                "its scores may mean little",
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
    """Judge every model that was trained on these splits, going by the metadata of the checkpoints.

    Runs of one recipe with the same settings are one row, whatever folders they lie in. A seed counts where it has all
    of the chosen splits; runs that are left out are reported.

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
            elif not tries_a_value(path, metadata):
                runs = recipes.setdefault(json.dumps(shared_settings(path, metadata), sort_keys=True), {})
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
            seen_in_training(runs[seed, split.number][1], dataset, splits, split)
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


def _judged(
    dataset: Dataset, split: Split, rules: Rules, path: Path, score: Scorer
) -> tuple[str, Mapping[str, Any], dict[str, Agreement]]:
    videos = dataset.select(split.test_keys, need=("features",))
    name, training, scores = score(path, [video.features for video in videos if video.features is not None])
    by_key = dict(zip(split.test_keys, scores, strict=True))
    return name, training, evaluate_scores(dataset, by_key, split.test_keys, rules)


def _picked_on_test(paths: Sequence[Sequence[Path]]) -> dict[str, float] | None:
    """Agreement if each split's epoch had been picked by test tau; ``paths`` are the best weights by seed and split."""
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


def _distinct(row: Row, rows: Sequence[Row]) -> Row:
    """The row under a name that distinguishes it from other rows of the same model."""
    alike = [other.about for other in rows if other.name == row.name]
    if len(alike) == 1:
        return row
    differences = [
        f"{name} {value}"
        for part in ("options", "config")
        for name, value in row.about[part].items()
        if any(other[part].get(name) != value for other in alike)
    ]
    return Row(f"{row.name} ({', '.join(differences)})", row.by_seed, row.seen_in_training, row.about)


def score_with_bundle(
    path: Path, features: Sequence[NDArray[np.float32]]
) -> tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]:
    """Scores by the runtime, the same that a user gets."""
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
