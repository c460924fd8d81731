"""How long does PyTorch take to score a video with each trained model?  The column *ms* of docs/measured/results.md.

    python -m benchmarks.scoring --runs runs --out benchmarks/results/scoring.json

Each model in the folders, once for each of its options: 320 steps, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.rows import Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.runtime.errors import VsumError
from vsum_runtime.training.checkpoint import load_model, read_metadata
from vsum_runtime.training.procedures import options_before_training
from vsum_runtime.training.runs import all_best
from vsum_runtime.training.scores import step_scores

COMMAND = "python -m benchmarks.scoring --runs runs"
PACKAGES = ("torch", "numpy")
N_STEPS = 320


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", nargs="+", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="JSON file of rows to update")
    args = parser.parse_args(argv)
    results, measured = Results(COMMAND, PACKAGES, args.out), set()
    try:
        for path in all_best(args.runs):
            about = read_metadata(path)
            if (key := options_key(about)) not in measured:
                measured.add(key)
                model, _ = load_model(path)
                features = np.random.default_rng(0).random((N_STEPS, about["feature_dim"]), dtype=np.float32)
                features /= np.linalg.norm(features, axis=1, keepdims=True)
                call = lambda model=model, features=features: step_scores(model, features)  # noqa: E731
                seconds = in_turn({"": call}, rounds=7, least_s=0.3)[""]
                results.add(about["model"], key, "PyTorch", seconds, note=f"{N_STEPS} steps")
    except VsumError as error:
        print(f"benchmarks.scoring: {error}", file=sys.stderr)
        return 1
    if not measured:
        print(f"benchmarks.scoring: no finished run below {', '.join(map(str, args.runs))}", file=sys.stderr)
    return 0 if measured else 2


def options_key(about: Mapping[str, Any]) -> str:
    """The options of a model that were chosen before its training, as text; `about`: metadata, or a row of a report."""
    options = options_before_training(about.get("recipe", about["model"]), about["options"])
    rounded = {name: round(v, 6) if isinstance(v, float) else v for name, v in options.items()}  # as reports hold them
    return json.dumps(rounded, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
