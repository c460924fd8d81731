"""From which length on is the graph for long videos as fast as the ordinary one?

    python -m benchmarks.in_blocks --out benchmarks/results/in_blocks.json

Both graphs of the default model on the CPU, in turn; random features.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure.rows import Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE

COMMAND = "python -m benchmarks.in_blocks"
PACKAGES = ("onnxruntime", "numpy")
LENGTHS = (320, 1000, 1500, 2000, 2500, 3000)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The two graphs of the default model.", epilog=__doc__)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS, metavar="T")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, args.out)
    bundle = bundles.read(DEFAULT_BUNDLE)
    assert bundle.long is not None
    graphs = {"one product for all queries": bundle.graph, "256 queries at a time": bundle.long[0]}
    sessions = {name: open_session(graph, "ort-cpu") for name, graph in graphs.items()}
    for n_steps in args.lengths:
        features = np.random.default_rng(0).random((1, n_steps, bundle.feature_dim), dtype=np.float32)
        inputs = {"features": features, "lengths": np.array([n_steps])}
        calls = {name: partial(session.run, inputs) for name, session in sessions.items()}
        for name, seconds in in_turn(calls, rounds=args.rounds, least_s=0.0).items():
            results.add("default model", f"T = {n_steps}", name, seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
