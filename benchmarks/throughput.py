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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels import ROOT
from benchmarks.latency import DIM, N_THREADS, OPENVINO_OPTIONS, exported, fresh, naive_session
from benchmarks.rounds import in_turn, kept_rows, row, save
from vsum_runtime.export.convert import batch_tokens
from vsum_runtime.runtime.backends import absences, open_session
from vsum_runtime.runtime.calls import plan_batches, score
from vsum_runtime.training.models import MODELS

PACKAGES = ("torch", "onnxruntime", "openvino", "numpy")
STEPS = ROOT / "benchmarks" / "gpu" / "tvsum_steps.json"
SIZE = "50 videos of TVSum"
_BATCH_STEPS = 4096


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time to score many videos.", epilog=__doc__)
    parser.add_argument("--models", nargs="*", default=sorted(MODELS), choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--graphs", type=Path, help="folder of exported graphs (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="five videos, one round")
    parser.add_argument("--fairness", action="store_true", help="one process against two at once")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(N_THREADS)
    lengths = json.loads(STEPS.read_text(encoding="utf-8"))["steps"]
    lengths = lengths[:5] if args.quick else lengths
    order = np.random.default_rng(0).permutation(len(lengths))  # as they come in a data set, not sorted
    videos = [np.random.default_rng(i).random((lengths[i], DIM), dtype=np.float32) / 18 for i in order]
    with tempfile.TemporaryDirectory() as folder:
        graphs = args.graphs or Path(folder)
        graphs.mkdir(parents=True, exist_ok=True)
        if args.worker:
            return _work(exported(args.models[0], graphs), videos)
        command = "python -m benchmarks.throughput" + (" --fairness" if args.fairness else "")
        rows = kept_rows(args.out, lambda old: old.what not in args.models)
        for name in args.models:
            if args.fairness:
                seconds = _side_by_side(name, graphs, args.rounds, args.quick)
            else:
                seconds = in_turn(ways(name, graphs, videos), rounds=1 if args.quick else args.rounds, least_s=0.0)
            found = [row(name, SIZE, who, values) for who, values in seconds.items()]
            print(
                name, *(f"{r.implementation}: {len(videos) / r.p50:.1f} videos/s" for r in found), sep="; ", flush=True
            )
            rows = sorted([*rows, *found], key=lambda r: r.what)
            save(None if args.quick else args.out, command, PACKAGES, rows)
    return 0


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


def _side_by_side(name: str, graphs: Path, rounds: int, quick: bool) -> dict[str, list[float]]:
    exported(name, graphs)
    command = [sys.executable, "-m", "benchmarks.throughput", "--worker", "--models", name, "--graphs", str(graphs)]
    command += ["--quick"] * quick
    seconds: dict[str, list[float]] = {"ours, one process": [], "each of two processes": []}
    for _ in range(rounds):
        for who, n_processes in zip(seconds, (1, 2), strict=True):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(n_processes)]  # type: ignore[call-overload]
            for worker in workers:
                worker.stdout.readline()  # it is ready
            for worker in workers:
                worker.stdin.write("go\n")
                worker.stdin.flush()
            seconds[who] += [float(worker.communicate()[0]) for worker in workers]
    return seconds


def _work(graph: Path, videos: list[np.ndarray]) -> int:
    session = open_session(graph, "ort-cpu", n_threads=N_THREADS)
    score(session, videos[:4])
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    score(session, videos)
    print(time.perf_counter() - began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
