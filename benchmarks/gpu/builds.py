"""Every model in both precisions through the builder of TensorRT-RTX with the profiles we ship; needs no GPU.

    python -m benchmarks.gpu.builds              # writes benchmarks/results/trt_build.json
    python -m benchmarks.pages                   # then the table in docs/measured/gpus.md

Full size, fresh weights, islands as on record. Each build is a process of its own that may take ``--limit`` seconds;
its row is on disk as soon as it ends, and a second run goes on where this one was cut. It shows that graphs parse,
types agree, profiles hold and memory is bounded: nothing about speed, or about TensorRT itself, another product.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.graphs import DIM, export, paths
from benchmarks.measure.process import ChildError, in_fresh_process
from benchmarks.measure.rows import RESULTS, Results, read
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES
from vsum_runtime.training.models import MODELS

COMMAND = "python -m benchmarks.gpu.builds"
CAPABILITY = "8.9"
PACKAGES = ("tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnx", "torch")


def build(graph: str) -> dict[str, Any]:
    """Build one graph; products by type, bytes by profile, seconds."""
    from vsum_runtime.export.engine_from_onnx import BuildConfig, build_engine, load_library

    library = load_library("tensorrt_rtx")
    began = time.monotonic()
    built = build_engine(Path(graph), BuildConfig(compute_capabilities=(CAPABILITY,)), library)
    return {
        "products": built.products,
        "memory_bytes": list(built.memory_bytes),
        "plan_bytes": len(built.plan),
        "seconds": time.monotonic() - began,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--feature-dim", type=int, default=DIM)
    parser.add_argument("--graphs", type=Path, default=Path("build/gpu-graphs"), metavar="DIR")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a build may take (default: 600)")
    parser.add_argument("--out", type=Path, default=RESULTS / "trt_build.json")
    parser.add_argument("--again", action="store_true", help="build those that have a row, too")
    args = parser.parse_args(argv)
    args.graphs.mkdir(parents=True, exist_ok=True)
    built = {(row.what, row.size) for row in read(args.out) if row.metric == "time" and row.p50 is not None}
    results = Results(COMMAND, PACKAGES, args.out)
    for name in args.models:
        if args.again or not {(name, "fp32"), (name, "fp16")} <= built:
            problem = export(name, args.feature_dim, args.graphs)
            for precision, graph in zip(("fp32", "fp16"), paths(args.graphs, name, args.feature_dim), strict=True):
                _add(results, name, precision, graph, problem, args.limit)
    return 0 if all(row.p50 is not None for row in read(args.out)) else 1


def _add(results: Results, name: str, precision: str, graph: Path, problem: str, limit_s: float) -> None:
    """Rows of one build; a build that fails or ends its process has one that says why."""
    where = name, precision, "TensorRT-RTX"
    try:
        if problem:
            raise ChildError(problem)
        engine = in_fresh_process(build, str(graph.resolve()), timeout_s=limit_s).result
    except subprocess.TimeoutExpired:
        results.add(*where, [], note=f"no engine within {limit_s:.0f} s")
    except ChildError as error:
        results.add(*where, [], note=str(error).splitlines()[-1][-300:])
    else:
        products = ", ".join(f"{count} {kind.lower()}" for kind, count in sorted(engine["products"].items()))
        results.add(*where, [engine["seconds"]], note=products)
        results.add(*where, [engine["plan_bytes"]], metric="plan size", unit="B")
        for profile, size in zip(PROFILES, engine["memory_bytes"], strict=True):
            results.add(*where, [size], metric=f"memory, {profile.most[0]} x {profile.most[1]}", unit="B")


if __name__ == "__main__":
    sys.exit(main())
