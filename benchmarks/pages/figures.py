"""The pictures of docs/measured.

    python -m benchmarks.pages.figures latency
    python -m benchmarks.pages.figures intervals
    python -m benchmarks.pages.figures curves --dataset tvsum_prepared.h5 --splits tvsum_partition.json --runs runs

``latency``: how many times as long as ours PyTorch and OpenVINO take. ``intervals``: Kendall's tau of every row with
its bootstrap interval, and the difference to the linear row. Both are made of committed rows alone. ``curves``: the
scores of models on test videos over time, beside the mean of the annotators and the middle half of them; the videos are
those where the first model's agreement is the median and the least of all, so that nothing is picked by eye.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.rows import RESULTS, ROOT, read
from benchmarks.pages import latency
from benchmarks.pages.accuracy import TVSUM
from vsum_runtime.kernels import metrics
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.baselines import LinearBaseline
from vsum_runtime.training.datasets import (
    Dataset,
    Split,
    Splits,
    Video,
    find_file,
    importance_at_picks,
    read_dataset,
    read_splits,
)
from vsum_runtime.training.report import read_report
from vsum_runtime.training.rows import LINEAR
from vsum_runtime.training.runs import all_best
from vsum_runtime.training.trained_rows import score_with_checkpoint

INK, QUIET, BAND = "#1b2a41", "#6b7685", "#d5dae1"
COLOURS = ("#e8590c", "#1c7ed6", "#2b8a3e", "#9c36b5")


def intervals(report: Mapping[str, Any], target: Path) -> None:
    """Draw tau and its difference to the linear row, best row on top."""
    rows = [row for row in report["rows"] if row["tau"] is not None]
    rows.sort(key=lambda row: row["tau"])
    figure = new_figure(10, 1.3 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        colour = COLOURS[0] if row["about"] else QUIET
        _whisker(left, place, row["tau"], row["intervals"]["tau"], colour)
        if row["to_linear"]:
            apart = row["to_linear"]["tau"]
            _whisker(right, place, apart["difference"], apart["interval"], colour)
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set_xlabel("Kendall's tau with the annotators")
    right.set_xlabel(f"difference to '{LINEAR}' on the same videos")
    right.axvline(0, color=INK, linewidth=0.8)
    for axes in (left, right):
        _style(axes)
    names = f"{report['dataset']['name']}, {report['splits']['name']}"
    figure.suptitle(f"95 % bootstrap intervals over the test videos; {names}", fontsize=11, color=INK)
    save(figure, target)


def curves(dataset: Dataset, splits: Splits, scorers: Mapping[str, Callable[[Split], _Scores]], target: Path) -> None:
    """Draw the scores of ``scorers`` against the annotators on two test videos."""
    by_name: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in scorers}
    for split in splits.splits:
        for name, scorer in scorers.items():
            by_name[name].update(scorer(split))
    first = next(iter(by_name.values()))
    taus = {key: float(np.nanmean(_taus(dataset.videos[key], scores))) for key, scores in first.items()}
    order = sorted(taus, key=lambda key: taus[key])
    figure = new_figure(12, 6.4)
    shown = (("median", order[len(order) // 2]), ("least", order[0]))
    for axes, (rank, key) in zip(figure.subplots(2, 1), shown, strict=True):
        video = dataset.videos[key]
        people = importance_at_picks(video)
        low, high = np.quantile(people, [0.25, 0.75], axis=0)
        axes.fill_between(video.picks, low, high, step="post", color=BAND, label="middle half of the annotators")
        axes.step(video.picks, people.mean(axis=0), where="post", color=INK, linewidth=1.2, label="their mean")
        for (name, scores), colour in zip(by_name.items(), COLOURS, strict=False):
            tau = float(np.nanmean(_taus(video, scores[key])))
            label = f"{name}, tau {tau:.2f}"
            axes.plot(video.picks, _on_scale(scores[key], people), color=colour, linewidth=1.2, label=label)
        axes.set_title(f"{key}: the {rank} agreement of {next(iter(by_name))}", loc="left", fontsize=10, color=INK)
        axes.set_xlim(0, video.n_frames)
        axes.set_ylabel("importance, 1 to 5")
        axes.set_xlabel("frame")
        axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper left")
        axes.set_ylim(0.5, 5.2)
        _style(axes)
    figure.suptitle(
        "Scores of test videos, moved and stretched to the mean and the spread of the annotators' mean; ranks do not "
        "change by that",
        fontsize=10,
        color=QUIET,
    )
    save(figure, target)


_Scores = Mapping[str, NDArray[np.float64]]


def linear_scores(dataset: Dataset) -> Callable[[Split], _Scores]:
    def score(split: Split) -> _Scores:
        line = LinearBaseline.fit(dataset.select(split.train_keys))
        return {video.key: line.score(video) for video in dataset.select(split.test_keys)}

    return score


def model_scores(dataset: Dataset, splits: Splits, folders: Sequence[Path], model: str) -> Callable[[Split], _Scores]:
    """The scores of a model's first seed below the folders."""
    from vsum_runtime.training.checkpoint import read_metadata

    checkpoints: dict[int, Path] = {}
    for path in all_best(folders):
        metadata = read_metadata(path)
        if metadata["model"] == model and (metadata["splits"] or {}).get("sha256") == splits.sha256:
            checkpoints.setdefault(metadata["split"], path)

    def score(split: Split) -> _Scores:
        if split.number not in checkpoints:
            raise InputError(f"--runs: no {model} was trained on split {split.number} of {splits.name}")
        videos = dataset.select(split.test_keys, need=("features",))
        scored = score_with_checkpoint(
            checkpoints[split.number], [v.features for v in videos if v.features is not None]
        )[2]
        return {video.key: one.astype(np.float64) for video, one in zip(videos, scored, strict=True)}

    return score


