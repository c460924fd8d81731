"""The measured results as pages for people: every row of benchmarks/results, none left out.

    python -m benchmarks.report

writes the tables between the marks in docs/measured and the plot beside them; it measures nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.kernels import ROOT
from vsum_runtime.runtime.atomic import replacing

RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "measured"
PLOT = PAGES / "latency.svg"
OURS, FLOOR = "ours", "floor"


def main() -> int:
    for name, (page, shown) in TABLES.items():
        _rewrite(PAGES / page, {name: shown(read(name))})
    _rewrite(PAGES / "one-video.md", {"speed": short_table(read("latency"))})
    plot(read("latency"), PLOT)
    return 0


def _rewrite(page: Path, parts: dict[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    for name, inner in parts.items():
        text = between_marks(text, name, inner)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: one line per measured thing, and how many times ours it is.

    >>> rows = [dict(what="m", size="T = 1", implementation=who, unit="s", p20=1, p50=p50, p80=1, runs=3, note="")
    ...         for who, p50 in (("ours", 0.002), ("peer", 0.003))]
    >>> print(table({"device": "d", "versions": {"numpy": "2"}, "commit": "c", "command": "x", "rows": rows}))
    d; numpy 2; commit c. Median; in brackets the 20th and 80th percentile.
    <BLANKLINE>
    | what | size | implementation | median | | of ours |
    | --- | --- | --- | ---: | ---: | ---: |
    | m | T = 1 | ours | 2.00 ms | (1.00 s to 1.00 s) | |
    | m | T = 1 | peer | 3.00 ms | (1.00 s to 1.00 s) | 1.50 x |
    <BLANKLINE>
    Made by `x`.
    """
    lines = [
        _origin(results),
        "",
        "| what | size | implementation | median | | of ours |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        ours = next(
            other
            for other in results["rows"]
            if other["implementation"].startswith(OURS) and (other["what"], other["size"]) == (row["what"], row["size"])
        )
        ratio = "" if row is ours else f"{row['p50'] / ours['p50']:.2f} x "
        spread = f"({_amount(row['p20'], row['unit'])} to {_amount(row['p80'], row['unit'])})"
        median = _amount(row["p50"], row["unit"])
        note = f"; {row['note']}" if row["note"] else ""
        lines.append(
            f"| {row['what']} | {row['size']} | {row['implementation']}{note} | {median} | {spread} | {ratio}|"
        )
    return "\n".join([*lines, "", f"Made by `{results['command']}`."])


def wide_table(results: dict[str, Any]) -> str:
    """Markdown: one line per model and size, a column per implementation, and the verdict that the columns give."""
    columns = list(dict.fromkeys(row["implementation"] for row in results["rows"]))
    lines = [
        _origin(results),
        "",
        f"| model | size | {' | '.join(columns)} | best peer / ours |",
        f"| --- | --- | {' | '.join('---:' for _ in columns)} | ---: |",
    ]
    for (what, size), cells in _by_size(results).items():
        shown = (f"{_amount(row['p50'], row['unit'])} {_spread(row)}" if (row := cells.get(c)) else "" for c in columns)
        lines.append(f"| {what} | {size} | {' | '.join(shown)} | {_lead(cells):.2f} |")
    return "\n".join([*lines, "", f"Made by `{results['command']}`."])


def latency_table(results: dict[str, Any]) -> str:
    """`wide_table`, and how many of its lines meet each of the aims."""
    lines = list(_by_size(results).values())
    default = [cells[OURS]["p50"] for cells in lines]
    best = [min(row["p50"] for who, row in cells.items() if who.startswith(OURS)) for cells in lines]
    torch = [min(row["p50"] for who, row in cells.items() if who.startswith("torch")) for cells in lines]
    openvino = [cells.get("OpenVINO fp32, fixed shape", {"p50": float("inf")})["p50"] for cells in lines]
    # A line quicker than its floor had a poor yardstick, and counts for nothing there.
    floors = [cells[FLOOR]["p50"] for cells in lines]

    def count(ours: list[float]) -> str:
        quick = [t >= 1.3 * o for t, o in zip(torch, ours, strict=True)]
        near = [f <= o <= 1.25 * f for o, f in zip(ours, floors, strict=True)]
        ahead = [o <= v for o, v in zip(ours, openvino, strict=True)]
        either = [a or b for a, b in zip(quick, near, strict=True)]
        return (
            f"{sum(quick)} at least 1.3 times faster than the better of torch eager and torch.compile, {sum(near)} "
            f"within 1.25 times of the floor, {sum(either)} either; {sum(ahead)} not behind OpenVINO"
        )

    verdict = (
        f"Of {len(lines)} lines, with the default backend: {count(default)}. With the better of our two: {count(best)}."
    )
    return f"{wide_table(results)}\n\n{verdict}"


