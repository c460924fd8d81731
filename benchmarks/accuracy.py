"""Does a bundle still make the summaries that PyTorch makes, and what does it cost to ask?

    python -m benchmarks.accuracy --bundle bundles/csta-split1 --checkpoint csta/split1/best.safetensors \\
        --dataset tvsum_prepared.h5 --splits tvsum_partition.json --split 1 --out benchmarks/results/bundles.json

takes each bundle to every backend that can run here, on the test videos of the splits, and compares with PyTorch in
float32: the largest difference of a score, Kendall's tau between the two score curves, the share of videos whose
summary is the same, and how far F, tau and rho move. ``{split}`` in a path stands for the split's number. Backends that
are absent are listed with the reason. Where a bundle has a graph in half precision, that is run here too, every value
rounded as it says; how long it takes says nothing. A Markdown table is printed; ``--out`` writes the rows as JSON, per
video, after each bundle; with ``--keep`` rows of other bundles stay in that file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import machine
from vsum_runtime.kernels import metrics
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends import absences
from vsum_runtime.runtime.calls import score
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.datasets import Dataset, Video, find_file, read_dataset, read_splits
from vsum_runtime.training.judge import Rules, default_rules, evaluate_scores, mean
from vsum_runtime.training.protocols import chosen_shots
from vsum_runtime.training.rows import score_with_checkpoint

MEASURES = ("f_mean", "f_max", "tau", "rho")
N_STEPS = 320
HALF = "half, on the CPU"
Curves = Sequence[NDArray[np.float32]]


def compare(
    dataset: Dataset, videos: Sequence[Video], reference: Curves, scores: Curves, rules: Rules
) -> dict[str, Any]:
    """What another engine's scores change on these videos, against the reference's."""
    keys = [video.key for video in videos]
    judged = [
        evaluate_scores(dataset, dict(zip(keys, curves, strict=True)), keys, rules) for curves in (reference, scores)
    ]
    by_video = {}
    for video, ours, theirs in zip(videos, scores, reference, strict=True):
        before, after = asdict(judged[0][video.key]), asdict(judged[1][video.key])
        by_video[video.key] = {
            "max_abs_difference": float(np.abs(ours.astype(np.float64) - theirs).max()),
            "tau_between": float(metrics.kendall_tau(ours, theirs[None])[0]),
            "same_summary": bool(np.array_equal(*(chosen_shots(video, c.astype(np.float64)) for c in (ours, theirs)))),
            **{name: after[name] - before[name] for name in MEASURES},
        }
    values = list(by_video.values())
    before, after = (asdict(mean(list(by_key.values()))) for by_key in judged)
    return {
        "videos": len(values),
        "max_abs_difference": max(v["max_abs_difference"] for v in values),
        "tau_between": float(np.mean([v["tau_between"] for v in values])),
        "least_tau_between": min(v["tau_between"] for v in values),
        "same_summary_rate": float(np.mean([v["same_summary"] for v in values])),
        "summaries_changed": [key for key, v in by_video.items() if not v["same_summary"]],
        "change": {name: after[name] - before[name] for name in MEASURES},
        "largest_change": {name: max(abs(v[name]) for v in values) for name in MEASURES},
        "by_video": by_video,
    }


def latency(summarizer: Summarizer, *, runs: int = 21) -> dict[str, float]:
    """Seconds to score ``N_STEPS`` steps, after two runs that are not counted."""
    rows = np.random.default_rng(0).random((N_STEPS, summarizer.bundle.feature_dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    seconds = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        summarizer.score([rows])
        seconds.append(time.perf_counter() - began)
    p20, p50, p80 = (float(value) for value in np.quantile(seconds[2:], [0.2, 0.5, 0.8]))
    return {"p20_s": p20, "p50_s": p50, "p80_s": p80, "runs": runs}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one line per bundle and backend, then what changed by name and what could not run."""
    about = result["machine"]
    lines = [
        f"{about['device']}; commit {about['commit']}. Against PyTorch float32, on {result['dataset']['name']}, splits "
        f"{result['splits']['name']}, number {', '.join(map(str, result['splits']['numbers']))}; protocol "
        f"`{result['protocol']}`, F rule `{result['f_rule']}`.",
        "",
        "| bundle | precision | backend | videos | max abs difference | tau between (least) | same summaries "
        "| change of F % | of tau | of rho | ms at T = 320 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        change = row["change"]
        cells = [
            row["bundle"],
            row["precision"],
            row["backend"],
            str(row["videos"]),
            f"{row['max_abs_difference']:.1e}",
            f"{row['tau_between']:.6f} ({row['least_tau_between']:.6f})",
            f"{row['same_summary_rate']:.1%}",
            f"{100 * change['f_mean']:+.3f}",
            f"{change['tau']:+.6f}",
            f"{change['rho']:+.6f}",
            "" if row["latency"] is None else f"{1000 * row['latency']['p50_s']:.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for row in result["rows"]:
        if row["summaries_changed"]:
            changed = ", ".join(row["summaries_changed"])
            lines.append(f"**{row['bundle']} on {row['backend']} changes the summary of {changed}.**")
    lines += [f"Not run: {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--bundle", nargs="+", required=True, help="exported models, {split} as in vsum-evaluate")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, help="what PyTorch runs: one for each bundle, or one for all"
    )
    parser.add_argument("--dataset", required=True, metavar="FILE.h5")
    parser.add_argument("--splits", required=True, metavar="FILE")
    parser.add_argument("--split", nargs="+", default=["all"], help="numbers from 1, or all (default)")
    parser.add_argument("--threads", type=int, help="threads of CPU backends")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--keep", action="store_true", help="keep rows of other bundles that --out has")
    args = parser.parse_args(argv)
    try:
        result = measure(args)
    except VsumError as error:
        print(f"benchmarks.accuracy: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(table(result))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if len(args.checkpoint) not in (1, len(args.bundle)):
        raise InputError(f"--checkpoint: expected 1 or {len(args.bundle)}, one per bundle, got {len(args.checkpoint)}")
    dataset = read_dataset(find_file(args.dataset))
    splits = read_splits(find_file(args.splits), dataset)
    chosen = splits.select(args.split)
    rules = default_rules(dataset)
    reasons = absences()
    present = [name for name, reason in reasons.items() if reason is None]
    result = {
        "format": "vsum-accuracy",
        "format_version": 1,
        "machine": machine(),
        **asdict(rules),
        "dataset": {"name": dataset.name, "sha256": dataset.sha256},
        "splits": {"name": splits.name, "sha256": splits.sha256, "numbers": [split.number for split in chosen]},
        "absent": {name: reason for name, reason in reasons.items() if reason is not None},
        "rows": _kept(args),
    }
    for position, bundle in enumerate(args.bundle):
        checkpoint = args.checkpoint[position if len(args.checkpoint) > 1 else 0]
        cases = [
            (Path(bundle.replace("{split}", str(split.number))), Path(checkpoint.replace("{split}", str(split.number))))
            for split in chosen
        ]
        tested = [dataset.select(split.test_keys, need=("features", *rules.needs)) for split in chosen]
        features = [[v.features for v in videos if v.features is not None] for videos in tested]
        references = [
            curve
            for (_, path), each in zip(cases, features, strict=True)
            for curve in score_with_checkpoint(path, each)[2]
        ]
        unique = {v.key: v for videos in tested for v in videos}
        if len(unique) < sum(map(len, tested)):
            raise InputError("--split: expected splits that test every video once; name the splits one by one")
        halves = all(bundles.read(path).half is not None for path, _ in cases)
        for backend in [*present, *([HALF] if halves else [])]:
            curves: list[NDArray[np.float32]] = []
            took, precision = None, "fp16"
            for (path, _), each in zip(cases, features, strict=True):
                if backend == HALF:
                    curves += _half_scores(path, each)
                    continue
                with Summarizer(path, backend=backend, n_threads=args.threads) as summarizer:
                    curves += summarizer.score(each)
                    took, precision = latency(summarizer), summarizer.bundle.manifest["graph"].get("precision")
            found = compare(dataset, list(unique.values()), references, curves, rules)
            about = {"bundle": Path(bundle).name, "precision": precision, "backend": backend, "latency": took}
            result["rows"].append({**about, **found})
            print(f"{about['bundle']} on {backend}: {found['max_abs_difference']:.1e}", file=sys.stderr, flush=True)
        if args.out:
            with replacing(args.out) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _kept(args: argparse.Namespace) -> list[dict[str, Any]]:
    if not args.keep or args.out is None or not args.out.exists():
        return []
    again = {Path(bundle).name for bundle in args.bundle}
    return [row for row in json.loads(args.out.read_text(encoding="utf-8"))["rows"] if row["bundle"] not in again]


def _half_scores(path: Path, features: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    import onnx

    from vsum_runtime.export.precision_gate import HalfOnCpu

    bundle = bundles.read(path)
    return score(HalfOnCpu(onnx.load(bundle.half)), features, bundle.decoder)


if __name__ == "__main__":
    sys.exit(main())
