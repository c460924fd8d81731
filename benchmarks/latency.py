"""How long does scoring one video take, for every model, against other ways to run the same network?

    python -m benchmarks.latency --quick
    python -m benchmarks.latency --graphs build/graphs --out benchmarks/results/latency.json

Random weights (speed does not depend on them), D = 1024, one video of T steps, all on two threads. Ours is what
`Summarizer.score` runs. Peers: PyTorch in eager mode under ``inference_mode``; ONNX Runtime with its default options on
the same graph; OpenVINO, where it is installed, in fp32, tuned for latency and given the fixed shape it likes best.
Graphs are exported once into --graphs. torch.compile is not measured here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rounds import Row, in_turn, row, save
from export.onnx_from_torch import ScorerGraph, scorer_onnx
from runtime.backends import open_session
from training.models import MODELS, build

DIM = 1024
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")
N_THREADS = 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Latency of scoring one video.", epilog=__doc__)
    parser.add_argument("--models", nargs="*", default=sorted(MODELS))
    parser.add_argument("--graphs", type=Path, help="folder of exported graphs (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="one small size, one round")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(N_THREADS)
    lengths, rounds, least_s = ((60,), 1, 0.0) if args.quick else ((60, 320, 1000), 5, 0.05)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = args.graphs or Path(folder)
        graphs.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            for found in measure(name, graphs / f"{name}.onnx", lengths, rounds, least_s):
                rows.append(found)
                print(f"{found.what} {found.size} {found.implementation}: {1e3 * found.p50:.2f} ms", flush=True)
            save(args.out, "python -m benchmarks.latency", PACKAGES, rows)
    return 0


def measure(name: str, graph: Path, lengths: tuple[int, ...], rounds: int, least_s: float) -> list[Row]:
    torch.manual_seed(0)
    model = build(name, feature_dim=DIM).eval()
    if not graph.exists():
        scorer_onnx(ScorerGraph(model, "none"), DIM, graph)
    ours, naive = open_session(graph, "ort-cpu", n_threads=N_THREADS), _naive(graph)
    rows = []
    for n_steps in lengths:
        features = np.random.default_rng(0).random((1, n_steps, DIM), dtype=np.float32)
        features /= np.linalg.norm(features, axis=2, keepdims=True)
        inputs = {"features": features, "lengths": np.array([n_steps])}
        tensors = torch.from_numpy(features), torch.tensor([n_steps])

        def eager(tensors: tuple[torch.Tensor, torch.Tensor] = tensors) -> Any:
            with torch.inference_mode():
                return model(*tensors)

        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda inputs=inputs: ours.run(inputs),
            "torch eager": eager,
            "ONNX Runtime, default options": lambda inputs=inputs: naive.run(None, inputs),
        }
        openvino = _openvino(graph, inputs)
        if openvino is not None:
            calls["OpenVINO fp32, fixed shape"] = openvino
        seconds = in_turn(calls, rounds=rounds, least_s=least_s)
        rows += [row(name, f"T = {n_steps}", who, values) for who, values in seconds.items()]
    ours.close()
    return rows


def _naive(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = N_THREADS, 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _openvino(graph: Path, inputs: dict[str, np.ndarray]) -> Callable[[], Any] | None:
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    model = core.read_model(str(graph))
    model.reshape({key: list(value.shape) for key, value in inputs.items()})
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": N_THREADS,
    }
    compiled = core.compile_model(model, "CPU", options)
    return lambda: compiled(inputs)


if __name__ == "__main__":
    raise SystemExit(main())
