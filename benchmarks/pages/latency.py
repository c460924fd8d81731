"""The latency of all models: how the implementations compare, in a line, in a sentence and in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.rows import Row
from benchmarks.pages.tables import Cells

OURS, FLOOR, TORCH, OPENVINO = "ours", "floor", "torch", "OpenVINO"


def lead(cells: Cells) -> str:
    """The time of the fastest peer, over that of the faster of our backends."""
    return f"{_least(cells, but=(OURS, FLOOR)) / _least(cells, OURS):.2f}"


def verdict(rows: Sequence[Row]) -> str:
    """How many lines are faster than the peers, and near the floor."""
    lines = _lines(rows).values()

    def count(ours: Sequence[float]) -> str:
        faster = [_least(cells, TORCH) >= 1.3 * mine for cells, mine in zip(lines, ours, strict=True)]
        # A line faster than its floor had a poor yardstick, and does not count.
        near = [_least(c, FLOOR) <= mine <= 1.25 * _least(c, FLOOR) for c, mine in zip(lines, ours, strict=True)]
        ahead = [mine <= _least(cells, OPENVINO) for cells, mine in zip(lines, ours, strict=True)]
        return (
            f"{sum(faster)} are at least 1.3 times as fast as the better of torch eager and torch.compile, {sum(near)} "
            f"are within 1.25 times the floor, and {sum(ahead)} are no slower than OpenVINO"
        )

    default = [_median(cells[OURS]) for cells in lines]
    best = [_least(cells, OURS) for cells in lines]
    return f"With the default backend, of {len(lines)} lines, {count(default)}. With the better of ours, {count(best)}."


def short_table(rows: Sequence[Row]) -> str:
    """A line per model: ours with the default backend, then how many times as long PyTorch and OpenVINO take.

    >>> from benchmarks.measure.rows import Run
    >>> run = Run("x", "2026-12-01", "c", "d", None, {})
    >>> times = {"ours": 0.002, "torch eager": 0.003, "OpenVINO fp32, fixed shape": 0.001}
    >>> print(short_table([Row("m", "T = 1", who, "time", "s", t, t, t, 1, "", run) for who, t in times.items()]))
    | model | T = 1 |
    | --- | ---: |
    | m | 2.0 ms, 1.5, 0.5 |
    """
    lines, sizes = _lines(rows), _sizes(rows)
    text = [f"| model | {' | '.join(sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for what in dict.fromkeys(what for what, _ in lines):
        shown = []
        for size in sizes:
            cells = lines.get((what, size), {})
            ours = _median(cells[OURS]) if OURS in cells else float("nan")
            ratios = [_least(cells, peer) / ours for peer in (TORCH, OPENVINO)]
            texts = [f"{1e3 * ours:.1f} ms", *(f"{ratio:.1f}" for ratio in ratios if math.isfinite(ratio))]
            shown.append(", ".join(texts) if cells else "")
        text.append(f"| {what} | {' | '.join(shown)} |")
    return "\n".join(text)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars: how many times as long as ours (default backend) the best of torch takes, and OpenVINO."""
    from matplotlib import ticker

    from benchmarks.pages.figures import new_figure, save

    lines, sizes = _lines(rows), _sizes(rows)
    models = list(dict.fromkeys(what for what, _ in lines))
    figure = new_figure(10, 4.5)
    axes = figure.subplots(1, len(sizes), sharex=True, sharey=True)
    for axis, size in zip(axes, sizes, strict=True):
        for shift, (label, peer) in enumerate((("best of torch", TORCH), ("OpenVINO, fixed shape", OPENVINO))):
            cells = [lines.get((what, size), {}) for what in models]
            beyond = [_least(c, peer) / _median(c[OURS]) - 1 if c else float("nan") for c in cells]
            places = [i + 0.4 * shift for i in range(len(models))]
            axis.barh(places, beyond, left=1, height=0.38, label=label)  # bars begin where both are alike
        axis.set_yticks([i + 0.2 for i in range(len(models))], models)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(ticker.LogLocator(2, subs=(1, 1.5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(size)
        axis.set_xlabel("times as long as ours")
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8, loc="upper right")
    save(figure, path)


def _lines(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.what, row.size), {})[row.implementation] = row
    return lines


def _sizes(rows: Sequence[Row]) -> list[str]:
    return sorted({row.size for row in rows}, key=lambda size: int(size.split()[-1]))


def _least(cells: Cells, *implementations: str, but: tuple[str, ...] = ()) -> float:
    """The least median of implementations that begin so; infinite where there is none."""
    names = (name for name in cells if name.startswith(implementations or ("",)) and not (but and name.startswith(but)))
    return min((_median(cells[name]) for name in names), default=float("inf"))


def _median(row: Row) -> float:
    assert row.p50 is not None
    return row.p50
