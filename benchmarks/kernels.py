"""How fast are the kernels, against their slow twins, the libraries a user would pick, and what the machine allows?

    python -m benchmarks.kernels --quick
    python -m benchmarks.kernels --features tvsum_efflite0.h5 --out benchmarks/results/kernels.json

prints the rows and writes them as JSON. Every time is the median of repeated runs in this process, after one warm-up.
Rows of one block ran one after another on the same input. Peers: ruptures (``KernelCPD(kernel="linear", min_size=1)``,
given the right number of changes, or the right penalty), OR-tools (dynamic programming, integer values of 20 bits),
SciPy (called once per annotator). Floors: the float64 matrix product of NumPy's BLAS, on all its threads, with as many
multiplications as the tiles our kernel computed; one copy of the row of capacities per item of the knapsack. Our
kernels run on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import first_call
from benchmarks.measure.process import in_fresh_process, peak_bytes
from benchmarks.measure.rows import Results
from benchmarks.measure.turns import repeated
from tests.reference import knapsack as slow_knapsack
from tests.reference import kts as slow_kts
from tests.reference import metrics as slow_metrics
from vsum_runtime.kernels import compiled, knapsack, kts, kts_stream, metrics, penalised
from vsum_runtime.kernels.__main__ import warm_up

COMMAND = "python -m benchmarks.kernels --features FILE.h5"
PACKAGES = ("numpy", "numba", "scipy", "ruptures", "ortools")
OURS, TWIN, FLOOR = "ours", "NumPy twin", "floor"


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


def kts_rows(results: Results, what: str, rows: np.ndarray, *, twin: bool, fixed: bool, slope: bool) -> None:
    """Our kernel, its twin and its peers on one sequence, and the floor of the band that ours needed."""
    size = f"{len(rows)} x {rows.shape[1]}"
    seconds, cuts = repeated(lambda: kts.change_points(rows))
    results.add(what, size, OURS, seconds, note=f"{len(cuts)} cuts")
    seconds, width = repeated(band_product(rows))
    results.add(what, size, f"{FLOOR}: BLAS", seconds, note=f"band of {width} rows")

    def agreement(others: np.ndarray) -> str:
        if others.tolist() == cuts.tolist():
            return "same cuts"
        return f"cost {slow_kts.cost(rows, others) - slow_kts.cost(rows, cuts):+.1e}"

    if twin:
        seconds, others = repeated(lambda: slow_kts.change_points(rows))
        results.add(what, size, TWIN, seconds, note=agreement(others))
        most = min(len(cuts) + 1, len(rows) - 1)
        seconds, others = repeated(lambda: slow_kts.change_points(rows, max_change_points=most))
        results.add(what, size, f"{TWIN}, right number given", seconds, note=agreement(others))
    if fixed and len(cuts):
        seconds, others = repeated(lambda: with_ruptures(rows, n_bkps=len(cuts)))
        results.add(what, size, "ruptures, right number given", seconds, note=agreement(others))
    if slope and len(cuts):
        pen = kts.slope(len(rows) / len(cuts))
        seconds, others = repeated(lambda: with_ruptures(rows, pen=pen))
        results.add(what, size, "ruptures, right penalty given", seconds, note=agreement(others))


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


def worst_case_rows(results: Results, n_steps: int, size: int) -> None:
    """Noise, where hardly anything can be left out, against the product of all rows with all."""
    what, text = "KTS, noise", f"{n_steps} x {size}"
    rows = video(n_steps, size, kinds="noise")
    seconds, cuts = repeated(lambda: kts.change_points(rows))
    results.add(what, text, OURS, seconds, note=f"{len(cuts)} cuts")
    wide = rows.astype(np.float64)
    other, out = wide.copy(), np.empty((min(n_steps, 2048), n_steps))

    def all_pairs() -> None:
        for first in range(0, n_steps, len(out)):
            part = wide[first : first + len(out)]
            np.matmul(part, other.T, out=out[: len(part)])

    seconds, _ = repeated(all_pairs)
    results.add(what, text, f"{FLOOR}: BLAS, all pairs", seconds)


def change_points_memory(n_steps: int, size: int) -> dict[str, int | None]:
    """Bytes of a process that segments a synthetic video: at its peak, before the call, and of the features alone."""
    rows = video(n_steps, size)
    compiled.start_compiler(penalised.__name__)
    kts.change_points(rows[:200])
    before = peak_bytes()
    kts.change_points(rows)
    return {"before": before, "features": rows.nbytes}


def memory_rows(results: Results, n_steps: int, size: int) -> None:
    outcome = in_fresh_process(change_points_memory, n_steps, size)
    if outcome.peak_bytes is not None:
        features, kernel = outcome.result["features"], outcome.peak_bytes - outcome.result["before"]
        note = f"{features / 1e9:.2f} GB are the features, {kernel / 1e9:.2f} GB the kernel"
        results.add(
            "KTS, video", f"{n_steps} x {size}", OURS, [outcome.peak_bytes], metric="peak memory", unit="B", note=note
        )


def first_call_rows(results: Results) -> None:
    """A fresh process after ``python -m vsum_runtime.kernels``, which compiles everything."""
    for name in first_call.CALLS:
        times = np.array([in_fresh_process(first_call.import_and_call_s, name).result for _ in range(5)])
        results.add(f"first call, {name}", "fresh process", OURS, times[:, 1].tolist(), note="after the import")
        both = times.sum(axis=1).tolist()
        note = "with the import of numba where it is needed"
        results.add(f"import and first call, {name}", "fresh process", OURS, both, note=note)


def stream_rows(results: Results, n_steps: int, size: int) -> None:
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

    seconds, n_cuts = repeated(stream_all)
    answer = f"{n_cuts} cuts, median delay {np.median(delays):.0f} steps" if delays else f"{n_cuts} cuts"
    results.add("KTS, stream in blocks of 30", f"{n_steps} x {size}", OURS, seconds, note=answer)


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


def knapsack_rows(results: Results, kind: str, n_items: int, capacity: int, *, peer: bool, twin: bool = False) -> None:
    values, lengths = some_knapsack(kind, n_items)
    what, size = f"knapsack, {kind}", f"{n_items} items, {capacity} frames"
    seconds, chosen = repeated(lambda: knapsack.pack(values, lengths, capacity))
    total = values[chosen].sum()
    results.add(what, size, OURS, seconds, note=f"value {total:.6f}")
    row, other = np.zeros(capacity + 1), np.zeros(capacity + 1)

    def touch() -> None:
        for _ in range(n_items):
            np.copyto(other, row)

    seconds, _ = repeated(touch)
    results.add(what, size, f"{FLOOR}: one copy of the row per item", seconds)
    if peer:
        seconds, items = repeated(partial(with_ortools, *as_integers(values, lengths), capacity))
        results.add(what, size, "OR-tools", seconds, note=f"value {values[items].sum() - total:+.1e}")
    if twin:
        seconds, items = repeated(lambda: slow_knapsack.pack(values.tolist(), lengths.tolist(), capacity))
        results.add(what, size, "list twin", seconds, note=f"value {values[items].sum() - total:+.1e}")


def small_knapsack_rows(results: Results, n_problems: int) -> None:
    """Problems of 1 to 60 shots: the sum of the best of 15 runs each, and how many were slower than OR-tools."""
    draws = np.random.default_rng(1)
    times: dict[str, list[float]] = {OURS: [], "OR-tools": []}
    for _ in range(n_problems):
        n_items = int(draws.integers(1, 61))
        values, lengths = draws.integers(1, 2**20, n_items) / 2**20, draws.integers(5, 60, n_items)
        capacity = int(0.15 * lengths.sum())
        times[OURS].append(min(repeated(partial(knapsack.pack, values, lengths, capacity))[0]))
        peer = partial(with_ortools, *as_integers(values, lengths), capacity)
        times["OR-tools"].append(min(repeated(peer)[0]))
    slower = sum(ours > peer for ours, peer in zip(*times.values(), strict=True))
    what, size = "knapsack, small, all together", f"{n_problems} problems"
    for name, seconds in times.items():
        note = f"ours slower on {slower}" if name == OURS else ""
        results.add(what, size, name, [sum(seconds)], note=note)


def metric_rows(results: Results, n_users: int, n_frames: int, *, spread: bool) -> None:
    from scipy import stats

    draws = np.random.default_rng(0)
    if spread:  # scores of every 15th frame, annotators' of every 60th, as in TVSum
        prediction = np.repeat(draws.random(n_frames // 15 + 1), 15)[:n_frames]
        references = np.repeat(draws.integers(1, 6, (n_users, n_frames // 60 + 1)), 60, axis=1)[:, :n_frames]
    else:
        prediction, references = draws.random(n_frames), draws.random((n_users, n_frames))
    size = f"{n_users} users, {n_frames} frames" + ("" if spread else ", no two alike")
    for what, ours, peer in (
        ("Kendall tau-b", metrics.kendall_tau, stats.kendalltau),
        ("Spearman rho", metrics.spearman_rho, stats.spearmanr),
    ):
        seconds, values = repeated(partial(ours, prediction, references))
        results.add(what, size, OURS, seconds, note=f"mean {values.mean():+.4f}")
        seconds, expected = repeated(partial(one_by_one, peer, prediction, references))
        results.add(what, size, "SciPy", seconds, note=f"differs by {np.abs(values - expected).max():.0e}")
    if spread:
        summary, users = prediction > 0.85, references > 4
        seconds, values = repeated(lambda: metrics.f_scores(summary, users))
        results.add("F-score", size, OURS, seconds, note=f"mean {values.mean():.4f}")


def one_by_one(peer: Callable[..., Any], prediction: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.array([peer(prediction, reference).statistic for reference in references])


def metric_twin_rows(results: Results) -> None:
    draws = np.random.default_rng(0)
    prediction, references = draws.integers(0, 50, 600), draws.integers(1, 6, (20, 600))
    seconds, values = repeated(lambda: metrics.kendall_tau(prediction, references))
    results.add("Kendall tau-b", "20 users, 600 steps", OURS, seconds)
    seconds, expected = repeated(lambda: [slow_metrics.kendall_tau(prediction, row) for row in references])
    answer = f"differs by {np.abs(values - expected).max():.0e}"
    results.add("Kendall tau-b", "20 users, 600 steps", TWIN, seconds, note=answer)


def real_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The longest video of an HDF5 file of features, and all of them one after another, rows of unit length."""
    import h5py

    with h5py.File(path, "r") as file:
        videos = [np.asarray(group["features"], dtype=np.float32) for group in file.values()]
    videos = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in videos]
    return max(videos, key=len), np.concatenate(videos)


