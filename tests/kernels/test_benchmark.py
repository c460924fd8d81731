"""The benchmark of the kernels measures what it says; its numbers themselves are no test."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks import kernels as benchmark
from benchmarks.measure.rows import Results
from benchmarks.measure.turns import repeated


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Results:
    """No rows yet; every call is made once."""
    monkeypatch.setattr(benchmark, "repeated", partial(repeated, at_most_s=0.0))
    return Results("x", ())


def test_a_row_of_ours_is_followed_by_its_twin_and_its_floor(table: Any) -> None:
    benchmark.kts_rows(table, "KTS", benchmark.video(130, 8), twin=True, fixed=False, slope=False)
    assert [row.implementation for row in table.rows[:3]] == ["ours", "floor: BLAS", "NumPy twin"]
    assert {row.note for row in table.rows[2:]} == {"same cuts"}
    assert all(0.0 < row.p20 <= row.p50 <= row.p80 for row in table.rows)


@pytest.mark.parametrize("kinds", ["black static drift cuts endless", "noise", "static endless", "cuts"])
def test_made_up_videos_are_unit_rows_and_repeatable(kinds: Any) -> None:
    rows = benchmark.video(500, 16, kinds=kinds)
    lengths = np.linalg.norm(rows, axis=1)
    assert ((np.abs(lengths - 1.0) < 1e-5) | (lengths == 0.0)).all()
    assert (lengths[:5] == 0.0).all() == ("black" in kinds)
    np.testing.assert_array_equal(rows, benchmark.video(500, 16, kinds=kinds))


def test_solvers_are_given_the_same_knapsack(table: Any) -> None:
    pytest.importorskip("ortools")
    benchmark.knapsack_rows(table, "correlated", 40, 900, peer=True, twin=True)
    assert [row.note for row in table.rows[2:]] == ["value +0.0e+00", "value +0.0e+00"]
