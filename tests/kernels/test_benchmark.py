"""The benchmark of the kernels measures what it says; its numbers themselves are no test."""

import numpy as np
import pytest

from benchmarks import kernels as benchmark


def test_a_row_of_ours_is_followed_by_its_twin_and_its_floor():
    rows = benchmark.kts_rows("KTS", benchmark.video(130, 8), twin=True, fixed=False, slope=False)
    assert [row.implementation for row in rows[:3]] == ["ours", "floor: BLAS", "NumPy twin"]
    assert {row.answer for row in rows[2:]} == {"same cuts"}
    assert all(0.0 < row.p20 <= row.p50 <= row.p80 for row in rows)


def test_the_table_gives_every_row_as_a_multiple_of_ours():
    ours = benchmark.timed("a", "1", "ours", [0.001, 0.002, 0.003], "x")
    peer = benchmark.timed("a", "1", "peer", [0.5])
    other = benchmark.timed("b", "1", "peer", [3e-6])
    about = {"device": "here", "versions": {"numpy": "0"}, "commit": "abc"}
    lines = benchmark.markdown([ours, peer, other], about).splitlines()
    assert lines[0] == "here; numpy 0; commit abc."
    assert lines[4:] == [
        "| a | 1 | ours | 2 ms |  | x |",
        "| a | 1 | peer | 500 ms | 250 x |  |",
        "| b | 1 | peer | 3 µs |  |  |",
    ]


@pytest.mark.parametrize("kinds", ["black static drift cuts endless", "noise", "static endless", "cuts"])
def test_made_up_videos_are_unit_rows_and_repeatable(kinds):
    rows = benchmark.video(500, 16, kinds=kinds)
    lengths = np.linalg.norm(rows, axis=1)
    assert ((np.abs(lengths - 1.0) < 1e-5) | (lengths == 0.0)).all()
    assert (lengths[:5] == 0.0).all() == ("black" in kinds)
    np.testing.assert_array_equal(rows, benchmark.video(500, 16, kinds=kinds))


def test_solvers_are_given_the_same_knapsack():
    pytest.importorskip("ortools")
    rows = benchmark.knapsack_rows("correlated", 40, 900, peer=True, twin=True)
    assert [row.answer for row in rows[2:]] == ["value +0.0e+00", "value +0.0e+00"]
