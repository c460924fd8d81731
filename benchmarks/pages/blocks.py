"""THE TABLE OF BLOCKS: what stands between each pair of marks, and the code whose speed or result it shows.

To add a block: a line in `BLOCKS`, and a pair of marks with its name in a page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measure.rows import RESULTS, Row, read
from benchmarks.pages import accuracy, gpus, latency, models
from benchmarks.pages.origin import Age, ages, origins
from benchmarks.pages.tables import Cells, amount, pivot


@dataclass(frozen=True)
class Block:
    """A table or a sentence made of rows in ``benchmarks/results``."""

    results: str
    """The file's name without its ending, or a pattern of several."""
    code: tuple[str, ...]
    """Paths; where they changed after the commit of the rows, the page says so."""
    show: Callable[[Sequence[Row]], str]
    keep: Callable[[Row], bool] = lambda row: True
    """Which of the rows; all others of the file stand in another block."""
    shows_origin: bool = True


def block_text(name: str, age: Age) -> str:
    """The text of a block."""
    if name in OF_REPORTS:
        return OF_REPORTS[name]()
    block = BLOCKS[name]
    every = [row for path in sorted(RESULTS.glob(f"{block.results}.json")) for row in read(path)]
    rows = list(filter(block.keep, every))
    if not rows:
        return "Not measured yet."
    about = [*(origins(rows) if block.shows_origin else []), *ages(rows, block.code, age)]
    return "\n\n".join([block.show(rows), *about])


def _by_size(rows: Sequence[Row]) -> str:
    return pivot(rows, ["what", "size"], "implementation", more={"best peer / ours": latency.lead})


def _whole_path(rows: Sequence[Row]) -> str:
    ours = next(row for row in rows if row.implementation == "ours, summary")

    def ratio(cells: Cells) -> str:
        return "".join(f"{_median(row) / _median(ours):.2f}" for row in cells.values())

    return pivot(rows, ["implementation"], "metric", more={"ratio to ours": ratio}, notes=True)


def _cuts(rows: Sequence[Row]) -> str:
    exact = {row.size: row for row in rows if row.implementation == "exact" and row.metric == "processor time"}

    def ratio(cells: Cells) -> str:
        row = cells["processor time"]
        return f"{_median(row) / _median(exact[row.size]):.2f}"

    return pivot(rows, ["size", "implementation"], "metric", more={"processor time / that of exact": ratio})


def _kernels(rows: Sequence[Row]) -> str:
    ours = {(row.what, row.size): row for row in rows if row.implementation == "ours" and row.metric == "time"}

    def ratio(cells: Cells) -> str:
        row = cells.get("time")
        first = ours.get((row.what, row.size)) if row else None
        return "" if row is None or first is None or row is first else f"{_median(row) / _median(first):.3g}"

    lines = ["what", "size", "implementation"]
    return pivot(rows, lines, "metric", more={"time / that of ours": ratio}, notes=True)


def _int8(rows: Sequence[Row]) -> str:
    single = {row.what: row for row in rows if row.implementation == "fp32" and row.metric == "time"}

    def faster(cells: Cells) -> str:
        row = cells["time"]
        return "" if row.p50 is None else f"{_median(single[row.what]) / row.p50:.2f}"

    return pivot(rows, ["what", "implementation"], "metric", more={"times as fast as fp32": faster}, notes=True)


def _bundles(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.p50 is not None]
    ran = {row.implementation for row in measured}
    changed = [row for row in measured if row.metric == "same summaries" and row.note]
    lines = [pivot(measured, ["what", "size", "implementation"], "metric"), ""]
    lines += [f"**{row.what} on {row.implementation} changes the summary of {row.note}.**" for row in changed]
    lines += [f"- Not run: {row.implementation}: {row.note}" for row in rows if row.implementation not in ran]
    return "\n".join(lines).rstrip()


VIDEO_S = 60  # big_buck_bunny_60s.mp4


def _readme_speed(rows: Sequence[Row]) -> str:
    cells = {(row.implementation, row.metric): row for row in rows}

    def shown(implementation: str, metric: str) -> str:
        row = cells[implementation, metric]
        return amount(_median(row), row.unit)

    time, memory = (cells["ours, summary", metric].run for metric in ("time", "peak memory"))
    faster = VIDEO_S / _median(cells["ours, summary", "time"])
    text = (
        f"A {VIDEO_S} s video (640 x 360) is summarized in {shown('ours, summary', 'time')}, {faster:.0f} times real "
        f"time; decoding alone takes {shown('floor: decode only', 'time')} ({time.device}; {time.date}, commit "
        f"{time.commit}). Peak memory is {shown('ours, summary', 'peak memory')} ({memory.device}; {memory.date}, "
        f"commit {memory.commit})."
    )
    return textwrap.fill(text, 120)


