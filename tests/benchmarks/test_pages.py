"""Pages and rows are equal: every measured number of a page is made of a row, and every row stands in a page."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from benchmarks.measure.rows import RESULTS, ROOT, Row, Run, read
from benchmarks.pages import latency, marks, tables
from benchmarks.pages.__main__ import pages
from benchmarks.pages.blocks import BLOCKS, OF_REPORTS, block_text
from benchmarks.pages.marks import filled, names, outside
from benchmarks.pages.origin import age_by_git, age_in, age_now, ages, origins
from benchmarks.pages.tables import pivot

MEASURED = [ROOT / "README.md", *sorted((ROOT / "docs" / "measured").glob("*.md"))]
AMOUNT = re.compile(r"\d[\d.,]* ?(ms|µs|s|kB|MB|GB|times|videos/s)\b")
SETTINGS = ("20 µs", "6 MB", "60 MB", "1.15 times", "1.5 times", "50 videos", "25 videos")
"""Amounts that are no measurements: defaults, limits and goals."""


def _id(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", pages(), ids=_id)
def test_a_page_shows_what_its_rows_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, lambda name: block_text(name, age_in(text))) == text, "run: python -m benchmarks.pages"


def test_every_block_stands_in_a_page() -> None:
    shown = {name for page in pages() for name in names(page.read_text(encoding="utf-8"))}
    assert shown == {*BLOCKS, *OF_REPORTS}


def test_every_file_of_rows_is_shown() -> None:
    patterns = [*(f"{block.results}.json" for block in BLOCKS.values()), "accuracy_*", "published*", "scoring.json"]
    assert set(RESULTS.iterdir()) == {path for one in patterns for path in RESULTS.glob(one)}


@pytest.mark.parametrize("page", MEASURED, ids=_id)
def test_no_measured_number_is_typed_by_hand(page: Path) -> None:
    typed = outside(page.read_text(encoding="utf-8"))
    assert [line for line in typed.splitlines() if line.startswith("|") and re.search(r"\d", line)] == []
    for setting in SETTINGS:
        typed = typed.replace(setting, "")
    assert [match[0] for match in AMOUNT.finditer(re.sub(r"```.*?```", "", typed, flags=re.DOTALL))] == []


def test_a_number_without_a_row_is_found() -> None:
    assert AMOUNT.search("it takes 0.74 s, and 273 MB")
    assert outside("a\n<!-- measured: x -->\n| 1 |\n<!-- /measured -->\nb") == "a\n\nb"


@pytest.mark.parametrize("module", [tables, latency, marks], ids=lambda module: module.__name__)
def test_examples_of_docstrings_are_right(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def _row(implementation: str, p50: float | None, commit: str | None = "abc1234", metric: str = "time") -> Row:
    run = Run("x", "2026-12-01", commit, "d", None, {})
    return Row("m", "T = 1", implementation, metric, "s", p50, p50, p50, 1, "", run)


def test_a_cell_that_was_not_measured_is_a_dash_and_an_absent_one_empty() -> None:
    rows = [_row("a", 1.0), _row("a", None, metric="first run"), _row("b", 2.0)]
    assert pivot(rows, ["implementation"], "metric").splitlines()[2:] == ["| a | 1.00 s | - |", "| b | 2.00 s |  |"]


def test_rows_of_several_runs_are_told_apart() -> None:
    later = Run("y", "2026-12-02", "def5678", "another", 0.5, {"numpy": "2"})
    rows = [_row("a", 1.0), _row("b", 2.0), replace(_row("c", 3.0), run=later)]
    assert origins(rows[:2]) == ["`x`: 2026-12-01, commit abc1234; d; ."]
    assert [line.partition(":")[0] for line in origins(rows)] == ["*a; b*", "*c*"]
    assert origins(rows)[1].endswith("`y`: 2026-12-02, commit def5678; another, load 0.5 before the run; numpy 2.")
    same = replace(rows[0], metric="peak memory", run=later)
    assert origins([rows[0], same])[1].startswith("*peak memory*: `y`")


def test_rows_say_that_they_are_older_than_the_code() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("a copy without its history")
    log = ["git", "log", "--format=%h", "-2", "--", "kernels"]
    later = subprocess.run(log, capture_output=True, text=True, cwd=ROOT).stdout.split()
    if len(later) < 2:
        pytest.skip("a shallow history")
    assert age_by_git(later[:1], ["kernels"]) == ""
    note = age_by_git([later[0], f"{later[1]}-dirty"], ["kernels"])
    assert note is not None
    pattern = (
        rf"\*Older than the code: by 20\d\d-\d\d-\d\d, commits that changed `kernels`: 1 since {later[1]}-dirty\.\*"
    )
    assert re.fullmatch(pattern, note)
    assert age_by_git(["0000000"], ["kernels"]) is None


def test_without_git_a_page_keeps_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    note = "*Older than the code: by 2026-12-01, commits that changed `a`, `b`: 3 since abc1234.*"
    both = "*Older than the code: by 2026-12-01, commits that changed `a`, `b`: 3 since abc1234, 1 since fff0000.*"
    age = age_now(f"text\n\n{note}\n\n{both}\n")
    assert ages([_row("x", 1.0)], ["a", "b"], age) == [note]
    assert ages([_row("x", 1.0), _row("y", 1.0, commit="fff0000")], ["a", "b"], age) == [both]
    assert ages([_row("x", 1.0)], ["a"], age) == []
    assert ages([_row("x", 1.0, commit="def5678")], ["a", "b"], age) == []
    assert ages([_row("x", 1.0, commit=None)], ["a"], age)[0].startswith("*The commit was not recorded")


def test_the_verdict_counts_lines_by_the_default_backend_and_by_the_better_of_ours() -> None:
    times = {"ours": 3.0, "ours, backend openvino": 2.0, "torch eager": 3.0, "OpenVINO fp32": 2.5, "floor": 1.9}
    said = latency.verdict([_row(who, p50) for who, p50 in times.items()])
    default, best = said.split("With the better")
    assert default.startswith("With the default backend, of 1 lines, 0 are at least 1.3")
    assert default.endswith("0 are within 1.25 times the floor, and 0 are no slower than OpenVINO. ")
    assert " 1 are at least 1.3" in best
    assert "1 are within 1.25 times the floor, and 1 are no slower than OpenVINO" in best


def test_the_plot_of_latency_is_the_one_that_the_rows_make(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    latency.plot(read(RESULTS / "latency.json"), tmp_path / "latency.svg")
    texts = [
        {element.attrib["id"] for element in ElementTree.parse(path).iter() if "id" in element.attrib}
        for path in (tmp_path / "latency.svg", ROOT / "docs" / "measured" / "latency.svg")
    ]
    assert texts[0] == texts[1]
