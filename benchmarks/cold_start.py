"""What does the first run of an installation cost, and what does each fresh process?

    python -m benchmarks.cold_start VIDEO... --out benchmarks/results/cold_start.json

Each run is ``vsum-summarize VIDEO -o out.mp4 --json out.json`` in a process of its own. Before a first run nothing is
compiled: neither Python's byte code nor numba's machine code, and the home folder is empty. A second run finds what the
first compiled. Processor time is user and system time of the whole process, its start included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.measure.process import in_fresh_process
from benchmarks.measure.rows import Results
from benchmarks.memory import run_vsum_summarize

COMMAND = "python -m benchmarks.cold_start VIDEO..."
PACKAGES = ("onnxruntime", "av", "numpy", "numba")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the first run of an installation costs.", epilog=__doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, args.out)
    for video in args.videos:
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                home = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PYTHONPYCACHEPREFIX"), folder)
                for run in ("first run", "second run"):
                    out = ["-o", f"{folder}/out.mp4", "--json", f"{folder}/out.json", "--overwrite"]
                    began = time.perf_counter()
                    outcome = in_fresh_process(run_vsum_summarize, str(video.resolve()), *out, environment=home)
                    taken.setdefault((run, "time"), []).append(time.perf_counter() - began)
                    taken.setdefault((run, "processor time"), []).append(outcome.processor_s)
        for (run, metric), seconds in taken.items():
            results.add("vsum-summarize", video.name, run, seconds, metric=metric)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
