"""Rows measured on GPUs, a section for each card; and the record of the parts of a model that stay in float32."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.measure.rows import Row
from benchmarks.pages.tables import Cells, pivot
from vsum_runtime.export.half_precision import ISLANDS
from vsum_runtime.runtime.errors import InputError

REQUEST, CEILINGS = "request", "ceilings"  # of benchmarks.gpu.bench, which imports torch
BASELINE = "torch eager fp32"


def measured(rows: Sequence[Row]) -> str:
    """One section for each card; all rows, the losing ones too.

    Raises
    ------
    InputError   a row that no GPU made
    """
    if any(row.run.device == "cpu" for row in rows):
        raise InputError("expected rows measured on a GPU, got rows of the rehearsal on the CPU")
    cards = dict.fromkeys(row.run.device for row in rows)
    return "\n\n".join(f"### {card}\n\n{_section([r for r in rows if r.run.device == card])}" for card in cards)


def _section(rows: Sequence[Row]) -> str:
    ceilings = [row for row in rows if row.what == CEILINGS]
    of_models = [row for row in rows if row.what != CEILINGS]
    failed = {
        (row.what, row.size, row.implementation) for row in of_models if row.metric == REQUEST and row.p50 is None
    }
    shown = [row for row in of_models if (row.what, row.size, row.implementation) not in failed]
    baseline = {
        (row.what, row.size): row.p50 for row in shown if (row.implementation, row.metric) == (BASELINE, REQUEST)
    }

    def faster(cells: Cells) -> str:
        request = cells[REQUEST]
        first = baseline.get((request.what, request.size))
        return "" if first is None or request.p50 is None else f"{first / request.p50:.2f}"

    shown.sort(key=lambda row: (row.what, _tokens(row.size), row.size))
    more = {f"times as fast as {BASELINE}": faster}
    lines = [pivot(ceilings, ["implementation"], "metric", notes=True), ""]
    lines += [pivot(shown, ["what", "size", "implementation"], "metric", more=more)]
    missing = Counter((row.implementation, row.note) for row in of_models if row.metric == REQUEST and row.p50 is None)
    if missing:
        lines += ["", "Not measured:", ""]
        lines += [f"- {who}, {count} rows: {why}" for (who, why), count in sorted(missing.items())]
    return "\n".join(lines)


def _tokens(size: str) -> float:
    """Steps of a regular batch; ragged ones go last."""
    first, _, second = size.partition(" x ")
    return float(first) * float(second) if second else float("inf")


def islands() -> str:
    """A line per architecture; what its scores lose with its parts in float32, and would lose without."""
    records = json.loads(ISLANDS.read_text(encoding="utf-8"))
    lines = [
        "| model | weights | in float32 | scores off by | tau | same summaries | all in half: off by | summaries |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, record in records["architectures"].items():
        kept = ", ".join(f"`{island}`" for island in record["islands"]) or "nothing"
        with_islands, bare = record["measured"], record["without_islands"]
        without = " | " if bare is None else bare.get("error") or f"{bare['max_abs_difference']:.1e} | {_same(bare)}"
        lines.append(
            f"| {name} | {record['weights'].partition(',')[0]} | {kept} ({len(record['islands'])} of {record['of']}) "
            f"| {with_islands['max_abs_difference']:.1e} | {with_islands['min_kendall_tau']:.3f} "
            f"| {_same(with_islands)} | {without} |"
        )
    return "\n".join([*lines, "", f"Made by `{records['command']}`."])


def _same(measured: dict[str, Any]) -> str:
    return f"{measured['same_summaries']} of {measured['videos']}"
