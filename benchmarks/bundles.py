"""Does a bundle still make the summaries that PyTorch makes, and what does it cost to ask?

    python -m benchmarks.bundles --bundle bundles/csta-split1 --checkpoint csta/split1/best.safetensors \\
        --dataset tvsum_prepared.h5 --splits tvsum_partition.json --split 1 --out benchmarks/results/bundles.json

takes each bundle to every backend that can run here, on the test videos of the splits, and compares with PyTorch in
float32: the largest difference of a score, Kendall's tau between the two score curves, the share of videos whose
summary is the same, and how far F, tau and rho move. ``{split}`` in a path stands for the split's number. Backends that
are absent have a row with the reason. Where a bundle has a graph in half precision, that is run here too, every value
rounded as it says; how long it takes says nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.rows import Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.kernels import metrics
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.backends import absences
from vsum_runtime.runtime.calls import score
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.datasets import Dataset, Video, find_file, read_dataset, read_splits
from vsum_runtime.training.judge import Rules, default_rules, evaluate_scores, mean
from vsum_runtime.training.protocols import chosen_shots
from vsum_runtime.training.trained_rows import score_with_checkpoint

PACKAGES = ("torch", "onnxruntime", "numpy")
MEASURES = ("f_mean", "f_max", "tau", "rho")
N_STEPS = 320
HALF = "half, on the CPU"
Curves = Sequence[NDArray[np.float32]]


def compare(
    dataset: Dataset, videos: Sequence[Video], reference: Curves, scores: Curves, rules: Rules
) -> tuple[dict[str, float], list[str]]:
    """What another engine's scores change on these videos, against the reference's; and whose summaries."""
    keys = [video.key for video in videos]
    before, after = (
        asdict(mean(list(evaluate_scores(dataset, dict(zip(keys, curves, strict=True)), keys, rules).values())))
        for curves in (reference, scores)
    )
    taus = [float(metrics.kendall_tau(ours, theirs[None])[0]) for ours, theirs in zip(scores, reference, strict=True)]
    changed = [
        video.key
        for video, *curves in zip(videos, scores, reference, strict=True)
        if not np.array_equal(*(chosen_shots(video, curve.astype(np.float64)) for curve in curves))
    ]
    differences = [
        float(np.abs(ours.astype(np.float64) - theirs).max()) for ours, theirs in zip(scores, reference, strict=True)
    ]
    values = {
        "videos": float(len(videos)),
        "largest difference": max(differences),
        "mean tau between": float(np.mean(taus)),
        "least tau between": min(taus),
        "same summaries": 1 - len(changed) / len(videos),
    }
    return values | {f"change of {measure}": after[measure] - before[measure] for measure in MEASURES}, changed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bundles", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--bundle", nargs="+", required=True, help="exported models, {split} as in vsum-evaluate")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, help="what PyTorch runs: one for each bundle, or one for all"
    )
    parser.add_argument("--dataset", required=True, metavar="FILE.h5")
    parser.add_argument("--splits", required=True, metavar="FILE")
    parser.add_argument("--split", nargs="+", default=["all"], help="numbers from 1, or all (default)")
    parser.add_argument("--threads", type=int, help="threads of CPU backends")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="JSON file of rows to update")
    args = parser.parse_args(argv)
    try:
        measure(args)
    except VsumError as error:
        print(f"benchmarks.bundles: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def measure(args: argparse.Namespace) -> None:
    if len(args.checkpoint) not in (1, len(args.bundle)):
        raise InputError(f"--checkpoint: expected 1 or {len(args.bundle)}, one per bundle, got {len(args.checkpoint)}")
    dataset = read_dataset(find_file(args.dataset))
    splits = read_splits(find_file(args.splits), dataset)
    chosen = splits.select(args.split)
    rules = default_rules(dataset)
    numbers = " ".join(str(split.number) for split in chosen)
    command = f"python -m benchmarks.bundles --dataset {dataset.name}.h5 --splits {splits.name} --split {numbers}"
    results = Results(command, PACKAGES, args.out)
    present = [name for name, reason in absences().items() if reason is None]
    for name, reason in absences().items():
        if reason is not None:
            results.add("all", "", name, [], note=reason)
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
            seconds: list[float] = []
            precision = "fp16"
            for (path, _), each in zip(cases, features, strict=True):
                if backend == HALF:
                    curves += _half_scores(path, each)
                    continue
                with Summarizer(path, backend=backend, n_threads=args.threads) as summarizer:
                    curves += summarizer.score(each)
                    seconds += _seconds(summarizer)
                    precision = summarizer.bundle.manifest["graph"].get("precision")
            values, changed = compare(dataset, list(unique.values()), references, curves, rules)
            where = Path(bundle).name, precision, backend
            for metric, value in values.items():
                note = ", ".join(changed) if metric == "same summaries" else ""
                results.add(*where, [value], metric=metric, unit="", note=note)
            if seconds:
                results.add(*where, seconds, note=f"{N_STEPS} steps")


def _seconds(summarizer: Summarizer) -> list[float]:
    rows = np.random.default_rng(0).random((N_STEPS, summarizer.bundle.feature_dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return in_turn({"": lambda: summarizer.score([rows])}, rounds=7, least_s=0.2)[""]


def _half_scores(path: Path, features: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    import onnx

    from vsum_runtime.export.precision_gate import HalfOnCpu

    bundle = bundles.read(path)
    return score(HalfOnCpu(onnx.load(bundle.half)), features, bundle.decoder)


if __name__ == "__main__":
    sys.exit(main())
