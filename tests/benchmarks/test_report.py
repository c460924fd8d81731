"""The pages say what was measured: no row is left out, and the page in the repository is the one the results make."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.rounds import in_turn, row


@pytest.mark.parametrize("name", report.NAMES)
def test_every_measured_row_stands_in_the_page(name: str) -> None:
    results = json.loads((report.RESULTS / f"{name}.json").read_text())
    page = report.PAGE.read_text()
    assert report.between_marks(page, name, report.table(results)) == page
    assert report.table(results).count("\n| ") == len(results["rows"]) + 2


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- latency -->"):
        report.between_marks("nothing here", "latency", "table")


def test_implementations_take_turns() -> None:
    order: list[str] = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, least_s=0.0)
    assert order == ["a", "b", "a", "b", "a", "b"]  # the first of each is not counted
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_row_holds_the_median() -> None:
    assert row("what", "size", "ours", [3.0, 1.0, 2.0]).p50 == 2.0
