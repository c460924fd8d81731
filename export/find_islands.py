"""Finds the fp16 islands of every architecture and puts them on record, with what was measured.

    python -m vsum_runtime.export.find_islands --runs runs/tvsum_prepared --measure-on tvsum_prepared.h5

Trained weights (of split 1) where there are any, else fresh ones of default options
(seed 0) and the same feature size; measured on videos of the file that the weights did not learn from. Each finding is
written as soon as it is made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from vsum_runtime.export.half_precision import ISLANDS, find_islands, half_precision, islands_of
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.precision_gate import SEARCH_LIMIT, Gate, HalfOnCpu, dataset_probes
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import BackendError, ExportError, VsumError
from vsum_runtime.training.checkpoint import load_model
from vsum_runtime.training.models import MODELS, build
from vsum_runtime.training.runs import Run

COMMAND = "python -m vsum_runtime.export.find_islands --runs RUNS --measure-on FILE"
FRESH = "fresh, seed 0"


@dataclass(frozen=True)
class Subject:
    """A model to measure precisions of."""

    graph: ScorerGraph
    weights: str
    """Which they are, for people."""
    learned_from: frozenset[str]
    """Keys of videos."""


def subject(name: str, checkpoint: Path, feature_dim: int) -> Subject:
    """A model with its trained weights, or with fresh ones of ``feature_dim`` where there is no such file.

    Raises
    ------
    InputError
        the file is no checkpoint
    """
    if not checkpoint.is_file():
        torch.manual_seed(0)
        return Subject(ScorerGraph(build(name, feature_dim=feature_dim).eval(), "l2"), FRESH, frozenset())
    model, meta = load_model(checkpoint)
    learned_from = frozenset({*(meta.get("train_keys") or ()), *(meta.get("validation_keys") or ())})
    weights = f"trained, split {meta['split']} of {meta['splits']['name']}"
    return Subject(ScorerGraph(model, meta["feature_norm"]), weights, learned_from)


def find(name: str, checkpoint: Path, feature_dim: int, measure_on: Path, n_videos: int) -> dict[str, Any]:
    """Search one architecture; as ``subject``.

    Parameters
    ----------
    n_videos
        at most so many are compared on, evenly chosen

    Raises
    ------
    InputError
        a file that is not what it should be
    ExportError
        it cannot be exported, or not even every island is enough
    """
    found = subject(name, checkpoint, feature_dim)
    probes = dataset_probes(measure_on, feature_dim, found.learned_from)
    probes = probes[:: max(1, len(probes) // n_videos)][:n_videos]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "scorer.onnx"
        scorer_onnx(found.graph, feature_dim, single)
        gate, loaded = Gate(single, probes, found.graph.decoder), onnx.load(single)
        islands = find_islands(loaded, gate.passes)
        return {
            "islands": islands,
            "of": len(islands_of(loaded)),
            "weights": found.weights,
            "feature_dim": feature_dim,
            "measured_on": measure_on.name,
            "measured": gate.measure(HalfOnCpu(half_precision(loaded, islands))),
            "without_islands": _without(gate, loaded) if islands else None,
            "seconds": round(time.monotonic() - began),
        }


def _without(gate: Gate, model: onnx.ModelProto) -> dict[str, Any]:
    try:
        return gate.measure(HalfOnCpu(half_precision(model, [])))
    except BackendError as error:
        return {"error": str(error)}


def arguments(prog: str, about: str | None, *, n_videos: int) -> argparse.ArgumentParser:
    """A command that measures precisions: which models, of which weights, on which videos."""
    parser = argparse.ArgumentParser(prog=prog, description=(about or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runs", type=Path, required=True, help="folder of one data set's runs, by vsum-train")
    parser.add_argument("--measure-on", type=Path, required=True, help="HDF5 features to compare scores on")
    parser.add_argument("--feature-dim", type=int, default=1280, help="of that file (default: 1280)")
    parser.add_argument(
        "--videos", type=int, default=n_videos, help="compare on at most so many (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments("python -m vsum_runtime.export.find_islands", __doc__, n_videos=10)
    parser.add_argument("--out", type=Path, default=ISLANDS, help="default: the record of this package")
    args = parser.parse_args(argv)
    status = 0
    for name in args.models:
        checkpoint = Run(split=1).folder(args.runs / name).best
        try:
            found = find(name, checkpoint, args.feature_dim, args.measure_on, args.videos)
        except ExportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        except VsumError as error:
            print(f"find_islands: {error}", file=sys.stderr)
            return 2
        record(args.out, name, found)
        measured = found["measured"]
        print(
            f"{name} ({found['weights']}, {found['seconds']} s): {len(found['islands'])} of {found['of']} islands "
            f"({', '.join(found['islands']) or 'none'}); scores within {measured['max_abs_difference']:.1e}, "
            f"{measured['same_summaries']} of {measured['videos']} summaries the same",
            flush=True,
        )
    return status


def record(path: Path, name: str, found: dict[str, Any]) -> None:
    """Put one finding beside those that are there."""
    known = json.loads(path.read_text(encoding="utf-8"))["architectures"] if path.is_file() else {}
    whole = {
        "command": COMMAND,
        "search_limit": SEARCH_LIMIT,
        "architectures": dict(sorted({**known, name: found}.items())),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
