"""Would int8 pay on a CPU? Each model's exported graph in float32 and quantized, side by side in one run.

    python -m benchmarks.int8 --runs runs/tvsum_prepared --measure-on tvsum_prepared.h5

``dynamic``: products and LSTMs with int8 weights and activations (``export.quantized_onnx``). ``weights``: products
with int8 weights in blocks of 64, computed as the runtime chooses (``MatMulNBits``). Speed is one video of 320 steps on
all processors, calls of the variants taking turns; differences are those of scores on the file's videos, and the gate
that of half precision. Weights are chosen as by ``export.find_islands``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.measure.rows import RESULTS, Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.export.find_islands import Subject, arguments, subject
from vsum_runtime.export.onnx_from_torch import scorer_onnx
from vsum_runtime.export.precision_gate import LIMIT, Gate, Probe, dataset_probes, failures
from vsum_runtime.export.quantized_onnx import int8
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.training.runs import Run

COMMAND = "python -m benchmarks.int8 --runs RUNS --measure-on FILE"
PACKAGES = ("onnxruntime", "onnx", "numpy")
N_STEPS = 320


def weights(single: Path, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=64, is_symmetric=True, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(single), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


VARIANTS: dict[str, Callable[[Path, Path], None]] = {"dynamic": int8, "weights": weights}


def measure(results: Results, name: str, model: Subject, single: Path, probes: list[Probe]) -> None:
    """Rows of the variants of a model; a variant that cannot be made has one that says why."""
    gate = Gate(single, probes, model.graph.decoder)
    size = f"{N_STEPS} steps"
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Session] = {"fp32": open_session(single, "ort-cpu")}
        paths = {"fp32": single}
        for variant, make in VARIANTS.items():
            paths[variant] = Path(folder) / f"{variant}.onnx"
            try:
                make(single, paths[variant])
                sessions[variant] = open_session(paths[variant], "ort-cpu")
            except Exception as error:
                results.add(name, size, variant, [], note=str(error)[:200])
        features = np.random.default_rng(0).random((1, N_STEPS, probes[0].features.shape[1]), dtype=np.float32)
        inputs = {"features": features, "lengths": np.array([N_STEPS])}
        calls = {variant: partial(session.run, inputs) for variant, session in sessions.items()}
        for variant, seconds in in_turn(calls, rounds=5, least_s=0.4).items():
            results.add(name, size, variant, seconds, note=model.weights)
            results.add(name, size, variant, [paths[variant].stat().st_size], metric="file size", unit="B")
        for variant in sessions.keys() - {"fp32"}:
            measured = gate.measure(sessions[variant])
            for metric, value in {
                "largest difference": measured["max_abs_difference"],
                "least tau": measured["min_kendall_tau"],
                "same summaries": measured["same_summaries"] / measured["videos"],
                "within the gate": not failures(measured, LIMIT),
            }.items():
                results.add(name, size, variant, [] if value is None else [value], metric=metric, unit="")
        for session in sessions.values():
            session.close()


def main(argv: list[str] | None = None) -> int:
    parser = arguments("python -m benchmarks.int8", __doc__, n_videos=5)
    parser.add_argument("--graphs", type=Path, default=Path("build/int8-graphs"), help="where graphs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json")
    args = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, args.out)
    args.graphs.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        model = subject(name, Run(split=1).folder(args.runs / name).best, args.feature_dim)
        single = args.graphs / f"{name}.{model.weights.partition(',')[0]}.onnx"
        if not single.exists():
            with replacing(single) as temporary:
                scorer_onnx(model.graph, args.feature_dim, temporary)
        probes = dataset_probes(args.measure_on, args.feature_dim, model.learned_from)[: args.videos]
        measure(results, name, model, single, probes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
