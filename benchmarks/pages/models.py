"""What was measured of each model, as the table of docs/models.md."""

from __future__ import annotations

import json
from typing import Any

from vsum_runtime.training.catalogue import MEASURED


def parity() -> str:
    """A line for each model of the record."""
    lines = [
        "| model | parameters | GFLOP at T = 320 | golden | ragged | ONNX |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    for name, row in measured.items():
        golden = "no authors' code" if name == "nonlocal_ridge" else _short(row["golden"])
        cells = [f"`{name}`", f"{row['parameters']:,}", f"{row['gflop_at_320']:.2f}", golden, _short(row["ragged"])]
        lines.append(f"| {' | '.join([*cells, _short(row['onnx'])])} |")
    return "\n".join([*lines, "", *dict.fromkeys(_origin(row) for row in measured.values())])


def _origin(row: dict[str, Any]) -> str:
    run = row.get("run") or {"versions": row["versions"], "commit": None, "date": None}  # before runs were recorded
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    when = f"{run['date']}, commit {run['commit']}" if run["commit"] else "the commit was not recorded"
    return f"`python -m benchmarks.parity`: {when}; {versions}."


def _short(difference: float | None) -> str:
    return "not measured" if difference is None else f"{difference:.1e}"
