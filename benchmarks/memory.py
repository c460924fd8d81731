"""How much memory does a long video take?

    python -m benchmarks.memory --out benchmarks/results/memory.json
    python -m benchmarks.memory --two-hours CLIP... --out benchmarks/results/two_hours.json

The first scores 10,000 steps, 83 minutes at two a second, with every architecture at random weights and D = 1024, and
compares the peak with what the export states. The second joins clips to a film of two hours, by copying their packets,
and has vsum-summarize make its summary. Every measured run is a process of its own; its peak is the kernel's count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.measure.process import Outcome, in_fresh_process
from benchmarks.measure.rows import Results
from vsum_runtime.runtime.cli.summarize import main as main_of_vsum_summarize

N_STEPS = 10_000
FEATURE_DIM = 1024
TWO_HOURS_S = 7200
PACKAGES = ("onnxruntime", "av", "numpy")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Memory of long videos.", epilog=__doc__)
    parser.add_argument("--two-hours", nargs="+", type=Path, metavar="CLIP", help="measure a film joined of these")
    parser.add_argument("--models", nargs="+", help="measure these architectures only")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    if args.two_hours:
        _long_film(args.two_hours, args.out)
    else:
        _long_features(args.models, args.out)
    return 0


def _long_features(names: list[str] | None, out: Path | None) -> None:
    import numpy as np
    import torch

    from vsum_runtime.export.in_blocks import in_blocks
    from vsum_runtime.export.memory import LONG_LENGTHS, measured, memory_bytes
    from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
    from vsum_runtime.training import models

    results = Results("python -m benchmarks.memory", (*PACKAGES, "torch"), out)
    for name in names or models.MODELS:
        torch.manual_seed(0)
        model = models.build(name, feature_dim=FEATURE_DIM).eval()
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "scorer.onnx"
            scorer_onnx(ScorerGraph(model, "none"), FEATURE_DIM, graph)
            import onnx

            lean = in_blocks(onnx.load(graph))
            if lean is not None:
                onnx.save(lean, graph)
            stated = memory_bytes(graph, FEATURE_DIM, LONG_LENGTHS if lean is not None else None)
            taken = measured(graph, FEATURE_DIM, (N_STEPS,))
        if stated is None or taken is None:
            raise SystemExit("the operating system does not tell a process its peak")
        size, note = f"T = {N_STEPS}", "in blocks" if lean is not None else ""
        at = float(np.polyval(stated[::-1], N_STEPS))
        results.add(name, size, "measured", [taken[0]], metric="memory", unit="B", note=note)
        results.add(name, size, "stated by the export", [at], metric="memory", unit="B")


def _long_film(clips: Sequence[Path], out: Path | None) -> None:
    results = Results("python -m benchmarks.memory --two-hours CLIP...", PACKAGES, out)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.ts"
        join(clips, film, TWO_HOURS_S)
        began = time.perf_counter()
        outcome = summarize(film, Path(folder) / "summary.mp4")
        took_s = time.perf_counter() - began
    size = f"two hours of {', '.join(clip.name for clip in clips)}"
    where = "vsum-summarize, exact film", size, "ours"
    results.add(*where, [took_s])
    results.add(*where, [outcome.processor_s], metric="processor time")
    if outcome.peak_bytes is not None:
        results.add(*where, [outcome.peak_bytes], metric="peak memory", unit="B")


def summarize(film: Path, out: Path, *options: str) -> Outcome:
    """Run vsum-summarize in a process of its own."""
    return in_fresh_process(run_vsum_summarize, str(film), "-o", str(out), *options)


def run_vsum_summarize(*arguments: str) -> None:
    if code := main_of_vsum_summarize(arguments):
        raise SystemExit(code)


def join(clips: Sequence[Path], film: Path, seconds: float) -> None:
    """Play clips (H.264, AAC) one after another, again and again, into an MPEG transport stream at least that long.

    Nothing is encoded: each clip brings its own size and rate, as recordings that were joined do.
    """
    import av

    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for number, clip in enumerate(clips):
            parts.append(Path(folder) / f"{number}.ts")
            with av.open(str(clip)) as source, av.open(str(parts[-1]), "w", format="mpegts") as part:
                streams: dict[int, Any] = {each.index: part.add_stream_from_template(each) for each in source.streams}
                for packet in source.demux():
                    if packet.size:
                        packet.stream = streams[packet.stream_index]
                        part.mux(packet)
        with av.open(str(parts[0])) as first, av.open(str(film), "w", format="mpegts") as joined:
            tracks = {each.type: joined.add_stream_from_template(each) for each in first.streams}
            at = Fraction(0)
            while at < seconds:
                for part_file in parts:
                    at = _append(joined, tracks, part_file, at)


def _append(joined: Any, tracks: dict[str, Any], part_file: Path, at: Fraction) -> Fraction:
    """Copy one part to a place in time, seconds; where it ends."""
    import av

    end = at
    with av.open(str(part_file)) as part:
        start = Fraction(part.start_time, av.time_base)
        for packet in part.demux():
            if not packet.size:
                continue
            shift = round((at - start) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            packet.stream = tracks[packet.stream.type]
            joined.mux(packet)
    return end


if __name__ == "__main__":
    raise SystemExit(main())
