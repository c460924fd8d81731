"""Write every measured number of every page: ``python -m benchmarks.pages``. It measures nothing.

Pages are README.md and all below docs. What stands between a pair of marks there is made of the rows in
``benchmarks/results``, by the table in ``benchmarks/pages/blocks.py``; a test holds pages and rows equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure.rows import ROOT
from benchmarks.pages.blocks import block_text
from benchmarks.pages.marks import filled, names
from benchmarks.pages.origin import age_now
from vsum_runtime.runtime.atomic import replacing


def pages() -> list[Path]:
    """Every page with a block."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if names(page.read_text(encoding="utf-8"))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=(__doc__ or "").split("\n\n")[0])
    parser.parse_args(argv)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        age = age_now(text)
        new = filled(text, lambda name: block_text(name, age))  # noqa: B023
        if new != text:
            with replacing(page) as temporary:
                temporary.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