def short_table(results: dict[str, Any]) -> str:
    """Markdown: one line per model; ours with the default backend, and how many times as long others take.

    >>> who = {"ours": 0.002, "torch eager": 0.003, "OpenVINO fp32, fixed shape": 0.001}
    >>> rows = [dict(what="m", size="T = 1", implementation=name, p50=p50) for name, p50 in who.items()]
    >>> print(short_table({"rows": rows}))
    | model | T = 1 |
    | --- | ---: |
    | m | 2.0 ms, 1.5, 0.5 |
    """
    lines = _by_size(results)
    sizes = sorted({size for _, size in lines}, key=lambda size: int(size.split()[-1]))
    text = [f"| model | {' | '.join(sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for what in dict.fromkeys(what for what, _ in lines):
        shown = []
        for size in sizes:
            cells = {who: row["p50"] for who, row in lines.get((what, size), {}).items()}
            if OURS not in cells:
                shown.append("")
                continue
            peers = [[p50 for who, p50 in cells.items() if who.startswith(peer)] for peer in ("torch", "OpenVINO")]
            ratios = "".join(f", {min(times) / cells[OURS]:.1f}" for times in peers if times)
            shown.append(f"{1e3 * cells[OURS]:.1f} ms{ratios}")
        text.append(f"| {what} | {' | '.join(shown)} |")
    return "\n".join(text)


TABLES = {
    "end_to_end": ("whole-path.md", table),
    "latency": ("one-video.md", latency_table),
    "latency_epyc": ("one-video.md", latency_table),
    "throughput": ("many-videos.md", wide_table),
    "fairness": ("many-videos.md", table),
    "two_hours": ("long-videos.md", table),
    "memory": ("long-videos.md", table),
}


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars: how many times faster ours (default backend) is than the best of torch, and than OpenVINO."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "vsum"  # the same results give the same file
    from matplotlib import pyplot, ticker

    lines = _by_size(results)
    models = list(dict.fromkeys(what for what, _ in lines))
    sizes = sorted({size for _, size in lines}, key=lambda size: int(size.split()[-1]))
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(10, 4.5), sharex=True, sharey=True, layout="constrained")
    for axis, size in zip(axes, sizes, strict=True):
        for shift, (label, peer) in enumerate((("best of torch", "torch"), ("OpenVINO, fixed shape", "OpenVINO"))):
            ratios = []
            for what in models:
                cells = lines.get((what, size), {})
                peers = [row["p50"] for who, row in cells.items() if who.startswith(peer)]
                ratios.append(min(peers) / cells[OURS]["p50"] if peers else float("nan"))
            beyond = [ratio - 1 for ratio in ratios]  # bars begin where both are alike
            axis.barh([i + 0.4 * shift for i in range(len(models))], beyond, left=1, height=0.38, label=label)
        axis.set_yticks([i + 0.2 for i in range(len(models))], models)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(ticker.LogLocator(2, subs=(1, 1.5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(size)
        axis.set_xlabel("times as long as ours")
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8, loc="upper right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def between_marks(text: str, name: str, inner: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"expected the marks <!-- {name} --> and <!-- /{name} --> in the page, found none")
    return pattern.sub(lambda marks: f"{marks[1]}{inner}\n{marks[2]}", text)


def _by_size(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results["rows"]:
        lines.setdefault((row["what"], row["size"]), {})[row["implementation"]] = row
    return lines


def _lead(cells: dict[str, Any]) -> float:
    """The quickest peer's time over that of our quickest way."""
    ours = min(row["p50"] for who, row in cells.items() if who.startswith(OURS))
    peers = (row["p50"] for who, row in cells.items() if not who.startswith((OURS, FLOOR)))
    return float(min(peers) / ours)


def _origin(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    about = f"{results['device']}; {versions}; commit {results['commit']}."
    return f"{about} Median; in brackets the 20th and 80th percentile."


def _spread(row: dict[str, Any]) -> str:
    return "" if row["runs"] == 1 else f"({_amount(row['p20'], row['unit'])} to {_amount(row['p80'], row['unit'])})"


def _amount(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms"


if __name__ == "__main__":
    raise SystemExit(main())
