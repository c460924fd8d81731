"""How long does a video take from file to summary, and how much memory, against its floors?

    python -m benchmarks.end_to_end VIDEO --quick
    python -m benchmarks.end_to_end VIDEO --out benchmarks/results/end_to_end.json

Floors, on all processors: decoding every frame and doing nothing with it; running the feature network over the sampled
frames with nothing else to do. Every way runs in a process of its own, after one run that is not counted; its peak
memory is the process's.
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

from benchmarks.kernels import ROOT
from benchmarks.rounds import row, save
from runtime.backends import open_session
from runtime.features import EFFICIENTNET_LITE0, preprocess
from runtime.machine import give_back_large_blocks
from runtime.pipeline import DEFAULT_BUNDLE, Summarizer

PACKAGES = ("onnxruntime", "av", "numpy", "numba")


def summarize(video: str) -> Callable[[], Any]:
    summarizer = Summarizer()
    return lambda: summarizer.summarize(video)


def summarize_and_write(video: str, cut: str) -> Callable[[], Any]:
    summarizer = Summarizer()

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            summarizer.summarize(video).write_video(Path(folder) / "film.mp4", cut=cut)

    return call


def decode_only(video: str) -> Callable[[], Any]:
    from runtime.video import decode, find_video, open_container

    def call() -> int:
        with open_container(video) as container:
            return sum(1 for _ in decode(container, find_video(container, video)))

    return call


def extract_only(video: str) -> Callable[[], Any]:
    from runtime.video import read_frames

    network = open_session(DEFAULT_BUNDLE / EFFICIENTNET_LITE0.network)
    with read_frames(video, EFFICIENTNET_LITE0) as reader:
        blocks = list(reader)
    return lambda: [network.run({"images": preprocess(block, EFFICIENTNET_LITE0)}) for block in blocks]


WAYS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "ours, summary": summarize,
    "floor: decode only": decode_only,
    "floor: network only": extract_only,
    "ours, summary and exact film": lambda video: summarize_and_write(video, "exact"),
    "ours, summary and copied film": lambda video: summarize_and_write(video, "copy"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="From a file to a summary.", epilog=__doc__)
    parser.add_argument("video")
    parser.add_argument("--quick", action="store_true", help="one run of ours and of the floors")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.way:
        print(json.dumps(_here(args.way, args.video, args.runs)))
        return 0
    ways = list(WAYS)[:3] if args.quick else list(WAYS)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 if args.quick else 2):  # in turn, so that a noisy machine is noisy for all
        for way in ways:
            runs = 1 if args.quick else 2
            command = [sys.executable, "-m", "benchmarks.end_to_end", args.video, "--way", way, "--runs", str(runs)]
            child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found = json.loads(child.stdout.splitlines()[-1])
            seconds[way] += found["seconds"]
            peaks[way].append(found["peak_bytes"] / 1e6)
            print(f"{way}: {min(found['seconds']):.2f} s, peak {peaks[way][-1]:.0f} MB", flush=True)
            measured = [way for way in ways if seconds[way]]
            rows = [row("whole path", Path(args.video).name, way, seconds[way]) for way in measured]
            rows += [row("peak memory", Path(args.video).name, way, peaks[way], "MB") for way in measured]
            save(args.out, "python -m benchmarks.end_to_end VIDEO", PACKAGES, rows)
    return 0


def _here(way: str, video: str, runs: int) -> dict[str, Any]:
    if way.startswith("ours"):  # as vsum-summarize does
        give_back_large_blocks()
    call = WAYS[way](video)
    call()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    peak_kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "peak_bytes": 1024 * int(peak_kib.split()[1])}


if __name__ == "__main__":
    raise SystemExit(main())
