"""What was measured of each model, as the table of docs/models.md."""

from __future__ import annotations

import json

from vsum_runtime.training.catalogue import MEASURED


def parity() -> str:
    """A line for each model of the record."""
    lines = [
        "| model | parameters | GFLOP at T = 320 | golden | ragged | ONNX |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in json.loads(MEASURED.read_text(encoding="utf-8")).items():
        golden = "no authors' code" if name == "nonlocal_ridge" else _short(row["golden"])
        cells = [f"`{name}`", f"{row['parameters']:,}", f"{row['gflop_at_320']:.2f}", golden, _short(row["ragged"])]
        lines.append(f"| {' | '.join([*cells, _short(row['onnx'])])} |")
    return "\n".join(lines)


def _short(difference: float | None) -> str:
    return "not measured" if difference is None else f"{difference:.1e}"
