"""How much memory does a long video take?

    python -m benchmarks.memory --out benchmarks/results/memory.json
    python -m benchmarks.memory --two-hours CLIP... --out benchmarks/results/two_hours.json

The first scores 10,000 steps, 83 minutes at two a second, with every architecture at random weights and D = 1024, and
compares the peak with what the export states. The second joins clips to a film of two hours, by copying their packets,
and has vsum-summarize make its summary. Every measured run is a process of its own; its peak is the kernel's count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.kernels import ROOT
from benchmarks.rounds import Row, kept_rows, row, save

N_STEPS = 10_000
FEATURE_DIM = 1024
TWO_HOURS_S = 7200
PACKAGES = ("onnxruntime", "av", "numpy")

_CHILD = """
import sys
from vsum_runtime.runtime.cli.summarize import main
code = main(sys.argv[1:])
print(1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]))
sys.exit(code)
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Memory of long videos.", epilog=__doc__)
    parser.add_argument("--two-hours", nargs="+", type=Path, metavar="CLIP", help="measure a film joined of these")
    parser.add_argument("--models", nargs="+", help="measure these architectures only")
    parser.add_argument("--out", type=Path, help="rows of other architectures that it holds stay")
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

    measured_now = [f"{name}, T = {N_STEPS}" for name in names or models.MODELS]
    rows: list[Row] = kept_rows(out, lambda old: old.size not in measured_now)
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
        size = f"{name}, T = {N_STEPS}"
        at = float(np.polyval(stated[::-1], N_STEPS))
        rows += [
            row("memory of scoring", size, "ours, in blocks" if lean is not None else "ours", [taken[0] / 1e6], "MB"),
            row("memory of scoring", size, "stated beforehand", [at / 1e6], "MB"),
        ]
        print(f"{size}: {taken[0] / 1e6:.0f} MB, stated {at / 1e6:.0f} MB", flush=True)
        save(out, "python -m benchmarks.memory", (*PACKAGES, "torch"), rows)


def _long_film(clips: Sequence[Path], out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        film, summary = Path(folder) / "film.ts", Path(folder) / "summary.mp4"
        join(clips, film, TWO_HOURS_S)
        began, busy = time.perf_counter(), os.times()
        peak = summarize(film, summary)
        took_s, after = time.perf_counter() - began, os.times()
        processor_s = after.children_user + after.children_system - busy.children_user - busy.children_system
    size = f"two hours of {', '.join(clip.name for clip in clips)}"
    rows = [
        row("vsum-summarize, exact film: peak memory", size, "ours", [peak / 1e6], "MB"),
        row("vsum-summarize, exact film: time", size, "ours", [took_s]),
        row("vsum-summarize, exact film: processor time", size, "ours", [processor_s]),
    ]
    print(f"{peak / 1e6:.0f} MB, {took_s:.0f} s", flush=True)
    save(out, "python -m benchmarks.memory --two-hours CLIP...", PACKAGES, rows)


def summarize(film: Path, out: Path, *options: str) -> int:
    """Run vsum-summarize in a process of its own; its peak of memory in bytes."""
    command = [sys.executable, "-c", _CHILD, str(film), "-o", str(out), *options]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"vsum-summarize failed: {child.stderr[-2000:]}")
    return int(child.stdout.splitlines()[-1])


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
