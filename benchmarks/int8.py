"""Would int8 pay on a CPU? Each model's exported graph in float32 and quantized, side by side in one run.

    python -m benchmarks.int8 --runs runs/tvsum_prepared --measure-on tvsum_prepared.h5

``dynamic``: products and LSTMs with int8 weights and activations (``export.quantized_onnx``). ``weights``: products
with int8 weights in blocks of 64, computed as the runtime chooses (``MatMulNBits``). Speed is one video of 320 steps on
all processors, calls of the variants taking turns; differences are those of scores on the file's videos, and the gate
that of half precision. Weights are chosen as by ``export.find_islands``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.kernels import ROOT, machine
from vsum_runtime.export.find_islands import Subject, arguments, subject
from vsum_runtime.export.onnx_from_torch import scorer_onnx
from vsum_runtime.export.precision_gate import LIMIT, Gate, Probe, dataset_probes, failures
from vsum_runtime.export.quantized_onnx import int8
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session

RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
COMMAND = "python -m benchmarks.int8 --runs RUNS --measure-on FILE"
PACKAGES = ("onnxruntime", "onnx", "numpy")
N_STEPS = 320
SECONDS = 6.0
"""Of taking turns, for each model."""


def weights(single: Path, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=64, is_symmetric=True, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(single), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


VARIANTS: dict[str, Callable[[Path, Path], None]] = {"dynamic": int8, "weights": weights}


def rows_of(name: str, found: Subject, single: Path, probes: list[Probe]) -> list[dict[str, Any]]:
    """One row per variant of a model; a variant that cannot be made is a row as well."""
    rows: list[dict[str, Any]] = []
    gate = Gate(single, probes, found.graph.decoder)
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Session] = {"fp32": open_session(single, "ort-cpu")}
        paths = {}
        for variant, make in VARIANTS.items():
            paths[variant] = Path(folder) / f"{variant}.onnx"
            try:
                make(single, paths[variant])
                sessions[variant] = open_session(paths[variant], "ort-cpu")
            except Exception as error:
                rows.append({"model": name, "variant": variant, "status": "failed", "reason": str(error)[:200]})
        seconds = in_turns(sessions, probes[0].features.shape[1])
        for variant in sessions.keys() - {"fp32"}:
            measured = gate.measure(sessions[variant])
            rows.append(
                {
                    "model": name,
                    "variant": variant,
                    "weights": found.weights,
                    "status": "ok",
                    "fp32_s": seconds["fp32"],
                    "int8_s": seconds[variant],
                    "times_as_fast": seconds["fp32"] / seconds[variant],
                    "bytes": paths[variant].stat().st_size,
                    "fp32_bytes": single.stat().st_size,
                    **measured,
                    "passes": not failures(measured, LIMIT),
                }
            )
        for session in sessions.values():
            session.close()
    return sorted(rows, key=lambda row: str(row["variant"]))


def in_turns(sessions: dict[str, Session], feature_dim: int) -> dict[str, float]:
    """Median seconds of a call, the sessions taking turns."""
    features = np.random.default_rng(0).random((1, N_STEPS, feature_dim), dtype=np.float32)
    inputs = {"features": features, "lengths": np.array([N_STEPS])}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(inputs)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or min(map(len, taken.values())) < 3:
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(inputs)
            taken[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in taken.items()}


def main(argv: list[str] | None = None) -> int:
    parser = arguments("python -m benchmarks.int8", __doc__, n_videos=5)
    parser.add_argument("--graphs", type=Path, default=Path("build/int8-graphs"), help="where graphs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    args.graphs.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        found = subject(name, args.runs / name / "split1" / "best.safetensors", args.feature_dim)
        single = args.graphs / f"{name}.{found.weights.partition(',')[0]}.onnx"
        if not single.exists():
            with replacing(single) as temporary:
                scorer_onnx(found.graph, args.feature_dim, temporary)
        probes = dataset_probes(args.measure_on, args.feature_dim, found.learned_from)[: args.videos]
        rows = rows_of(name, found, single, probes)
        known = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.is_file() else []
        whole = {
            "command": COMMAND,
            "n_steps": N_STEPS,
            "measured_on": args.measure_on.name,
            **machine(PACKAGES),
            "rows": [*(row for row in known if row["model"] != name), *rows],
        }
        with replacing(args.out) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        for row in rows:
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
