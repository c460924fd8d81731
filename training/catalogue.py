"""The vsum-models door: a table of the models and of the checks that each has passed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.cli import door
from vsum_runtime.training.models import MODELS

MEASURED = Path(__file__).parent / "models" / "measured.json"
"""What ``python -m benchmarks.parity`` measured, model by model."""

CHECKS = {
    "golden": "outputs equal those of the authors' code",
    "losses": "losses and gradients do",
    "training": "a few epochs on real features improve its own objective; a stopped run ends in the same bits",
    "ragged": "a padded batch equals each video alone",
    "onnx": "the exported graph equals PyTorch",
}
TOLERANCE = 1e-5
"""Largest difference that counts as equal; against the authors' outputs, the tolerance that their file states."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-models",
        description="List the models: task, paper, size, cost, licence of the authors' code, checks passed.",
        example="vsum-models --json",
    )
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    return door.run(parser, _print, argv, extra="train")


def _print(args: argparse.Namespace) -> None:
    measured: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    records = {name: measured.get(name) or _stated(place) for name, place in MODELS.items()}
    rows = {name: row | {"checks": {check: verdict(row, check) for check in CHECKS}} for name, row in records.items()}
    print(json.dumps(rows, indent=1) if args.json else _table(rows))


def verdict(row: dict[str, Any], check: str) -> bool | None:
    """True or False; None where it was not measured."""
    value = row.get("golden_within_tolerance" if check == "golden" else check)
    return value if value is None or isinstance(value, bool) else value <= TOLERANCE


def _stated(place: str) -> dict[str, Any]:
    """The card of a model that has not been measured."""
    module, _, class_name = place.partition(":")
    card: dict[str, Any] = getattr(import_module(module), class_name).card._asdict()
    return card | {"parameters": None, "gflop_at_320": None}


def _table(rows: dict[str, dict[str, Any]]) -> str:
    marks = {True: "yes", False: "NO", None: "-"}
    lines = [["name", "task", "paper", "year", "parameters", "GFLOP", *CHECKS, "licence of the authors' code"]]
    for name, row in rows.items():
        size = (
            ["-", "-"]
            if row["parameters"] is None
            else [f"{row['parameters'] / 1e6:.2f} M", f"{row['gflop_at_320']:.2f}"]
        )
        checks = [marks[passed] for passed in row["checks"].values()]
        lines.append([name, row["task"], row["paper"], str(row["year"]), *size, *checks, row["licence"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    notes = [f"{check}: {meaning}" for check, meaning in CHECKS.items()]
    return "\n".join(
        [*printed, "", "GFLOP: one video of 320 steps. -: not measured, or nothing to compare with.", *notes]
    )


if __name__ == "__main__":
    sys.exit(main())
