"""How things are measured: rows, turns, and calls in a process of their own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure.process import ChildError, in_fresh_process
from benchmarks.measure.rows import Results, read, write
from benchmarks.measure.turns import in_turn, repeated


def test_a_call_in_a_fresh_process_gives_its_result_and_its_peak() -> None:
    outcome = in_fresh_process(statistics.fmean, [1, 2, 6])
    assert outcome.result == 3.0
    assert 0.0 < outcome.processor_s < 60.0
    if sys.platform == "linux":
        assert outcome.peak_bytes is not None
        assert 2e6 < outcome.peak_bytes < 1e9


def test_a_fresh_process_gets_the_environment_that_was_asked_for() -> None:
    assert in_fresh_process(os.getenv, "VSUM_TEST", environment={"VSUM_TEST": "here"}).result == "here"


def test_a_call_that_fails_gives_the_message_of_its_process() -> None:
    with pytest.raises(ChildError, match="fmean requires at least one data point"):
        in_fresh_process(statistics.fmean, [])


def test_a_call_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        in_fresh_process(time.sleep, 60, timeout_s=0.5)


def test_a_row_is_on_disk_at_once_and_replaces_the_row_of_the_same_thing_alone(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    first = Results("first", ("numpy", "no-such-package"), out)
    first.add("a", "1", "ours", [3.0, 1.0, 2.0])
    first.add("b", "1", "ours", [5.0], metric="peak memory", unit="B")
    second = Results("second", (), out)
    second.add("a", "1", "ours", [], note="it was not there")
    kept, replaced = sorted(read(out), key=lambda row: row.what != "b")
    assert (kept.run, kept.p50, kept.runs) == (first.run, 5.0, 1)
    assert (replaced.run, replaced.p50, replaced.note) == (second.run, None, "it was not there")
    assert first.run.versions["no-such-package"] == "absent"
    assert first.rows[0].p50 == 2.0
    write(tmp_path / "again.json", read(out))
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
    assert len(out.read_text().splitlines()) == 4  # a row is a line


def test_implementations_take_turns() -> None:
    order: list[str] = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, least_s=0.0)
    assert order == ["a", "b", "a", "b", "a", "b"]  # the first of each is not counted
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_long_call_is_made_once_and_a_short_one_again_and_again() -> None:
    calls: list[float] = []
    seconds, result = repeated(lambda: len(calls) if calls.append(0.0) is None else 0, at_most_s=0.0)
    assert (len(calls), len(seconds), result) == (1, 1, 1)
    seconds, result = repeated(lambda: len(calls) if calls.append(0.0) is None else 0, runs=4)
    assert (len(calls), len(seconds), result) == (6, 4, 6)  # of five more, the first is not counted
