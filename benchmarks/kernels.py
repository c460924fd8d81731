"""How fast are the kernels, against their slow twins, the libraries a user would pick, and what the machine allows?

    python -m benchmarks.kernels --quick
    python -m benchmarks.kernels --features tvsum_efflite0.h5 --out benchmarks/results/kernels.json

prints one Markdown table and writes the same rows as JSON. Every time is the median of repeated runs in this process,
after one warm-up; small print (20th and 80th percentile, versions, commit) is in the JSON. Rows of one block ran one
after another on the same input. Peers: `ruptures` (``KernelCPD(kernel="linear", min_size=1)``, given the right number
of changes, or the right slope), OR-tools (dynamic programming, integer values of 20 bits), SciPy (called once per
annotator). Floors: the float64 matrix product of numpy's BLAS, on all its threads, with as many multiplications as the
tiles our kernel computed; one copy of the row of capacities per item of the knapsack. Our kernels run on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference import knapsack as slow_knapsack
from tests.reference import kts as slow_kts
from tests.reference import metrics as slow_metrics
from vsum_runtime.kernels import knapsack, kts, kts_stream, metrics, penalised
from vsum_runtime.kernels.__main__ import warm_up

ROOT = Path(__file__).resolve().parent.parent
OURS, TWIN, FLOOR = "ours", "NumPy twin", "floor"


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    size: str
    implementation: str
    metric: str
    unit: str
    p20: float
    p50: float
    p80: float
    runs: int
    answer: str  # what came out, or how far it is from ours


def measure(call: Callable[[], Any], *, at_most_s: float = 2.0, runs: int = 15) -> tuple[list[float], Any]:
    """Seconds of several runs, after one that is not counted if it was short; and the result."""
    began = time.perf_counter()
    result = call()
    seconds = [time.perf_counter() - began]
    if seconds[0] < at_most_s:
        seconds.clear()
        while len(seconds) < runs and (len(seconds) < 3 or sum(seconds) < at_most_s):
            began = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - began)
    return seconds, result


def timed(what: str, size: str, implementation: str, seconds: Sequence[float], answer: str = "") -> Row:
    p20, p50, p80 = (float(np.quantile(seconds, q)) for q in (0.2, 0.5, 0.8))
    row = Row(what, size, implementation, "time", "s", p20, p50, p80, len(seconds), answer)
    print(f"{what} {size} {implementation}: {p50:.3g} s", file=sys.stderr)
    return row


def video(n_steps: int, size: int, *, kinds: str = "black static drift cuts endless", seed: int = 0) -> np.ndarray:
    """Rows of unit length that look like the features of a video, one row per frame, float32.

    Black leader (zero rows), static shots, shots that drift slowly, quick cuts, one endless shot, in turn; 150 frames
    to a shot on average, 20 to a quick one, a fifth of the video to the endless one. "noise": nothing alike at all.
    """
    draws = np.random.default_rng(seed)
    rows = np.zeros((n_steps, size), dtype=np.float32)
    if kinds == "noise":
        for at in range(0, n_steps, 4096):
            rows[at : at + 4096] = draws.standard_normal((min(4096, n_steps - at), size), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows
    at = n_steps // 100 if "black" in kinds else 0
    turns = [kind for kind in kinds.split() if kind in ("static", "drift", "cuts")] or ["static"]
    turn, endless = 0, "endless" in kinds
    while at < n_steps:
        kind = turns[turn % len(turns)]
        turn += 1
        length = int(draws.gamma(2.0, 10 if kind == "cuts" else 75)) + 2
        if endless and at > n_steps // 3:
            endless, length = False, n_steps // 5
        length = min(length, n_steps - at)
        here, there = draws.gamma(0.4, size=(2, size)).astype(np.float32)
        for first in range(0, length, 4096):
            part = np.arange(first, min(first + 4096, length), dtype=np.float32)[:, None]
            path = part / length * (0.3 if kind == "drift" else 0.0)
            block = here * (1 - path) + there * path
            block += 0.15 * np.abs(draws.standard_normal(block.shape, dtype=np.float32))
            rows[at + first : at + first + len(part)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        at += length
    return rows


def kts_rows(what: str, rows: np.ndarray, *, twin: bool, fixed: bool, slope: bool) -> list[Row]:
    """Our kernel, its twin and its peers on one sequence, and the floor of the band that ours needed."""
    size = f"{len(rows)} x {rows.shape[1]}"
    seconds, cuts = measure(lambda: kts.change_points(rows))
    table = [timed(what, size, OURS, seconds, f"{len(cuts)} cuts")]
    seconds, width = measure(band_product(rows))
    table.append(timed(what, size, f"{FLOOR}: BLAS", seconds, f"band of {width} rows"))

    def agreement(found: np.ndarray) -> str:
        if found.tolist() == cuts.tolist():
            return "same cuts"
        return f"cost {slow_kts.cost(rows, found) - slow_kts.cost(rows, cuts):+.1e}"

    if twin:
        seconds, found = measure(lambda: slow_kts.change_points(rows))
        table.append(timed(what, size, TWIN, seconds, agreement(found)))
        most = min(len(cuts) + 1, len(rows) - 1)
        seconds, found = measure(lambda: slow_kts.change_points(rows, max_change_points=most))
        table.append(timed(what, size, f"{TWIN}, told where to stop", seconds, agreement(found)))
    if fixed and len(cuts):
        seconds, found = measure(lambda: with_ruptures(rows, n_bkps=len(cuts)))
        table.append(timed(what, size, "ruptures, right number given", seconds, agreement(found)))
    if slope and len(cuts):
        pen = kts.slope(len(rows) / len(cuts))
        seconds, found = measure(lambda: with_ruptures(rows, pen=pen))
        table.append(timed(what, size, "ruptures, right slope given", seconds, agreement(found)))
    return table


def with_ruptures(rows: np.ndarray, **stop: float) -> np.ndarray:
    import ruptures

    return np.array(ruptures.KernelCPD(kernel="linear", min_size=1).fit(rows).predict(**stop)[:-1])


def band_product(rows: np.ndarray) -> Callable[[], int]:
    """A call that does the multiplications of the tiles that `change_points` computes for these rows, in one band."""
    limits = penalised.Limits(1, len(rows) + 1, len(rows) + 1)
    problem = penalised.Penalised(rows, limits)
    kts._Search(problem, rows, limits, 0.5, float(len(rows)), len(rows) - 1).best()
    width = math.ceil(problem.n_tiles * penalised.TILE**2 / len(rows))
    block = rows[:4096].astype(np.float64)
    band = np.ascontiguousarray(np.resize(block, (width, rows.shape[1])))
    out = np.empty((len(block), width))

    def product() -> int:
        for first in range(0, len(rows), len(block)):
            height = min(len(block), len(rows) - first)
            np.matmul(block[:height], band.T, out=out[:height])
        return width

    return product


def worst_case_rows(n_steps: int, size: int) -> list[Row]:
    """Noise, where hardly anything can be left out, against the product of all rows with all."""
    what, text = "KTS, noise", f"{n_steps} x {size}"
    rows = video(n_steps, size, kinds="noise")
    seconds, cuts = measure(lambda: kts.change_points(rows))
    table = [timed(what, text, OURS, seconds, f"{len(cuts)} cuts")]
    wide = rows.astype(np.float64)
    other, out = wide.copy(), np.empty((min(n_steps, 2048), n_steps))

    def all_pairs() -> None:
        for first in range(0, n_steps, len(out)):
            part = wide[first : first + len(out)]
            np.matmul(part, other.T, out=out[: len(part)])

    seconds, _ = measure(all_pairs)
    table.append(timed(what, text, f"{FLOOR}: BLAS, all pairs", seconds))
    return table


MEMORY_CODE = """
import json, sys, time
import numpy as np
from benchmarks.kernels import video
from vsum_runtime.kernels import compiled, kts, penalised
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
rows = video({n_steps}, {size})
compiled.start_compiler(penalised.__name__)
kts.change_points(rows[:200])
before = peak()
began = time.perf_counter()
cuts = kts.change_points(rows)
print(json.dumps([peak(), before, rows.nbytes, time.perf_counter() - began, len(cuts)]))
"""


def memory_rows(n_steps: int, size: int) -> list[Row]:
    """Peak memory of a fresh process, as the operating system counts it (VmHWM)."""
    if not Path("/proc/self/status").exists():
        return []
    peak, before, features, seconds, n_cuts = json.loads(fresh_process(MEMORY_CODE.format(n_steps=n_steps, size=size)))
    text = f"{n_steps} x {size}"
    print(f"KTS memory {text}: {peak / 1e9:.2f} GB", file=sys.stderr)
    answer = f"{features / 1e9:.2f} GB are the features, {(peak - before) / 1e9:.2f} GB the kernel; {seconds:.2f} s"
    what = "KTS, peak memory of the process"
    return [Row(what, text, OURS, "memory", "GB", *(3 * [peak / 1e9]), 1, f"{n_cuts} cuts; {answer}")]


FIRST_CALL_CODE = """
import json, time
began = time.perf_counter()
import numpy as np
numpy_there = time.perf_counter()
{imports}
imported = time.perf_counter()
{call}
called = time.perf_counter()
print(json.dumps([imported - numpy_there, called - imported]))
"""


def first_call_rows() -> list[Row]:
    """A fresh process after ``python -m kernels``: import, then first call, numpy being there already."""
    calls = {
        "kts": ("from vsum_runtime.kernels import kts", "kts.change_points(np.eye(40))"),
        "kts, long": ("from vsum_runtime.kernels import kts", "kts.change_points(np.eye(9000, 8, dtype=np.float32))"),
        "knapsack": ("from vsum_runtime.kernels import knapsack", "knapsack.pack([2.0, 3.0], [2, 3], 4)"),
        "metrics": ("from vsum_runtime.kernels import metrics", "metrics.kendall_tau([1, 2], [[1, 2]])"),
    }
    table = []
    for name, (imports, call) in calls.items():
        code = FIRST_CALL_CODE.format(imports=imports, call=call)
        times = np.array([json.loads(fresh_process(code)) for _ in range(5)])
        table.append(timed(f"first call, {name}", "fresh process", OURS, times[:, 1].tolist(), "after the import"))
        answer = "numba's own import included where it is needed"
        table.append(timed(f"import and first call, {name}", "fresh process", OURS, times.sum(axis=1).tolist(), answer))
    return table


def fresh_process(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return result.stdout


def stream_rows(n_steps: int, size: int) -> list[Row]:
    rows = video(n_steps, size)
    delays: list[int] = []

    def stream_all() -> int:
        delays.clear()
        stream = kts_stream.Stream(steps_per_cut=150, max_steps=1500)
        n_cuts = 0
        for at in range(0, n_steps, 30):
            cuts = stream.push(rows[at : at + 30])
            delays.extend(min(at + 30, n_steps) - cuts)
            n_cuts += len(cuts)
        return n_cuts + len(stream.finish())

    seconds, n_cuts = measure(stream_all)
    answer = f"{n_cuts} cuts, median delay {np.median(delays):.0f} steps" if delays else f"{n_cuts} cuts"
    return [timed("KTS, stream in blocks of 30", f"{n_steps} x {size}", OURS, seconds, answer)]


def some_knapsack(kind: str, n_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values that are multiples of 2 ** -20, so that integer solvers have the same problem; and lengths."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(30, 190, n_items)
    if kind == "random":
        values = draws.integers(1, 2**20, n_items)
    elif kind == "correlated":
        values = 4096 * lengths + draws.integers(0, 20000, n_items)
    else:
        values = lengths * 1024  # worth the same per frame: nothing can be decided early
    return values / 2**20, lengths


def with_ortools(values: list[int], lengths: list[int], capacity: int) -> list[int]:
    from ortools.algorithms.python import knapsack_solver

    solver = knapsack_solver.KnapsackSolver(knapsack_solver.SolverType.KNAPSACK_DYNAMIC_PROGRAMMING_SOLVER, "knapsack")
    solver.init(values, [lengths], [capacity])
    solver.solve()
    return [item for item in range(len(values)) if solver.best_solution_contains(item)]


def as_integers(values: np.ndarray, lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """The same problem as lists of integers, which is what OR-tools takes."""
    return np.rint(values * 2**20).astype(np.int64).tolist(), lengths.tolist()


def knapsack_rows(kind: str, n_items: int, capacity: int, *, peer: bool, twin: bool = False) -> list[Row]:
    values, lengths = some_knapsack(kind, n_items)
    what, size = f"knapsack, {kind}", f"{n_items} items, {capacity} frames"
    seconds, chosen = measure(lambda: knapsack.pack(values, lengths, capacity))
    total = values[chosen].sum()
    table = [timed(what, size, OURS, seconds, f"value {total:.6f}")]
    row, other = np.zeros(capacity + 1), np.zeros(capacity + 1)

    def touch() -> None:
        for _ in range(n_items):
            np.copyto(other, row)

    seconds, _ = measure(touch)
    table.append(timed(what, size, f"{FLOOR}: one copy of the row per item", seconds))
    if peer:
        seconds, found = measure(partial(with_ortools, *as_integers(values, lengths), capacity))
        table.append(timed(what, size, "OR-tools", seconds, f"value {values[found].sum() - total:+.1e}"))
    if twin:
        seconds, found = measure(lambda: slow_knapsack.pack(values.tolist(), lengths.tolist(), capacity))
        table.append(timed(what, size, "list twin", seconds, f"value {values[found].sum() - total:+.1e}"))
    return table


def small_knapsack_rows(n_problems: int) -> list[Row]:
    """Problems of 1 to 60 shots: the sum of the best of 15 runs each, and how many were slower than OR-tools."""
    draws = np.random.default_rng(1)
    times: dict[str, list[float]] = {OURS: [], "OR-tools": []}
    for _ in range(n_problems):
        n_items = int(draws.integers(1, 61))
        values, lengths = draws.integers(1, 2**20, n_items) / 2**20, draws.integers(5, 60, n_items)
        capacity = int(0.15 * lengths.sum())
        times[OURS].append(min(measure(partial(knapsack.pack, values, lengths, capacity))[0]))
        peer = partial(with_ortools, *as_integers(values, lengths), capacity)
        times["OR-tools"].append(min(measure(peer)[0]))
    slower = sum(ours > peer for ours, peer in zip(*times.values(), strict=True))
    what, size = "knapsack, small, all together", f"{n_problems} problems"
    return [
        timed(what, size, name, [sum(seconds)], f"ours slower on {slower}" if name == OURS else "")
        for name, seconds in times.items()
    ]


def metric_rows(n_users: int, n_frames: int, *, spread: bool) -> list[Row]:
    from scipy import stats

    draws = np.random.default_rng(0)
    if spread:  # scores of every 15th frame, annotators' of every 60th, as in TVSum
        prediction = np.repeat(draws.random(n_frames // 15 + 1), 15)[:n_frames]
        references = np.repeat(draws.integers(1, 6, (n_users, n_frames // 60 + 1)), 60, axis=1)[:, :n_frames]
    else:
        prediction, references = draws.random(n_frames), draws.random((n_users, n_frames))
    table = []
    size = f"{n_users} users, {n_frames} frames" + ("" if spread else ", no two alike")
    for what, ours, peer in (
        ("Kendall tau-b", metrics.kendall_tau, stats.kendalltau),
        ("Spearman rho", metrics.spearman_rho, stats.spearmanr),
    ):
        seconds, found = measure(partial(ours, prediction, references))
        table.append(timed(what, size, OURS, seconds, f"mean {found.mean():+.4f}"))
        seconds, expected = measure(partial(one_by_one, peer, prediction, references))
        table.append(timed(what, size, "SciPy", seconds, f"differs by {np.abs(found - expected).max():.0e}"))
    if spread:
        summary, users = prediction > 0.85, references > 4
        seconds, found = measure(lambda: metrics.f_scores(summary, users))
        table.append(timed("F-score", size, OURS, seconds, f"mean {found.mean():.4f}"))
    return table


def one_by_one(peer: Callable[..., Any], prediction: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.array([peer(prediction, reference).statistic for reference in references])


def metric_twin_rows() -> list[Row]:
    draws = np.random.default_rng(0)
    prediction, references = draws.integers(0, 50, 600), draws.integers(1, 6, (20, 600))
    seconds, found = measure(lambda: metrics.kendall_tau(prediction, references))
    table = [timed("Kendall tau-b", "20 users, 600 steps", OURS, seconds)]
    seconds, expected = measure(lambda: [slow_metrics.kendall_tau(prediction, row) for row in references])
    answer = f"differs by {np.abs(found - expected).max():.0e}"
    table.append(timed("Kendall tau-b", "20 users, 600 steps", TWIN, seconds, answer))
    return table


def real_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The longest video of an HDF5 file of features, and all of them one after another, rows of unit length."""
    import h5py

    with h5py.File(path, "r") as file:
        videos = [np.asarray(group["features"], dtype=np.float32) for group in file.values()]
    videos = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in videos]
    return max(videos, key=len), np.concatenate(videos)


