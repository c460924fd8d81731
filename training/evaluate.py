"""The one judge: scores of test videos in, agreement with the people who annotated them out.

Averages, all unweighted: annotators, then the videos of a split, then splits. A pair with a constant side has no rank
correlation; it is left out of the mean and counted. What is ranked against what is the *protocol*, named in every
output, because values under different protocols must not be compared:

``tvsum-annotators-at-picks``
    scores at the picks against each annotator's importance there (data sets with ``user_scores``)
``summe-summary-vs-mean``
    the binary machine summary against the mean of the users' summaries, at every frame

The F-score compares the machine summary (mean score per stored shot, exact knapsack at 15 %) with each user summary;
both of the field's rules, mean and maximum over users, are given.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kernels import metrics
from runtime.atomic import replacing
from runtime.errors import InputError, VsumError
from runtime.summary import choose
from training.baselines import LinearBaseline, leave_one_out_scores, random_scores
from training.datasets import (
    Dataset,
    Split,
    Splits,
    Video,
    find_file,
    importance_at_picks,
    read_dataset,
    read_splits,
    unit_rows,
)

PROTOCOLS = {
    "tvsum-annotators-at-picks": ("user_scores", "shots", "user_summary"),
    "summe-summary-vs-mean": ("shots", "user_summary"),
}
"""Name -> the fields of a video it needs."""


@dataclass(frozen=True)
class Agreement:
    """How well one video's scores, or the mean of several, agree with people."""

    f_mean: float
    """F-score, mean over users, 0 to 1 (the rule of TVSum)."""
    f_max: float
    """F-score, maximum over users (the rule of SumMe)."""
    tau: float
    """Kendall's tau-b; NaN where no pair has one."""
    rho: float
    """Spearman's rho."""
    left_out: int = 0
    """Pairs without a rank correlation."""


def evaluate_scores(
    dataset: Dataset, scores: Mapping[str, ArrayLike], keys: Sequence[str], *, protocol: str | None = None
) -> dict[str, Agreement]:
    """Judge the scores [T] of each video of ``keys``; ``protocol`` None takes the one that the data set allows."""
    protocol = protocol or default_protocol(dataset)
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return {
        video.key: judge(video, _checked(video, scores[video.key]), protocol)
        for video in dataset.select(keys, need=PROTOCOLS[protocol])
    }


def default_protocol(dataset: Dataset) -> str:
    """Ranks against each annotator where the data set has their scores, else against the mean summary."""
    scored = all(video.user_scores is not None for video in dataset.videos.values())
    return "tvsum-annotators-at-picks" if scored else "summe-summary-vs-mean"


def mean(agreements: Sequence[Agreement]) -> Agreement:
    """Unweighted mean; NaN is left out, and stays only where nothing else is there."""
    f_mean, f_max, tau, rho = (
        _mean(getattr(a, name) for a in agreements) for name in ("f_mean", "f_max", "tau", "rho")
    )
    return Agreement(f_mean, f_max, tau, rho, left_out=sum(a.left_out for a in agreements))


def judge(video: Video, scores: NDArray[np.float64], protocol: str) -> Agreement:
    """Judge the scores [T] of one video."""
    return _agreement(*_against_users(video, summary_from_scores(video, scores), scores, protocol))


def judge_random(video: Video, protocol: str, *, draws: int) -> Agreement:
    """The mean of many random scorers."""
    return mean([judge(video, scores, protocol) for scores in random_scores(video, draws=draws)])


def judge_human(video: Video, protocol: str) -> Agreement:
    """Each annotator as the scorer, judged by the others."""
    assert video.user_summary is not None
    users = range(len(video.user_summary))
    curves = importance_at_picks(video) if video.user_scores is not None else [np.empty(0)] * len(users)
    results = []
    for user in users:
        others = np.delete(users, user)
        results.append(_agreement(*_against_users(video, video.user_summary[user], curves[user], protocol, others)))
    return mean(results)


