"""The pages say what was measured: no row is left out, and the page in the repository is the one the results make."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.rounds import in_turn, row


@pytest.mark.parametrize("name", report.TABLES)
def test_every_measured_row_stands_in_the_page(name: str) -> None:
    results = report.read(name)
    place, table = report.TABLES[name]
    page, shown = (report.PAGES / place).read_text(), table(results)
    assert report.between_marks(page, name, shown) == page
    for measured in results["rows"]:
        start = f"| {measured['what']} | {measured['size']} |"
        lines = [line for line in shown.splitlines() if line.startswith(start)]
        assert any(report._amount(measured["p50"], measured["unit"]) in line for line in lines)


def test_the_plot_is_made_of_the_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(report.read("latency"), tmp_path / "latency.svg")
    assert ElementTree.parse(tmp_path / "latency.svg").getroot().tag.endswith("svg")


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- end_to_end -->"):
        report.between_marks("nothing here", "end_to_end", "table")


def test_implementations_take_turns() -> None:
    order: list[str] = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, least_s=0.0)
    assert order == ["a", "b", "a", "b", "a", "b"]  # the first of each is not counted
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_row_holds_the_median() -> None:
    assert row("what", "size", "ours", [3.0, 1.0, 2.0]).p50 == 2.0
