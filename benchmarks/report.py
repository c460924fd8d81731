"""The measured results as pages for people: every row of benchmarks/results, none left out.

    python -m benchmarks.report

writes the tables between the marks in docs/performance.md; it measures nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.kernels import ROOT
from runtime.atomic import replacing

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
NAMES = ("end_to_end", "latency")
OURS = "ours"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    for name in NAMES:
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        text = between_marks(text, name, table(found))
    with replacing(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def table(results: dict[str, Any]) -> str:
    """Markdown: one line per measured thing, a column per implementation, and how often faster ours is than each.

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
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{results['device']}; {versions}; commit {results['commit']}. "
        "Median; in brackets the 20th and 80th percentile.",
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
        lines.append(f"| {row['what']} | {row['size']} | {row['implementation']} | {median} | {spread} | {ratio}|")
    return "\n".join([*lines, "", f"Made by `{results['command']}`."])


def between_marks(text: str, name: str, inner: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"expected the marks <!-- {name} --> and <!-- /{name} --> in the page, found none")
    return pattern.sub(lambda marks: f"{marks[1]}{inner}\n{marks[2]}", text)


def _amount(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms"


if __name__ == "__main__":
    raise SystemExit(main())
