"""How long does scoring the 50 videos of TVSum take, against other ways to run the same network?

    python -m benchmarks.throughput --quick
    python -m benchmarks.throughput --graphs build/graphs --out benchmarks/results/throughput.json [--models NAME ...]
    python -m benchmarks.throughput --graphs build/graphs --out benchmarks/results/fairness.json --fairness

The lengths are the real ones (two steps a second), the features random, D = 1024; all on two threads. Ours is what
`Summarizer.score` runs, on its default CPU backend and on OpenVINO. Peers: PyTorch in eager mode, one video after the
other and in padded batches of like length (up to 4096 padded steps); ONNX Runtime with its default options and OpenVINO
(fp32, for latency, any length), both called in a loop on an export without our folding of layers.

--fairness: seconds for the 50 videos by one process, and by each of two that start together: twice as long is fair.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency import DIM, N_THREADS, OPENVINO_OPTIONS, exported, fresh, naive_session
from benchmarks.measure.process import in_fresh_process
from benchmarks.measure.rows import ROOT, Results
from benchmarks.measure.turns import in_turn
from vsum_runtime.export.convert import batch_tokens
from vsum_runtime.runtime.backends import absences, open_session
from vsum_runtime.runtime.calls import plan_batches, score
from vsum_runtime.training.models import MODELS

PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")
STEPS = ROOT / "benchmarks" / "gpu" / "tvsum_steps.json"
SIZE = "50 videos of TVSum"
_BATCH_STEPS = 4096
READY_S = 20.0
"""Until processes that score side by side must have opened their sessions."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time to score many videos.", epilog=__doc__)
    parser.add_argument("--models", nargs="*", default=sorted(MODELS), choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--graphs", type=Path, help="folder of exported graphs (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="five videos, one round; writes nothing")
    parser.add_argument("--fairness", action="store_true", help="one process against two at once")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    torch.set_num_threads(N_THREADS)
    n_videos = 5 if args.quick else None
    rounds = 1 if args.quick else args.rounds
    command = "python -m benchmarks.throughput" + (" --fairness" if args.fairness else "")
    results = Results(command, PACKAGES, None if args.quick else args.out)
    with tempfile.TemporaryDirectory() as folder:
        graphs = args.graphs or Path(folder)
        graphs.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            if args.fairness:
                seconds = _side_by_side(exported(name, graphs).resolve(), n_videos, rounds)
            else:
                seconds = in_turn(ways(name, graphs, tvsum_videos(n_videos)), rounds=rounds, least_s=0.0)
            for who, values in seconds.items():
                results.add(name, SIZE, who, values)
    return 0


def tvsum_videos(n_videos: int | None) -> list[np.ndarray]:
    """Random features of TVSum's lengths, in an order that is not sorted, as in a data set."""
    lengths = json.loads(STEPS.read_text(encoding="utf-8"))["steps"][:n_videos]
    order = np.random.default_rng(0).permutation(len(lengths))
    return [np.random.default_rng(i).random((lengths[i], DIM), dtype=np.float32) / 18 for i in order]


def ways(name: str, graphs: Path, videos: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """All ways to score the videos, by name."""
    graph, plain, model = exported(name, graphs), exported(name, graphs, fold=False), fresh(name)
    decoder = getattr(model, "decoder", None)
    naive = naive_session(plain)
    ours = open_session(graph, "ort-cpu", n_threads=N_THREADS)
    ours.batch_tokens = batch_tokens(graph)

    def eager(calls: list[list[int]]) -> None:
        with torch.inference_mode():
            for call in calls:
                lengths = torch.tensor([len(videos[i]) for i in call])
                rows = [torch.from_numpy(videos[i]) for i in call]
                model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)

    alone = [[i] for i in range(len(videos))]
    batches = plan_batches([len(rows) for rows in videos], _BATCH_STEPS)
    inputs = [{"features": rows[None], "lengths": np.array([len(rows)])} for rows in videos]
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: score(ours, videos, decoder),
        "torch eager, one by one": lambda: eager(alone),
        "torch eager, padded batches": lambda: eager(batches),
        "ONNX Runtime, default options": lambda: [naive.run(None, one) for one in inputs],
    }
    if absences()["openvino"] is None:
        import openvino

        other = open_session(graph, "openvino", n_threads=N_THREADS)
        other.batch_tokens = batch_tokens(graph)
        compiled = openvino.Core().compile_model(str(plain), "CPU", OPENVINO_OPTIONS)
        calls["ours, backend openvino"] = lambda: score(other, videos, decoder)
        calls["OpenVINO fp32"] = lambda: [compiled(one) for one in inputs]
    return calls


def _side_by_side(graph: Path, n_videos: int | None, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"ours, one process": [], "each of two processes": []}
    for _ in range(rounds):
        for who, n_processes in zip(seconds, (1, 2), strict=True):
            begin_at = time.time() + READY_S
            with ThreadPoolExecutor(n_processes) as pool:
                call = (score_at, str(graph), n_videos, begin_at)
                outcomes = [pool.submit(in_fresh_process, *call) for _ in range(n_processes)]
                seconds[who] += [outcome.result().result for outcome in outcomes]
    return seconds


def score_at(graph: str, n_videos: int | None, begin_at: float) -> float:
    """Seconds of scoring all videos, from a time (seconds since the epoch) at which another process begins too."""
    videos = tvsum_videos(n_videos)
    session = open_session(Path(graph), "ort-cpu", n_threads=N_THREADS)
    score(session, videos[:4])
    if time.time() > begin_at:
        raise RuntimeError(f"expected to be ready within {READY_S} s; raise READY_S on this machine")
    time.sleep(begin_at - time.time())
    began = time.perf_counter()
    score(session, videos)
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