def _taus(video: Video, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return metrics.kendall_tau(scores, importance_at_picks(video))


def _on_scale(scores: NDArray[np.float64], people: NDArray[np.float64]) -> NDArray[np.float64]:
    wanted = people.mean(axis=0)
    return wanted.mean() + (scores - scores.mean()) * wanted.std() / max(float(scores.std()), 1e-12)


def new_figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('figures: matplotlib is not installed; pip install "vsum-runtime[plot]"') from None
    return Figure(figsize=(width, height), dpi=90, layout="constrained")


def _whisker(axes: Any, place: int, middle: float, ends: Sequence[float], colour: str) -> None:
    axes.plot(ends, [place, place], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot([middle], [place], "o", color=colour, markersize=5)


def _style(axes: Any) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    axes.grid(axis="x", color=BAND, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Any, target: Path) -> None:
    """The same picture gives the same file: no dates and no random names inside."""
    from matplotlib import rc_context

    undated = {"Date": None} if target.suffix == ".svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "vsum"}), replacing(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:], metadata=undated)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pages.figures", description=(__doc__ or "").split("\n\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("latency", help="ours against PyTorch and OpenVINO")
    command.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "latency.svg")
    command = commands.add_parser("intervals", help="all rows with their intervals")
    command.add_argument("--json", type=Path, default=RESULTS / TVSUM[0], help="report of vsum-evaluate")
    command.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "results_intervals.svg")
    command = commands.add_parser("curves", help="scores of two test videos against their annotators")
    command.add_argument("--dataset", required=True, metavar="FILE.h5")
    command.add_argument("--splits", required=True, metavar="FILE")
    command.add_argument("--runs", nargs="+", type=Path, required=True, metavar="DIR")
    command.add_argument("--model", nargs="+", default=["nonlocal_ridge"], help="up to three models, the first ranks")
    command.add_argument("--out", type=Path, default=ROOT / "docs" / "measured" / "results_curves.png")
    args = parser.parse_args(argv)
    try:
        if args.out.suffix not in (".svg", ".png"):
            raise InputError(f"--out: expected a name ending in .svg or .png, got {args.out.name}")
        if args.command == "latency":
            latency.plot(read(RESULTS / "latency.json"), args.out)
        elif args.command == "intervals":
            intervals(read_report(args.json), args.out)
        else:
            dataset = read_dataset(find_file(args.dataset))
            splits = read_splits(find_file(args.splits), dataset)
            scorers = {name: model_scores(dataset, splits, args.runs, name) for name in args.model}
            curves(dataset, splits, scorers | {LINEAR: linear_scores(dataset)}, args.out)
    except VsumError as error:
        print(f"benchmarks.pages.figures: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"wrote {os.path.relpath(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
