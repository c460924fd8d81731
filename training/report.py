"""Rows of an evaluation -> JSON and a Markdown table.

Averages, all unweighted: annotators, then the videos of a split, then splits, then seeds. What is ranked against what
is the *protocol*, and how the F-score is counted the *F rule*: ``training/protocols.py`` lists both, and every output
names them, because values under different protocols must not be compared. Splits are identified by the hash of their
file.

The machine summary is the exact knapsack, at 15 % of the frames, over the mean score of every stored shot. Both of the
field's F-scores are reported: the mean and the maximum over users.

The JSON holds everything, each video included, one row to a line::

    {"format": "vsum-evaluation", "format_version": 2, "protocol": "...", "f_rule": "...", "budget_percent": 15,
     "dataset": {"name", "sha256", "source_sha256", "recipe"}, "splits": {"name", "sha256", "numbers"},
     "interval": {...}, "versions": {...}, "columns": ["f_mean", "f_max", "tau", "rho", "left_out"],
     "rows": [{"name", "seen_in_training", "about", "f_mean", ..., "left_out",
               "intervals": {"tau": [low, high], ...}, "seed_means": {"0": {"tau": ...}, ...},
               "to_linear": {"tau": {"difference", "interval"}, ...},
               "videos": {seed: {split: {video: [one number per column]}}}}]}
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import intervals
from vsum_runtime.training.datasets import BUDGET_PERCENT, Dataset, Split, Splits
from vsum_runtime.training.judge import Agreement, Rules
from vsum_runtime.training.rows import (
    LINEAR,
    Row,
    mean_of_splits,
)

FORMAT, FORMAT_VERSION = "vsum-evaluation", 2


COLUMNS = tuple(field.name for field in fields(Agreement))


MEASURES = ("f_mean", "f_max", "tau", "rho")


def report(
    dataset: Dataset, splits: Splits, chosen: Sequence[Split], rules: Rules, rows: Sequence[Row]
) -> dict[str, Any]:
    """Everything about an evaluation, ready for JSON; undefined numbers are null, all are rounded to six decimals."""
    linear = next((row for row in rows if row.name == LINEAR), None)
    result = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **asdict(rules),
        "budget_percent": BUDGET_PERCENT,
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "source_sha256": dataset.source_sha256,
            "recipe": dataset.recipe,
        },
        "splits": {"name": splits.name, "sha256": splits.sha256, "numbers": [split.number for split in chosen]},
        "interval": {"method": "percentile bootstrap over videos", "level": intervals.LEVEL, "draws": intervals.DRAWS},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "columns": COLUMNS,
        "rows": [_row(row, linear) for row in rows],
    }
    rounded: dict[str, Any] = _rounded(result)
    return rounded


def _row(row: Row, linear: Row | None) -> dict[str, Any]:
    to_linear = {}
    if linear is not None and row is not linear:
        for measure in MEASURES:
            apart = intervals.difference(row.values(measure), linear.values(measure))
            to_linear[measure] = {"difference": intervals.mean(apart), "interval": intervals.interval(apart)}
    return {
        "name": row.name,
        "seen_in_training": row.seen_in_training,
        "about": row.about,
        **asdict(row.mean),
        "intervals": {measure: intervals.interval(row.values(measure)) for measure in MEASURES},
        "seed_means": {seed: asdict(mean_of_splits(by_split)) for seed, by_split in row.by_seed.items()},
        "to_linear": to_linear,
        "videos": {
            seed: {
                number: {key: [getattr(one, column) for column in COLUMNS] for key, one in videos.items()}
                for number, videos in by_split.items()
            }
            for seed, by_split in row.by_seed.items()
        },
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write a report as JSON, each row on a line of its own."""
    head = json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    with replacing(path) as temporary:
        temporary.write_text(f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def read_report(path: Path) -> dict[str, Any]:
    """Read what ``write_report`` wrote."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a report of vsum-evaluate --json, cannot read it: {error}") from None
    if not isinstance(result, dict) or (result.get("format"), result.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path}: expected a report of vsum-evaluate --json, version {FORMAT_VERSION}; write it again with this one"
        )
    return result


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a report."""
    splits, dataset = result["splits"], result["dataset"]
    lines = [
        f"Protocol `{result['protocol']}`, F rule `{result['f_rule']}`; data `{dataset['name']}` (sha256 "
        f"{dataset['sha256'][:12]}); splits `{splits['name']}` (sha256 {splits['sha256'][:12]}), number "
        f"{', '.join(map(str, splits['numbers']))}. In brackets: 95 % bootstrap interval over the test videos.",
        "",
        "| scores of | F mean % | F max % | tau | rho | tau above linear | seeds | pairs left out |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        seen, name = row["seen_in_training"], row["name"]
        if seen is None:
            name += " (whether it has seen test videos is not recorded)"
        elif seen:
            name += f" (**has seen {seen} test videos in training**)"
        shares = ("-" if row[k] is None else f"{100 * row[k]:.1f}" for k in ("f_mean", "f_max"))
        tau, rho = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("tau", "rho"))
        apart = row["to_linear"].get("tau", {"difference": None})
        cells = [
            name,
            *shares,
            f"{tau}{bracket(row['intervals']['tau'])}",
            f"{rho}{bracket(row['intervals']['rho'])}",
            "" if apart["difference"] is None else f"{apart['difference']:+.3f}{bracket(apart['interval'], '+.3f')}",
            spread(row, "tau"),
            str(row["left_out"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bracket(ends: Sequence[float | None], style: str = ".3f") -> str:
    """An interval as it stands behind its middle."""
    low, high = ends
    return "" if low is None or high is None else f" [{low:{style}}, {high:{style}}]"


def spread(row: Mapping[str, Any], measure: str, style: str = ".3f") -> str:
    """Number of seeds and the range of their means."""
    values = [means[measure] for means in row["seed_means"].values() if means[measure] is not None]
    if len(row["seed_means"]) < 2 or not values:
        return str(len(row["seed_means"]))
    return f"{len(values)}: {min(values):{style}} to {max(values):{style}}"
