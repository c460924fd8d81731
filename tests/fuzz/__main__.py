"""Coverage-guided fuzzing of all readers of foreign bytes, or of one: ``python -m tests.fuzz --seconds 60 [TARGET]``.

Needs atheris (``pip install "vsum-runtime[fuzz]"``). What it learns is kept in ``build/fuzz/TARGET``, and so is an
input that breaks a promise.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.measure.rows import Results

KEPT = Path("build/fuzz")
READERS = [
    *(f"vsum_runtime.runtime.{name}" for name in ("bundle", "choice", "summary", "serve.job_store", "serve.rest")),
    *("numpy.lib.format", "numpy.lib._format_impl", "python_multipart", "zipfile"),
]
"""Modules whose branches are counted: more of them take minutes to prepare."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, which then ends
    args = parser.parse_args()
    if args.here:
        fuzz(args.target, args.seconds)

    from tests.fuzz.targets import TARGETS

    results = Results("python -m tests.fuzz", ("atheris", "vsum-runtime", "numpy"), args.out)
    codes = {}
    for name in [args.target] if args.target else TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", name, "--here", "--seconds", str(args.seconds)]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        codes[name] = ended.returncode
        sys.stderr.write(ended.stderr[-4000:])
        n_inputs = [int(n) for n in re.findall(r"number_of_executed_units: (\d+)", ended.stderr)]
        results.add("fuzz", f"{args.seconds} s", name, n_inputs, metric="inputs", unit="")
        results.add("fuzz", f"{args.seconds} s", name, [int(ended.returncode != 0)], metric="broken promises", unit="")
        print(f"{name}: {'nothing broken' if codes[name] == 0 else f'broken, see {KEPT / name}'}", flush=True)  # noqa: T201
    return int(any(codes.values()))


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target until the time is over or a promise is broken; ends the process."""
    import atheris

    with atheris.instrument_imports(include=READERS):
        from tests.fuzz.targets import TARGETS

    folder = KEPT / name / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={KEPT / name}/", str(folder)], TARGETS[name].try_it)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
