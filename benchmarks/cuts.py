"""What does each cut of a summary cost?

    python -m benchmarks.cuts VIDEO... --out benchmarks/results/cuts.json

A summary of 15 % in `N_SHOTS` shots, spread evenly over the video and beginning where no group of pictures does, is
written by each cut in turn, every time in a process of its own. Times are those of the whole process, its start
included; processor time is little moved by what else a machine does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure.process import in_fresh_process
from benchmarks.measure.rows import Results
from vsum_runtime.runtime.media.decode import decode, find_video, open_container
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.film_copy import copy_summary
from vsum_runtime.runtime.media.film_smart import smart_summary
from vsum_runtime.runtime.media.rational import time_base

COMMAND = "python -m benchmarks.cuts VIDEO..."
PACKAGES = ("av", "numpy")
N_SHOTS = 18
SHARE = 0.15
CUTS = ("exact", "smart", "copy")


def save_frame_times(video: str, out: str) -> None:
    """Save [N + 1] when each picture is shown, and the end of the last one; all are decoded."""
    with open_container(video) as container:
        stream = find_video(container, video)
        tick_s = float(time_base(stream))
        ticks = [(pts, duration) for _, pts, duration in decode(container, stream)]
    np.save(out, tick_s * np.array([*(pts for pts, _ in ticks), sum(ticks[-1])]))


def write(video: str, times: str, cut: str, out: str) -> None:
    times_s = np.load(times)
    n_pictures = len(times_s) - 1
    starts = ((np.arange(N_SHOTS) + 0.37) * n_pictures / N_SHOTS).astype(int)
    shots = np.stack([starts, starts + round(n_pictures * SHARE / N_SHOTS)], axis=1)
    if cut == "exact":
        write_summary(video, shots, out, frame_times_s=times_s)
    elif cut == "smart":
        smart_summary(video, shots, times_s, out)
    else:
        copy_summary(video, shots, times_s, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What each cut of a summary costs.", epilog=__doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="H.264, else smart is refused")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, args.out)
    for video in args.videos:
        measured: dict[tuple[str, str], list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            source, times, film = str(video.resolve()), f"{folder}/times.npy", f"{folder}/film.mp4"
            in_fresh_process(save_frame_times, source, times)
            for cut in CUTS * args.rounds:
                began = time.perf_counter()
                outcome = in_fresh_process(write, source, times, cut, film)
                measured.setdefault((cut, "time"), []).append(time.perf_counter() - began)
                measured.setdefault((cut, "processor time"), []).append(outcome.processor_s)
                if outcome.peak_bytes is not None:
                    measured.setdefault((cut, "peak memory"), []).append(outcome.peak_bytes)
        for (cut, metric), values in measured.items():
            results.add("cut", video.name, cut, values, metric=metric, unit="B" if metric == "peak memory" else "s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
