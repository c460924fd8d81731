"""Measuring side by side: every implementation in turn, round after round, so that a noisy machine is noisy for all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels import machine
from vsum_runtime.runtime.atomic import replacing

_REST_S = 0.06


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    size: str
    implementation: str
    unit: str
    p20: float
    p50: float
    p80: float
    runs: int
    note: str = ""


def in_turn(calls: Mapping[str, Callable[[], Any]], *, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Seconds of single calls, in `rounds` turns of at least `least_s` each; a first call of each is not counted.

    Before a turn the threads of the one before come to rest: some libraries' threads spin for 40 ms after a call.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_REST_S)
            began = time.perf_counter()
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                seconds[name].append(now - start)
                if now - began >= least_s:
                    break
    return seconds


def row(what: str, size: str, implementation: str, values: Sequence[float], unit: str = "s", note: str = "") -> Row:
    p20, p50, p80 = (float(np.quantile(values, q)) for q in (0.2, 0.5, 0.8))
    return Row(what, size, implementation, unit, p20, p50, p80, len(values), note)


def kept_rows(out: Path | None, keeps: Callable[[Row], bool]) -> list[Row]:
    """Rows that an earlier run wrote to `out`, where this one does not measure them again."""
    if out is None or not out.exists():
        return []
    rows = [Row(**plain) for plain in json.loads(out.read_text(encoding="utf-8"))["rows"]]
    return [old for old in rows if keeps(old)]


def save(out: Path | None, command: str, packages: Sequence[str], rows: Sequence[Row]) -> None:
    """Write all rows so far; called after every block, so that an interrupted run keeps what it measured."""
    if out is None:
        return
    whole = {"command": command, **machine(packages), "rows": [asdict(one) for one in rows]}
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