def quick_rows(features: Path | None) -> list[Row]:
    table = kts_rows("KTS, video", video(320, 1024), twin=True, fixed=True, slope=True)
    table += kts_rows("KTS, video", video(3000, 1024), twin=False, fixed=False, slope=True)
    table += kts_rows("KTS, video", video(8000, 1024), twin=False, fixed=False, slope=False)
    if features:
        longest, _ = real_features(features)
        table += kts_rows("KTS, real, longest video", longest, twin=False, fixed=True, slope=True)
    table += worst_case_rows(3000, 1024)
    table += memory_rows(27_000, 1024)
    table += stream_rows(3000, 1024)
    table += knapsack_rows("random", 500, 8100, peer=True)
    table += knapsack_rows("equal", 2000, 32_400, peer=False)
    table += small_knapsack_rows(20)
    table += metric_rows(20, 54_000, spread=True)
    table += metric_twin_rows()
    table += first_call_rows()
    return table


def full_rows(features: Path | None) -> list[Row]:
    table = []
    for size in (1024, 1280):
        for n_steps in (320, 1000, 3000, 8000, 27_000, 108_000):
            rows = video(n_steps, size)
            peers = {"twin": n_steps <= 3000, "fixed": n_steps <= 3000, "slope": n_steps <= 8000}
            table += kts_rows("KTS, video", rows, **peers)
            del rows
        table += memory_rows(108_000, size)
    for kinds in ("static", "drift", "cuts", "static endless", "drift endless"):
        rows = video(27_000, 1024, kinds=kinds)
        table += kts_rows(f"KTS, only {kinds}", rows, twin=False, fixed=False, slope=False)
    for n_steps in (3000, 8000, 27_000):
        table += worst_case_rows(n_steps, 1024)
    if features:
        longest, together = real_features(features)
        table += kts_rows("KTS, real, longest video", longest, twin=True, fixed=True, slope=True)
        table += kts_rows("KTS, real, all videos as one", together, twin=False, fixed=False, slope=True)
    table += stream_rows(27_000, 1024)
    table += knapsack_rows("random", 100, 2000, peer=True, twin=True)
    table += knapsack_rows("random", 2000, 32_400, peer=True)
    table += knapsack_rows("correlated", 3000, 60_000, peer=True)
    table += knapsack_rows("equal", 2000, 32_400, peer=True)
    table += knapsack_rows("equal", 8000, 200_000, peer=False)
    table += small_knapsack_rows(200)
    table += metric_rows(20, 216_000, spread=True)
    table += metric_rows(3, 216_000, spread=False)
    table += metric_twin_rows()
    table += first_call_rows()
    return table


