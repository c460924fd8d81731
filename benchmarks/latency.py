"""How long does scoring one video take, for every model, against other ways to run the same network?

    python -m benchmarks.latency --quick
    python -m benchmarks.latency --graphs build/graphs --compile-only       # torch.compile ahead, each within 120 s
    python -m benchmarks.latency --graphs build/graphs --out benchmarks/results/latency.json [--models NAME ...]

Random weights (speed does not depend on them), D = 1024, one video of T steps, all on two threads. Ours is what
`Summarizer.score` runs, on its default CPU backend and on OpenVINO. Peers: PyTorch in eager mode under
``inference_mode``; torch.compile for this one length; ONNX Runtime with its default options; OpenVINO, where it is
installed, in fp32, tuned for latency and compiled for this one length. The last two take an export without our folding
of layers. The floor is the time that the operations of the products and convolutions take at the rates of a large
product (the better of PyTorch and NumPy) and a 3 x 3 convolution (PyTorch) measured in the same turns: a guide, not a
bound, as some products are faster.

Graphs are exported once into --graphs. torch.compile takes part only where --compile-only finished before, as what it
compiled is then in its cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure.process import ChildError, in_fresh_process
from benchmarks.measure.rows import Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.runtime.backends import absences, open_session
from vsum_runtime.training.models import MODELS, build

DIM = 1024
LENGTHS = (60, 320, 1000)
COMMAND = "python -m benchmarks.latency"
PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")
N_THREADS = 2
COMPILE_S = 120
_SIDE = 1024
_IMAGE, _KERNEL = (1, 64, 80, 256), (64, 64, 3, 3)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Latency of scoring one video.", epilog=__doc__)
    parser.add_argument("--models", nargs="*", default=sorted(MODELS), choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS, metavar="T")
    parser.add_argument("--graphs", type=Path, help="folder of exported graphs (default: a temporary one)")
    parser.add_argument(
        "--compile-only", action="store_true", help="run torch.compile ahead, and note where it finished"
    )
    parser.add_argument("--quick", action="store_true", help="one small size, one round; writes nothing")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    torch.set_num_threads(N_THREADS)
    lengths, rounds, least_s = ((60,), 1, 0.0) if args.quick else (args.lengths, 5, 0.05)
    with tempfile.TemporaryDirectory() as folder:
        graphs = args.graphs or Path(folder)
        graphs.mkdir(parents=True, exist_ok=True)
        if args.compile_only:
            for name in args.models:
                for n_steps in lengths:
                    compile_ahead(name, n_steps, graphs)
            return 0
        results = Results(COMMAND, PACKAGES, None if args.quick else args.out)
        for name in args.models:
            for n_steps in lengths:
                measure(results, name, n_steps, graphs, rounds, least_s)
    return 0


def measure(results: Results, name: str, n_steps: int, graphs: Path, rounds: int, least_s: float) -> None:
    model, graph, plain = fresh(name), exported(name, graphs), exported(name, graphs, fold=False)
    inputs, tensors = example(n_steps), _tensors(example(n_steps))
    sessions = {"ours": open_session(graph, "ort-cpu", n_threads=N_THREADS)}
    if absences()["openvino"] is None:
        sessions["ours, backend openvino"] = open_session(graph, "openvino", n_threads=N_THREADS)

    def eager() -> Any:
        with torch.inference_mode():
            return model(*tensors)

    calls: dict[str, Callable[[], Any]] = {who: lambda s=s: s.run(inputs) for who, s in sessions.items()}
    calls["torch eager"] = eager
    mark = _mark(name, n_steps, graphs)
    if mark.exists() and json.loads(mark.read_text())["finished"]:
        calls["torch.compile"] = _compiled(model, inputs)
    naive = naive_session(plain)
    calls["ONNX Runtime, default options"] = lambda: naive.run(None, inputs)
    if "ours, backend openvino" in sessions:
        calls["OpenVINO fp32, fixed shape"] = openvino_call(plain, inputs)
    side, image, kernel = torch.rand(_SIDE, _SIDE), torch.rand(_IMAGE), torch.rand(_KERNEL)
    yardsticks: dict[str, Callable[[], Any]] = {
        "product": lambda: side @ side,
        "product, NumPy": lambda: side.numpy() @ side.numpy(),
        "convolution": lambda: torch.nn.functional.conv2d(image, kernel, padding=1),
    }
    with torch.inference_mode():
        seconds = in_turn(calls | yardsticks, rounds=rounds, least_s=least_s)
    p50 = {what: float(np.median(seconds.pop(what))) for what in yardsticks}
    for session in sessions.values():
        session.close()
    products, convolutions = operations(model, tensors)
    product_rate = 2 * _SIDE**3 / min(p50["product"], p50["product, NumPy"])
    convolution_rate = 2 * _IMAGE[2] * _IMAGE[3] * np.prod(_KERNEL) / p50["convolution"]
    floor = products / product_rate + convolutions / convolution_rate
    rates = f"{products / 1e9:.2f} G at {product_rate / 1e9:.0f} G/s"
    if convolutions:
        rates += f", convolutions {convolutions / 1e9:.2f} G at {convolution_rate / 1e9:.0f} G/s"
    for who, values in seconds.items():
        results.add(name, _size(n_steps), who, values)
    results.add(name, _size(n_steps), "floor", [floor], note=rates)


def fresh(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, feature_dim=DIM).eval()


def exported(name: str, graphs: Path, *, fold: bool = True) -> Path:
    """The graph that bundles have, or for peers the one without our folding of layers."""
    model = fresh(name)
    fold = fold or not any(hasattr(layer, "folded") for layer in model.modules())
    graph = graphs / f"{name}{'' if fold else '.plain'}.onnx"
    if not graph.exists():
        scorer_onnx(ScorerGraph(model, "none"), DIM, graph, fold=fold)
    return graph


def example(n_steps: int) -> dict[str, np.ndarray]:
    features = np.random.default_rng(0).random((1, n_steps, DIM), dtype=np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return {"features": features, "lengths": np.array([n_steps])}


def operations(model: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Operations (two per multiplication) of the matrix products and of the convolutions of one call."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Recurrence and attention as products, to be counted.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter:
        model(*tensors)
    counts = {str(operator): n for operator, n in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(n for operator, n in counts.items() if "conv" in operator)
    return float(sum(counts.values()) - convolutions), float(convolutions)


def compile_ahead(name: str, n_steps: int, graphs: Path) -> None:
    """Fill the cache of torch.compile in a process that may take COMPILE_S, and note whether it finished."""
    try:
        in_fresh_process(run_compiled, name, n_steps, timeout_s=COMPILE_S)
        finished = True
    except (ChildError, subprocess.TimeoutExpired):
        finished = False
    _mark(name, n_steps, graphs).write_text(json.dumps({"finished": finished}))
    print(f"{name} {_size(n_steps)}: {'compiled' if finished else 'not compiled'}", flush=True)


def run_compiled(name: str, n_steps: int) -> None:
    torch.set_num_threads(N_THREADS)
    _compiled(fresh(name), example(n_steps))()


def naive_session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = N_THREADS, 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def openvino_call(graph: Path, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    import openvino

    model = openvino.Core().read_model(str(graph))
    model.reshape({key: list(value.shape) for key, value in inputs.items()})
    compiled = openvino.Core().compile_model(model, "CPU", OPENVINO_OPTIONS)
    return lambda: compiled(inputs)


OPENVINO_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": N_THREADS,
}


def _compiled(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False)
    tensors = _tensors(inputs)

    def call() -> Any:
        with torch.inference_mode():
            return compiled(*tensors)

    return call


def _tensors(inputs: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in inputs.values())


def _mark(name: str, n_steps: int, graphs: Path) -> Path:
    return graphs / f"{name}-{n_steps}.compiled.json"


def _size(n_steps: int) -> str:
    return f"T = {n_steps}"


if __name__ == "__main__":
    raise SystemExit(main())
