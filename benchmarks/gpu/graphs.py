"""Every model as a graph with random weights, in both precisions, several at a time.

    python -m benchmarks.gpu.graphs --out build/gpu-graphs

Half precision with the islands on record, else those this finds are not searched: none are left in float32, and the
rows say what that costs in parity.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.training.models import MODELS, build

DIM = 1024


def fresh(name: str, feature_dim: int) -> torch.nn.Module:
    """A model with the same random weights every time."""
    torch.manual_seed(0)
    return build(name, feature_dim=feature_dim).eval()


def paths(folder: Path, name: str, feature_dim: int) -> tuple[Path, Path]:
    """Where the graphs of a model are, in single and half precision."""
    return folder / f"{name}-{feature_dim}.fp32.onnx", folder / f"{name}-{feature_dim}.fp16.onnx"


def export(name: str, feature_dim: int, folder: Path) -> str:
    """Write both graphs of a model, where they are not there yet; what went wrong, or ""."""
    import onnx

    from vsum_runtime.export.half_precision import half_precision, islands_on_record
    from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx

    single, half = paths(folder, name, feature_dim)
    try:
        if not single.exists():
            with replacing(single) as temporary:
                scorer_onnx(ScorerGraph(fresh(name, feature_dim), "none"), feature_dim, temporary)
        if not half.exists():
            with replacing(half) as temporary:
                onnx.save(half_precision(onnx.load(single), islands_on_record(name) or []), temporary)
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"[:400]
    return ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.graphs", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--feature-dim", type=int, default=DIM)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with ProcessPoolExecutor(
        args.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        for future in as_completed([pool.submit(export, name, args.feature_dim, args.out) for name in args.models]):
            if problem := future.result():
                failed += 1
                print(problem, file=sys.stderr, flush=True)
    print(f"{len(args.models) - failed} of {len(args.models)} models exported to {args.out}")
    return 1 if failed else 0


def _one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    raise SystemExit(main())
