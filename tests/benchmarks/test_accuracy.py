"""The committed reports of accuracy say what their videos say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure.rows import RESULTS
from benchmarks.pages import figures
from benchmarks.pages.accuracy import SUMME, TVSUM
from vsum_runtime.training.report import MEASURES, read_report

REPORTS = [*TVSUM, SUMME]


@pytest.mark.parametrize("name", REPORTS)
def test_means_and_differences_follow_from_the_videos(name: str) -> None:
    report = read_report(RESULTS / name)

    def values(row: dict, column: int) -> dict[tuple[str, str], float]:
        """(split, video) -> mean over seeds."""
        seeds = list(row["videos"].values())
        return {
            (split, key): float(np.mean([_number(seed[split][key][column]) for seed in seeds]))
            for split, videos in seeds[0].items()
            for key in videos
        }

    def mean_of(numbers: dict[tuple[str, str], float]) -> float:
        splits = sorted({split for split, _ in numbers})
        return float(np.mean([np.mean([v for (s, _), v in numbers.items() if s == split]) for split in splits]))

    linear = next((row for row in report["rows"] if row["name"] == "linear, smoothed"), None)
    for row in report["rows"]:
        for column, measure in enumerate(MEASURES):
            if row[measure] is None:
                continue
            numbers = values(row, column)
            assert mean_of(numbers) == pytest.approx(row[measure], abs=3e-6), (row["name"], measure)
            low, high = row["intervals"][measure]
            assert low <= row[measure] <= high
            if row["to_linear"]:
                assert linear is not None
                apart = {key: value - values(linear, column)[key] for key, value in numbers.items()}
                assert mean_of(apart) == pytest.approx(row["to_linear"][measure]["difference"], abs=3e-6)


@pytest.mark.parametrize("name", TVSUM)
def test_no_committed_row_has_seen_a_test_video(name: str) -> None:
    assert [row["seen_in_training"] for row in read_report(RESULTS / name)["rows"]].count(0) == len(
        read_report(RESULTS / name)["rows"]
    )


def test_the_known_values_of_tvsum_stand_in_the_table() -> None:
    rows = {row["name"]: row for row in read_report(RESULTS / TVSUM[0])["rows"]}
    known = {"one human": (0.177, 0.204), "leave-one-out ceiling": (0.314, 0.396), "linear, smoothed": (0.199, 0.26)}
    for name, (tau, rho) in known.items():
        assert (round(rows[name]["tau"], 3), round(rows[name]["rho"], 3)) == (tau, rho), name
    assert abs(rows["random (100 draws)"]["tau"]) < 0.01


def test_committed_files_name_no_folder_of_a_machine() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\s\"'=]/\w+/", text), path


def test_the_interval_picture_is_drawn_from_the_rows_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        assert figures.main(["intervals", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert figures.main(["intervals", "--out", str(tmp_path / "x.gif")]) == 2


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def test_published_rows_are_complete() -> None:
    rows = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))["rows"]
    assert all({"model", "tau", "rho", "tvsum_f", "summe_f", "selection", "source"} == row.keys() for row in rows)