def _median(row: Row) -> float:
    assert row.p50 is not None
    return row.p50


def _metrics(*lines: str, notes: bool = False) -> Callable[[Sequence[Row]], str]:
    return lambda rows: pivot(rows, lines, "metric", notes=notes)


def _implementations(*lines: str, notes: bool = False) -> Callable[[Sequence[Row]], str]:
    return lambda rows: pivot(rows, lines, "implementation", notes=notes)


def _is(metric: str) -> Callable[[Row], bool]:
    return lambda row: row.metric == metric


def _begins(what: str) -> Callable[[Row], bool]:
    return lambda row: row.what.startswith(what)


_SCORING = ("runtime/backends", "runtime/scorer.py", "runtime/calls.py", "export/onnx_from_torch.py", "training/models")
_SERVING = ("runtime/serve", *_SCORING)
_requests = _metrics("what", "implementation", notes=True)
_MEMORY = ("export/in_blocks.py", "export/memory.py", *_SCORING)

BLOCKS = {
    "readme-speed": Block("end_to_end", ("kernels", "runtime"), _readme_speed, shows_origin=False),
    "whole-path": Block("end_to_end", ("kernels", "runtime"), _whole_path, _is("time")),
    "whole-path-memory": Block("end_to_end", ("kernels", "runtime"), _whole_path, _is("peak memory")),
    "cold-start": Block("cold_start", ("kernels", "runtime"), _metrics("size", "implementation")),
    "cuts": Block("cuts", ("runtime/media",), _cuts),
    "scene-changes": Block(
        "scene_changes",
        ("runtime/media/scene_changes.py", "runtime/media/sparse.py"),
        _metrics("size", "implementation"),
    ),
    "kernels": Block("kernels", ("kernels",), _kernels),
    "latency-short": Block("latency", _SCORING, latency.short_table),
    "latency": Block("latency", _SCORING, lambda rows: f"{_by_size(rows)}\n\n{latency.verdict(rows)}"),
    "latency-epyc": Block("latency_epyc", _SCORING, lambda rows: f"{_by_size(rows)}\n\n{latency.verdict(rows)}"),
    "int8": Block("int8", ("export/quantized_onnx.py", *_SCORING), _int8),
    "throughput": Block("throughput", _SCORING, _by_size),
    "fairness": Block("fairness", _SCORING, _implementations("what", "size")),
    "memory": Block("memory", _MEMORY, _implementations("what", "size", notes=True)),
    "in-blocks": Block("in_blocks", _MEMORY, lambda rows: pivot(rows, ["implementation"], "size")),
    "two-hours": Block("two_hours", ("kernels", "runtime"), _metrics("size")),
    "serving-one-client": Block("serving", _SERVING, _requests, _begins("one client")),
    "serving-load": Block("serving", _SERVING, _requests, _begins("64 clients")),
    "serving-load-epyc": Block("serving_epyc", _SERVING, _requests),
    "serving-faults": Block("serving", _SERVING, _requests, _begins("faults")),
    "soak": Block("soak", ("runtime/serve",), lambda rows: pivot(rows, ["metric"], "size")),
    "fuzz": Block("fuzz", ("runtime",), _metrics("implementation", "size", notes=True)),
    "fuzz-http": Block("fuzz_http", ("runtime/serve",), lambda rows: pivot(rows, ["metric"], "size")),
    "gpu": Block("gpu_*", ("export", "training/cuda_graph.py", "training/models", "runtime/backends"), gpus.measured),
    "bundles": Block("bundles", ("export", "training/models", "runtime/backends"), _bundles),
    "trt-build": Block(
        "trt_build", ("export/engine_from_onnx.py", "training/models"), _metrics("what", "size", notes=True)
    ),
}

OF_REPORTS: dict[str, Callable[[], str]] = {
    "readme-results": accuracy.readme,
    "default-model": accuracy.default_model,
    "tvsum-partition": lambda: accuracy.tvsum("accuracy_tvsum_partition.json"),
    "tvsum-certh": lambda: accuracy.tvsum("accuracy_tvsum_certh.json"),
    "summe": accuracy.summe,
    "published": accuracy.published,
    "commands": accuracy.commands,
    "parity": models.parity,
    "fp16-islands": gpus.islands,
}
"""Blocks made of other files: reports of ``vsum-evaluate --json``, and records that the product reads itself."""
