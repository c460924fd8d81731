"""Rows as Markdown tables: one line for each thing, a column for each way to do it, or for each metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.measure.rows import Row

Cells = Mapping[str, Row]
"""The rows of one line, by column."""

FORMATS: dict[str, Callable[[float], str]] = {
    "largest difference": "{:.1e}".format,
    "least tau": "{:.3f}".format,
    "mean tau between": "{:.6f}".format,
    "least tau between": "{:.6f}".format,
    "same summaries": "{:.0%}".format,
    "share of the floor": "{:.0%}".format,
    "within the gate": lambda passes: "yes" if passes else "no",
    "videos": "{:.0f}".format,
    "change of f_mean": "{:+.3%}".format,
    "change of f_max": "{:+.3%}".format,
    "change of tau": "{:+.6f}".format,
    "change of rho": "{:+.6f}".format,
}
"""Metrics that are no amounts of a unit."""

_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
}


def pivot(
    rows: Sequence[Row],
    lines: Sequence[str],
    columns: str,
    *,
    more: Mapping[str, Callable[[Cells], str]] | None = None,
    notes: bool = False,
) -> str:
    """A table with a line for each value of the fields `lines`, and a column for each value of the field `columns`.

    `more`: further columns, made of the cells of a line; `notes`: a last column with the notes, if there are any.

    >>> from benchmarks.measure.rows import Run
    >>> run = Run("x", "2026-12-01", "c", "d", None, {})
    >>> rows = [Row("m", "T = 1", who, "time", "s", p50, p50, p50, 1, "", run) for who, p50 in (("a", 0.002), ("b", 3))]
    >>> print(pivot(rows, ["what", "size"], "implementation", more={"b / a": lambda cells: "1500"}))
    | what | size | a | b | b / a |
    | --- | --- | ---: | ---: | ---: |
    | m | T = 1 | 2.00 ms | 3.00 s | 1500 |
    """
    heads = list(dict.fromkeys(getattr(row, columns) for row in rows))
    table: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        table.setdefault(tuple(getattr(row, field) for field in lines), {})[getattr(row, columns)] = row
    more, notes = more or {}, notes and any(row.note for row in rows)
    text = [
        _line([*lines, *heads, *more, *(["note"] if notes else [])]),
        _line([*("---" for _ in lines), *("---:" for _ in (*heads, *more)), *(["---"] if notes else [])]),
    ]
    for labels, cells in table.items():
        shown = [cell(cells[head]) if head in cells else "" for head in heads]
        noted = ["; ".join(dict.fromkeys(row.note for row in cells.values() if row.note))] if notes else []
        text.append(_line([*labels, *shown, *(make(cells) for make in more.values()), *noted]))
    return "\n".join(text)


def cell(row: Row) -> str:
    """The median, with the 20th and 80th percentile where there were several runs.

    >>> from benchmarks.measure.rows import Run
    >>> run = Run("x", "2026-12-01", "c", "d", None, {})
    >>> cell(Row("m", "", "a", "time", "s", 0.0021, 0.0023, 0.0024, 5, "", run))
    '2.30 ms (2.10 to 2.40)'
    >>> cell(Row("m", "", "a", "time", "s", None, None, None, 0, "it was not there", run))
    '-'
    """
    if row.p50 is None or row.p20 is None or row.p80 is None:
        return "-"
    if row.metric in FORMATS:
        return FORMATS[row.metric](row.p50)
    scale, name = _scale(row.p50, row.unit)
    low, middle, high = (_digits(value / scale, name) for value in (row.p20, row.p50, row.p80))
    spread = "" if low == middle == high else f"({low} to {high})"
    return " ".join(filter(None, [middle, name, spread]))


def amount(value: float, unit: str) -> str:
    """

    >>> amount(0.74024, "s"), amount(273e6, "B"), amount(808.2, "videos/s"), amount(0, "")
    ('740 ms', '273 MB', '808 videos/s', '0')
    """
    scale, name = _scale(value, unit)
    return f"{_digits(value / scale, name)} {name}".rstrip()


def _scale(value: float, unit: str) -> tuple[float, str]:
    scales = _SCALES.get(unit, ((1.0, unit),))
    return next((one for one in scales if abs(value) >= one[0]), scales[-1])


def _digits(value: float, unit: str) -> str:
    """Three digits; all of a count."""
    if not unit and value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
