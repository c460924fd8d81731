"""Row: one measurement, with the run that made it. Every file in ``benchmarks/results`` is a list of rows.

    {"rows": [{"what": ..., "p50": ..., "run": {"commit": ..., ...}}, ...]}     one row to a line

Rows are saved as soon as they are measured. A row replaces the row of the same thing that the file holds; all others
stay, with the commit, date and machine of their own run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from vsum_runtime.runtime.atomic import replacing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Run:
    """One run of a benchmark."""

    command: str
    date: str
    """UTC, as 2026-12-01."""
    commit: str | None
    """Abbreviated, with ``-dirty`` where the checkout had changes; None: not known."""
    device: str
    load_before: float | None
    """Load average over the minute before the run; None where the system has none."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One measurement: quantiles over repeated runs, or one value three times."""

    what: str
    size: str
    implementation: str
    metric: str
    unit: str
    """s, B (bytes), a rate such as videos/s, or "" for plain numbers, shares among them."""
    p20: float | None
    p50: float | None
    """None: could not be measured, for the reason in `note`."""
    p80: float | None
    runs: int
    note: str
    run: Run

    @property
    def key(self) -> Key:
        return self.what, self.size, self.implementation, self.metric


class Results:
    """The rows of one run: printed, and on disk as soon as they are measured.

    To be made before anything is measured, as it notes the load. Without `out` rows are printed only; `device` is what
    is measured where that is not the processor.
    """

    def __init__(
        self, command: str, packages: Sequence[str], out: Path | None = None, *, device: str | None = None
    ) -> None:
        self.run = this_run(command, packages, device)
        self._rows: dict[Key, Row] = {}
        self._out = out
        self._lines = {} if out is None else {row.key: _line(row) for row in read(out)}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def add(
        self,
        what: str,
        size: str,
        implementation: str,
        values: Sequence[float],
        *,
        metric: str = "time",
        unit: str = "s",
        note: str = "",
    ) -> Row:
        """Add the row of these values, in the place of one with the same key; no values: could not be measured."""
        p20, p50, p80 = (float(np.quantile(values, q)) if len(values) else None for q in (0.2, 0.5, 0.8))
        row = Row(what, size, implementation, metric, unit, p20, p50, p80, len(values), note, self.run)
        value = "-" if row.p50 is None else f"{row.p50:.4g} {unit}".rstrip()
        print("; ".join(filter(None, [*row.key, value, note])), file=sys.stderr, flush=True)
        self._rows[row.key] = row
        if self._out is not None:
            self._lines[row.key] = _line(row)
            _write(self._out, self._lines.values())
        return row


def this_run(command: str, packages: Sequence[str], device: str | None = None) -> Run:
    """This run, beginning now."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return Run(
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        commit=os.environ.get("VSUM_COMMIT") or _commit(),  # the variable is for a copy without its history
        device=device or f"{_processor()}, {os.cpu_count()} cores",
        load_before=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        versions=versions,
    )


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    plain = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [Row(**{**one, "run": Run(**one["run"])}) for one in plain]


def write(path: Path, rows: Iterable[Row]) -> None:
    _write(path, map(_line, rows))


def _line(row: Row) -> str:
    return json.dumps(asdict(row), ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text('{"rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _commit() -> str | None:
    if not shutil.which("git"):
        return None
    head = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    if head.returncode:
        return None
    code = [".", ":(exclude)benchmarks/results", ":(exclude)docs", ":(exclude)*.md"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *code], cwd=ROOT).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")
