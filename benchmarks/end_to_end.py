"""How long does a video take from file to summary, and how much memory, against its floors?

    python -m benchmarks.end_to_end VIDEO --quick
    python -m benchmarks.end_to_end VIDEO --out benchmarks/results/end_to_end.json

The field's script reads with OpenCV and runs EfficientNet-Lite0 in PyTorch on one frame at a time, finds shots with
NumPy (every number of cuts up to one per row), scores with the default model's architecture in PyTorch and packs shots
by a table: once as published demos do, on every frame, and once on two frames a second. Its note says where its time
goes. Floors, on all processors: decoding every frame and doing nothing with it; running the feature network over the
sampled frames, as ours does, with nothing else to do. Every way runs in a process of its own, after one run that is not
counted (the script on every frame: none); its peak memory is the process's.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.process import in_fresh_process
from benchmarks.measure.rows import Results
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.extractor import extract
from vsum_runtime.runtime.machine import give_back_large_blocks
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE, Summarizer
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

COMMAND = "python -m benchmarks.end_to_end VIDEO"
PACKAGES = ("onnxruntime", "openvino", "av", "numpy", "numba", "torch", "opencv-python-headless")


def summarize(video: str, backend: str = "auto") -> Callable[[], Any]:
    summarizer = Summarizer(backend=backend)
    return lambda: summarizer.summarize(video)


def summarize_and_write(video: str, cut: str) -> Callable[[], Any]:
    summarizer = Summarizer()

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            summarizer.summarize(video).write_video(Path(folder) / "film.mp4", cut=cut)

    return call


def decode_only(video: str) -> Callable[[], Any]:
    from vsum_runtime.runtime.media.decode import decode, find_video, open_container

    def call() -> int:
        with open_container(video) as container:
            return sum(1 for _ in decode(container, find_video(container, video)))

    return call


def extract_only(video: str) -> Callable[[], Any]:
    from vsum_runtime.runtime.media.frames import read_frames

    network = open_session(DEFAULT_BUNDLE / EFFICIENTNET_LITE0.network, side_by_side=True)
    with read_frames(video, EFFICIENTNET_LITE0, block_size=1) as reader:
        blocks = list(reader)

    def run(images: Any) -> Any:
        return network.run({"images": images})[0]

    return lambda: extract(blocks, EFFICIENTNET_LITE0, run, n_callers=network.n_callers)


def field_script(video: str, every_frame: bool) -> Callable[[], dict[str, float]]:
    """The script; a call gives the seconds of its stages."""
    import cv2
    import torch

    from tests.reference import knapsack, kts, shot_scores
    from vsum_runtime.training.backbones import load_backbone
    from vsum_runtime.training.models import build

    network, recipe = load_backbone("efficientnet_lite0")
    scorer = build("nonlocal_ridge", feature_dim=recipe.feature_dim).eval()

    @torch.inference_mode()
    def features_of(frame: np.ndarray) -> np.ndarray:
        picture = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (recipe.width, recipe.height))
        tensor = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - recipe.mean[0]) / recipe.scale[0]
        return network(tensor)[0].numpy()

    def call() -> dict[str, float]:
        took = dict.fromkeys(("decoding", "features", "shots", "scores and knapsack"), 0.0)
        clock = time.perf_counter
        began = clock()
        capture = cv2.VideoCapture(video)
        stride = 1 if every_frame else round(capture.get(cv2.CAP_PROP_FPS) / 2)
        rows, picks, n_frames = [], [], 0
        while True:
            start = clock()
            more, frame = capture.read()
            took["decoding"] += clock() - start
            if not more:
                break
            if n_frames % stride == 0:
                picks.append(n_frames)
                rows.append(features_of(frame))
            n_frames += 1
        took["features"] = clock() - began - took["decoding"]
        began = clock()
        features = np.stack(rows)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        edges = [0, *(picks[cut] for cut in kts.change_points(unit)), n_frames]
        shots = list(itertools.pairwise(edges))
        took["shots"] = clock() - began
        began = clock()
        with torch.inference_mode():
            scores = scorer(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0].numpy()
        values = shot_scores.pool(scores, picks, shots, n_frames)
        knapsack.pack(values, [end - start for start, end in shots], int(0.15 * n_frames))
        took["scores and knapsack"] = clock() - began
        return took

    return call


WAYS: dict[str, Callable[[str], Callable[[], Any]]] = {
    "ours, summary": summarize,
    "ours, summary, backend openvino": lambda video: summarize(video, "openvino"),
    "floor: decode only": decode_only,
    "floor: network only": extract_only,
    "ours, summary and exact film": lambda video: summarize_and_write(video, "exact"),
    "ours, summary and copied film": lambda video: summarize_and_write(video, "copy"),
    "field's script, sampled frames": lambda video: field_script(video, every_frame=False),
    "field's script, all frames": lambda video: field_script(video, every_frame=True),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="From a file to a summary.", epilog=__doc__)
    parser.add_argument("video")
    parser.add_argument("--quick", action="store_true", help="one run of ours and of the floors; writes nothing")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS, metavar="WAY", help="; ".join(WAYS))
    parser.add_argument("--runs", type=int, default=2, help="counted runs of every process (1 of the script)")
    parser.add_argument("--memory", action="store_true", help="peak memory only, which other work hardly changes")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    if not Path(args.video).is_file():
        parser.error(f"{args.video}: expected a video file, found none there")
    ways = ["ours, summary", "floor: decode only", "floor: network only"] if args.quick else args.ways
    results = Results(COMMAND, PACKAGES, None if args.quick else args.out)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 if args.quick else 2):  # in turn, so that a noisy machine is noisy for all
        for way in ways:
            if seconds[way] and "all frames" in way:
                continue
            runs = 1 if args.quick or "script" in way else args.runs
            outcome = in_fresh_process(run_way, way, str(Path(args.video).resolve()), runs)
            seconds[way] += outcome.result["seconds"]
            where = "whole path", Path(args.video).name, way
            if not args.memory:
                results.add(*where, seconds[way], note=outcome.result["note"])
            if outcome.peak_bytes is not None:
                peaks[way].append(outcome.peak_bytes)
                results.add(*where, peaks[way], metric="peak memory", unit="B")
    return 0


def run_way(way: str, video: str, runs: int) -> dict[str, Any]:
    """Seconds of some runs, after one that is not counted, and how the last was spent."""
    if way.startswith("ours"):  # as vsum-summarize does
        give_back_large_blocks()
    call = WAYS[way](video)
    if "all frames" not in way:  # a minute; what warms up is small beside it
        call()
    seconds, note = [], ""
    for _ in range(runs):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
        if isinstance(result, dict):
            note = ", ".join(f"{stage} {took:.2f} s" for stage, took in result.items())
    return {"seconds": seconds, "note": note}


if __name__ == "__main__":
    raise SystemExit(main())