def judge_ceiling(video: Video, protocol: str) -> Agreement:
    """The mean of all other annotators as the scorer, judged by the one left out."""
    parts = [
        _against_users(video, summary_from_scores(video, scores), scores, protocol, np.array([user]))
        for user, scores in enumerate(leave_one_out_scores(video))
    ]
    return _agreement(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def summary_from_scores(video: Video, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The machine summary [N]: the runtime's own way from scores to chosen shots."""
    assert video.shots is not None
    summary = np.zeros(video.n_frames, dtype=np.bool_)
    _, chosen = choose(scores, video.picks, video.shots, video.n_frames, video.capacity)
    for start, end in video.shots[chosen]:
        summary[start:end] = True
    return summary


def _against_users(
    video: Video,
    summary: NDArray[np.bool_],
    scores: NDArray[np.float64],
    protocol: str,
    users: NDArray[Any] | slice = slice(None),
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """F, tau and rho against each of ``users``; under ``summe-summary-vs-mean`` one tau and rho against their mean."""
    assert video.user_summary is not None
    f = metrics.f_scores(summary, video.user_summary[users])
    if protocol == "tvsum-annotators-at-picks":
        prediction, references = scores, importance_at_picks(video)[users]
    else:
        prediction, references = summary.astype(np.float64), video.user_summary[users].mean(axis=0, keepdims=True)
    return f, metrics.kendall_tau(prediction, references), metrics.spearman_rho(prediction, references)


def _agreement(f: NDArray[np.float64], tau: NDArray[np.float64], rho: NDArray[np.float64]) -> Agreement:
    return Agreement(float(f.mean()), float(f.max()), _mean(tau), _mean(rho), int(np.isnan(tau).sum()))


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _checked(video: Video, scores: ArrayLike) -> NDArray[np.float64]:
    curve = np.asarray(scores, dtype=np.float64)
    if curve.shape != video.picks.shape or not np.isfinite(curve).all():
        raise InputError(f"{video.key}: expected {len(video.picks)} finite scores, one per pick, got {curve.shape}")
    return curve


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    source: str
    """File or directory that was judged; empty for the rows that everything is compared with."""
    by_split: dict[int, dict[str, Agreement]]
    """Split number -> video -> agreement."""
    seen_in_training: int | None = 0
    """Test videos that the model had learned from or was chosen by; None where that is not recorded."""

    @property
    def mean(self) -> Agreement:
        """Over the videos of a split, then over splits."""
        return mean([mean(list(videos.values())) for videos in self.by_split.values()])


def compared_with(dataset: Dataset, splits: Sequence[Split], protocol: str, *, draws: int = 100) -> list[Row]:
    """The rows random, one human, leave-one-out ceiling and linear baseline, as far as the data set allows them."""
    keys = dict.fromkeys(key for split in splits for key in split.test_keys)
    tested = dataset.select(list(keys), need=PROTOCOLS[protocol])
    judges: dict[str, Callable[[Video], Agreement]] = {
        f"random ({draws} draws)": lambda video: judge_random(video, protocol, draws=draws),
        "one human": lambda video: judge_human(video, protocol),
    }
    if protocol == "tvsum-annotators-at-picks":
        judges["leave-one-out ceiling"] = lambda video: judge_ceiling(video, protocol)
    rows = []
    for name, judged_by in judges.items():
        by_key = {video.key: judged_by(video) for video in tested}
        rows.append(Row(name, "", {split.number: {key: by_key[key] for key in split.test_keys} for split in splits}))
    if all(video.features is not None and video.gtscore is not None for video in dataset.videos.values()):
        by_split = {}
        for split in splits:
            line = LinearBaseline.fit(dataset.select(split.train_keys))
            scores = {video.key: line.score(video) for video in dataset.select(split.test_keys)}
            by_split[split.number] = evaluate_scores(dataset, scores, split.test_keys, protocol=protocol)
        rows.append(Row("linear, smoothed", "", by_split))
    return rows


Scorer = Callable[[Path, Sequence[NDArray[np.float32]]], tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]]
"""A path and features [T, D] of videos in; a name, the record of the training and the scores [T] out."""


def model_row(
    dataset: Dataset, splits: Splits, chosen: Sequence[Split], protocol: str, path: str, score: Scorer
) -> Row:
    """Judge what ``path`` names; ``{split}`` in it stands for the number of each split."""
    name, by_split, seen = "", {}, []
    for split in chosen:
        videos = dataset.select(split.test_keys, need=("features",))
        features = [video.features for video in videos if video.features is not None]
        name, training, scores = score(Path(path.replace("{split}", str(split.number))), features)
        by_key = dict(zip(split.test_keys, scores, strict=True))
        by_split[split.number] = evaluate_scores(dataset, by_key, split.test_keys, protocol=protocol)
        seen.append(_seen_in_training(training, dataset, splits, split))
    return Row(name, path, by_split, None if None in seen else sum(filter(None, seen)))


def score_with_bundle(
    path: Path, features: Sequence[NDArray[np.float32]]
) -> tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]:
    """Scores by the runtime, as every user gets them."""
    from runtime import Summarizer

    with Summarizer(path) as summarizer:
        manifest = summarizer.bundle.manifest
        name = f"{summarizer.bundle.name}, {manifest['graph'].get('precision')} bundle on {summarizer.backend}"
        return name, manifest.get("training") or {}, summarizer.score(features)


def score_with_checkpoint(
    path: Path, features: Sequence[NDArray[np.float32]]
) -> tuple[str, Mapping[str, Any], list[NDArray[np.float32]]]:
    """Scores by torch."""
    import torch

    from training.checkpoint import load_model
    from training.models import step_scores

    model, metadata = load_model(path)
    scores = []
    for rows in features:
        if rows.shape[1] != metadata["feature_dim"]:
            raise InputError(f"{path}: takes features of size {metadata['feature_dim']}, got {rows.shape[1]}")
        given = torch.from_numpy(unit_rows(rows) if metadata["feature_norm"] == "l2" else rows)
        scores += step_scores(model, given[None], torch.tensor([len(rows)]))
    return f"{metadata['model']}, checkpoint of epoch {metadata['epoch']}", metadata, scores


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


def report(
    dataset: Dataset, splits: Splits, chosen: Sequence[Split], protocol: str, rows: Sequence[Row]
) -> dict[str, Any]:
    """Everything about an evaluation, ready for JSON; undefined numbers are null."""

    def numbers(agreement: Agreement) -> dict[str, float | int | None]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(agreement).items()}

    return {
        "format": "vsum-evaluation",
        "format_version": 1,
        "protocol": protocol,
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, "recipe": dataset.recipe},
        "splits": {"name": splits.name, "sha256": splits.sha256, "numbers": [split.number for split in chosen]},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "rows": [
            {
                "name": row.name,
                "source": row.source,
                "seen_in_training": row.seen_in_training,
                **numbers(row.mean),
                "splits": {
                    number: {
                        **numbers(mean(list(videos.values()))),
                        "videos": {key: numbers(agreement) for key, agreement in videos.items()},
                    }
                    for number, videos in row.by_split.items()
                },
            }
            for row in rows
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a report."""
    splits, dataset = result["splits"], result["dataset"]
    lines = [
        f"Protocol `{result['protocol']}`; data `{dataset['name']}` (sha256 {dataset['sha256'][:12]}); splits "
        f"`{splits['name']}` (sha256 {splits['sha256'][:12]}), number {', '.join(map(str, splits['numbers']))}.",
        "",
        "| scores of | F mean % | F max % | tau | rho | pairs left out |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        seen, name = row["seen_in_training"], row["name"]
        if seen is None:
            name += " (whether it has seen test videos is not recorded)"
        elif seen:
            name += f" (**has seen {seen} test videos in training**)"
        shares = ("-" if row[k] is None else f"{100 * row[k]:.1f}" for k in ("f_mean", "f_max"))
        ranks = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("tau", "rho"))
        lines.append(f"| {' | '.join([name, *shares, *ranks, str(row['left_out'])])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-evaluate",
        description="How well scores agree with people: a model beside chance, one human, their ceiling, a linear fit.",
        epilog="example: vsum-evaluate --bundle bundles/csta-split1 --dataset tvsum.h5 --splits splits.json --split 1",
    )
    parser.add_argument("--bundle", help="exported model; {split} in the path stands for the split's number")
    parser.add_argument("--checkpoint", help="file of vsum-train; {split} as above")
    parser.add_argument("--dataset", required=True, metavar="FILE.h5", help="also looked for in the folder VSUM_DATA")
    parser.add_argument("--splits", required=True, metavar="FILE", help="split file; also looked for in VSUM_DATA")
    parser.add_argument("--split", nargs="+", default=["all"], help="numbers from 1, or all (default)")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: the first that the data set's labels allow")
    parser.add_argument("--draws", type=int, default=100, help="random scorers (default: 100)")
    parser.add_argument("--json", type=Path, help="write every number, per video")
    args = parser.parse_args(argv)
    try:
        dataset = read_dataset(find_file(args.dataset))
        splits = read_splits(find_file(args.splits), dataset)
        chosen = splits.select(args.split)
        protocol = args.protocol or default_protocol(dataset)
        if args.draws < 1:
            raise InputError(f"--draws: expected at least 1, got {args.draws}")
        rows = []
        for path, score in ((args.bundle, score_with_bundle), (args.checkpoint, score_with_checkpoint)):
            if path:
                rows.append(model_row(dataset, splits, chosen, protocol, path, score))
        rows += compared_with(dataset, chosen, protocol, draws=args.draws)
        result = report(dataset, splits, chosen, protocol, rows)
        if args.json:
            with replacing(args.json) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except VsumError as error:
        print(f"vsum-evaluate: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
