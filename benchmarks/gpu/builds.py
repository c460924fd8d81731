"""Every model in both precisions through the builder of TensorRT-RTX with the profiles we ship; needs no GPU.

    python -m benchmarks.gpu.builds              # writes benchmarks/results/trt_build.json
    python -m benchmarks.gpu.report              # then the table in docs/gpu.md

Full size, fresh weights, islands as on record. Each build is a process of its own that may take ``--limit`` seconds;
its row is on disk as soon as it ends, and a second run goes on where this one was cut. It shows that graphs parse,
types agree, profiles hold and memory is bounded: nothing about speed, or about TensorRT itself, another product.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.graphs import DIM, export, paths
from benchmarks.kernels import ROOT, machine
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES
from vsum_runtime.runtime.errors import VsumError
from vsum_runtime.training.models import MODELS

RESULTS = ROOT / "benchmarks" / "results" / "trt_build.json"
COMMAND = "python -m benchmarks.gpu.builds"
CAPABILITY = "8.9"
PACKAGES = ("tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnx", "torch")


def build(graph: Path) -> dict[str, Any]:
    """Build one graph here; products by type, bytes by profile, seconds."""
    from vsum_runtime.export.engine_from_onnx import BuildConfig, build_engine, load_library

    library = load_library("tensorrt_rtx")
    began = time.monotonic()
    built = build_engine(graph, BuildConfig(compute_capabilities=(CAPABILITY,)), library)
    return {
        "status": "ok",
        "products": built.products,
        "memory_bytes": list(built.memory_bytes),
        "plan_bytes": len(built.plan),
        "seconds": round(time.monotonic() - began, 1),
    }


def build_apart(graph: Path, limit_s: float) -> dict[str, Any]:
    """The same in a process of its own; a build that fails or ends the process is a row as well."""
    began = time.monotonic()
    try:
        asked = [sys.executable, "-m", "benchmarks.gpu.builds", "--one", str(graph)]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=limit_s, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"no engine within {limit_s:.0f} s", "seconds": limit_s}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    reason = (done.stderr.strip() or f"the process ended with status {done.returncode}").splitlines()[-1]
    return {"status": "failed", "reason": reason[-300:], "seconds": round(time.monotonic() - began, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--feature-dim", type=int, default=DIM)
    parser.add_argument("--graphs", type=Path, default=Path("build/gpu-graphs"), metavar="DIR")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a build may take (default: 600)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="build those that have a row, too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one is not None:
        try:
            print(json.dumps(build(args.one)))
        except VsumError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    args.graphs.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        _rows_of(name, args)
    results = json.loads(args.out.read_text(encoding="utf-8"))
    return 0 if all(row["status"] == "ok" for row in results["rows"]) else 1


def _rows_of(name: str, args: argparse.Namespace) -> None:
    known = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.is_file() else []
    rows = {(row["model"], row["precision"]): row for row in known}
    if not args.again and all(rows.get((name, precision), {}).get("status") == "ok" for precision in ("fp32", "fp16")):
        return
    problem = export(name, args.feature_dim, args.graphs)
    for precision, graph in zip(("fp32", "fp16"), paths(args.graphs, name, args.feature_dim), strict=True):
        found = {"status": "failed", "reason": problem} if problem else build_apart(graph, args.limit)
        rows[name, precision] = {"model": name, "precision": precision, **found}
        print(json.dumps(rows[name, precision]), flush=True)
        about = {
            "command": COMMAND,
            "capability": CAPABILITY,
            "feature_dim": args.feature_dim,
            "profiles": [vars(profile) for profile in PROFILES],
            **machine(PACKAGES),
        }
        order = [(model, precision) for model in MODELS for precision in ("fp32", "fp16")]
        with replacing(args.out) as temporary:
            whole = {**about, "rows": [rows[key] for key in order if key in rows]}
            temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