def quick_rows(results: Results, features: Path | None) -> None:
    kts_rows(results, "KTS, video", video(320, 1024), twin=True, fixed=True, slope=True)
    kts_rows(results, "KTS, video", video(3000, 1024), twin=False, fixed=False, slope=True)
    kts_rows(results, "KTS, video", video(8000, 1024), twin=False, fixed=False, slope=False)
    if features:
        longest, _ = real_features(features)
        kts_rows(results, "KTS, real, longest video", longest, twin=False, fixed=True, slope=True)
    worst_case_rows(results, 3000, 1024)
    memory_rows(results, 27_000, 1024)
    stream_rows(results, 3000, 1024)
    knapsack_rows(results, "random", 500, 8100, peer=True)
    knapsack_rows(results, "equal", 2000, 32_400, peer=False)
    small_knapsack_rows(results, 20)
    metric_rows(results, 20, 54_000, spread=True)
    metric_twin_rows(results)
    first_call_rows(results)


def full_rows(results: Results, features: Path | None) -> None:
    for size in (1024, 1280):
        for n_steps in (320, 1000, 3000, 8000, 27_000, 108_000):
            rows = video(n_steps, size)
            peers = {"twin": n_steps <= 3000, "fixed": n_steps <= 3000, "slope": n_steps <= 8000}
            kts_rows(results, "KTS, video", rows, **peers)
            del rows
        memory_rows(results, 108_000, size)
    for kinds in ("static", "drift", "cuts", "static endless", "drift endless"):
        rows = video(27_000, 1024, kinds=kinds)
        kts_rows(results, f"KTS, only {kinds}", rows, twin=False, fixed=False, slope=False)
    for n_steps in (3000, 8000, 27_000):
        worst_case_rows(results, n_steps, 1024)
    if features:
        longest, together = real_features(features)
        kts_rows(results, "KTS, real, longest video", longest, twin=True, fixed=True, slope=True)
        kts_rows(results, "KTS, real, all videos as one", together, twin=False, fixed=False, slope=True)
    stream_rows(results, 27_000, 1024)
    knapsack_rows(results, "random", 100, 2000, peer=True, twin=True)
    knapsack_rows(results, "random", 2000, 32_400, peer=True)
    knapsack_rows(results, "correlated", 3000, 60_000, peer=True)
    knapsack_rows(results, "equal", 2000, 32_400, peer=True)
    knapsack_rows(results, "equal", 8000, 200_000, peer=False)
    small_knapsack_rows(results, 200)
    metric_rows(results, 20, 216_000, spread=True)
    metric_rows(results, 3, 216_000, spread=False)
    metric_twin_rows(results)
    first_call_rows(results)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of under two minutes, not for quoting")
    parser.add_argument("--features", type=Path, help="HDF5 file with real features, one group per video")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update; not with --quick")
    arguments = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, None if arguments.quick else arguments.out)
    warm_up()
    (quick_rows if arguments.quick else full_rows)(results, arguments.features)
    return 0


if __name__ == "__main__":
    sys.exit(main())