def machine(packages: Sequence[str] = ("numpy", "numba", "scipy", "ruptures", "ortools")) -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    commit = os.environ.get("VSUM_COMMIT", "")  # for a copy without its history
    if not commit and shutil.which("git"):
        asked = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "device": f"{cpu}, {os.cpu_count()} cores",
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
        "commit": commit or None,
    }


def markdown(table: Sequence[Row], about: dict[str, Any]) -> str:
    """One line per row; a number against ours stands in the rows that share its input."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"{about['device']}; {versions}; commit {about['commit']}.", ""]
    lines += ["| what | size | implementation | median | of ours | answer |", "| --- | --- | --- | ---: | ---: | --- |"]
    ours: Row | None = None
    for row in table:
        if row.implementation == OURS:
            ours = row
        share = ""
        if ours is not None and row is not ours and (row.what, row.size) == (ours.what, ours.size):
            share = f"{row.p50 / ours.p50:.3g} x"
        lines.append(f"| {row.what} | {row.size} | {row.implementation} | {amount(row)} | {share} | {row.answer} |")
    return "\n".join(lines)


def amount(row: Row) -> str:
    if row.unit == "s":
        for unit, scale in (("s", 1.0), ("ms", 1e3)):
            if row.p50 * scale >= 1.0:
                return f"{row.p50 * scale:.3g} {unit}"
        return f"{row.p50 * 1e6:.3g} µs"
    return f"{row.p50:.3g} {row.unit}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of under two minutes, not for quoting")
    parser.add_argument("--features", type=Path, help="HDF5 file with real features, one group per video")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args(argv)
    about = machine()
    warm_up()
    table = (quick_rows if arguments.quick else full_rows)(arguments.features)
    print(markdown(table, about))
    if arguments.out:
        rows = [asdict(row) for row in table]
        arguments.out.write_text(json.dumps({**about, "quick": arguments.quick, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
