from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.reference import knapsack as twin
from vsum_runtime.kernels import compiled, knapsack

steady = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def test_golden_problems_are_solved_with_the_reference_choice(golden: Any) -> None:
    for case in golden.cases("knapsack")["instances"]:
        chosen = knapsack.pack(case["values"], case["weights"], case["capacity"])
        assert np.array(case["weights"])[chosen].sum() <= case["capacity"]
        assert abs(np.array(case["values"])[chosen].sum() - case["optimal_value"]) <= 1e-9
        assert chosen.tolist() == case["peers"]["float64_table"]["selected"], case["id"]


def test_golden_large_problems_reach_the_optimum(golden: Any) -> None:
    for case in golden.cases("knapsack")["large"]:
        draws = golden.fill._rng(f"knapsack-large-{case['name']}", "public")
        if case["name"] == "two-hours":
            lengths = draws.integers(30, 190, case["n"])
            values = draws.integers(1, 2**20, case["n"])
        else:
            lengths = draws.integers(20, 300, case["n"])
            values = 4096 * lengths + draws.integers(0, 20000, case["n"])
        assert lengths[:5].tolist() == case["weights_head"]
        assert values[:5].tolist() == case["values_int_head"]
        chosen = knapsack.pack(values / 2**20, lengths, case["capacity"])
        assert lengths[chosen].sum() <= case["capacity"]
        assert values[chosen].sum() == case["optimal_value_int"]


def some_problem(rng: np.random.Generator) -> tuple[Any, ...]:
    """Values whose sums are exact in float64, so that a tie is a tie in any order of adding."""
    n = int(rng.integers(1, 30))
    step = int(rng.choice([1, 1, 3, 15]))
    lengths = step * rng.integers(1, int(rng.choice([4, 12, 40])), n)
    if rng.random() < 0.5:
        lengths[-1] = rng.integers(1, 60)
    kind = rng.integers(4)
    if kind == 0:
        values = rng.integers(0, 2**20, n)
    elif kind == 1:
        values = rng.integers(0, 4, n)
    elif kind == 2:
        values = 8 * lengths + rng.integers(0, 4, n)
    else:
        values = lengths
    return values / 16, lengths, int(rng.integers(0, lengths.sum() + 5))


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_problems_agree_with_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        values, lengths, capacity = some_problem(rng)
        assert knapsack.pack(values, lengths, capacity).tolist() == twin.pack(values, lengths.tolist(), capacity)


@steady
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=9), st.integers(0, 40))
def test_no_subset_that_fits_is_worth_more(items: Any, capacity: int) -> None:
    values, lengths = (list(side) for side in zip(*items, strict=True))
    chosen = knapsack.pack(values, lengths, capacity)
    assert sum(lengths[i] for i in chosen) <= capacity
    best = twin.brute_force(values, lengths, capacity)
    assert sum(values[i] for i in chosen) == pytest.approx(best, rel=1e-12)


@steady
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_a_coarser_unit_of_length_changes_nothing(seed: int, unit: Any) -> None:
    values, lengths, capacity = some_problem(np.random.default_rng(seed))
    expected = knapsack.pack(values, lengths, capacity).tolist()
    assert knapsack.pack(values, lengths * unit, capacity * unit + unit - 1).tolist() == expected


def test_ties_go_to_the_earlier_shots() -> None:
    assert knapsack.pack([1.0, 1.0, 1.0], [2, 2, 2], 4).tolist() == [0, 1]
    assert knapsack.pack([2.0, 1.0, 1.0], [2, 1, 1], 2).tolist() == [0]
    assert knapsack.pack([1.0, 1.0, 2.0], [1, 1, 2], 2).tolist() == [0, 1]


def test_an_odd_last_length_is_decided_exactly() -> None:
    # All lengths but the last are multiples of 15; taking the last or not needs different capacities of the rest.
    assert knapsack.pack([5.0, 5.0, 5.0, 1.0], [15, 15, 15, 7], 37).tolist() == [0, 1, 3]
    assert knapsack.pack([5.0, 5.0, 5.0, 1.0], [15, 15, 15, 8], 37).tolist() == [0, 1]
    assert knapsack.pack([5.0, 5.0, 5.0, 9.0], [15, 15, 15, 8], 37).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("values", "lengths", "capacity", "chosen"),
    [
        ([], [], 10, []),
        ([1.0], [5], 5, [0]),
        ([1.0], [5], 4, []),
        ([1.0, 2.0], [5, 6], 0, []),
        ([1.0, 2.0], [5, 6], 100, [0, 1]),
        ([1.0, 2.0], [5, 6], 11, [0, 1]),
        ([0.0, 0.0], [1, 1], 1, []),
        ([0.0, -1.0, 2.0], [1, 1, 1], 3, [2]),
        ([-1.0, -1e300], [1, 1], 5, []),
        ([1e300, 1e300, 1.0], [1, 1, 1], 2, [0, 1]),
        ([1e-300, 2e-300], [1, 1], 1, [1]),
        ([5e-324, 1e-323], [1, 1], 1, [1]),
        ([3.0, 4.0], [2**62, 2**62], 2**62, [1]),
        ([3.0, 4.0, 5.0], [2**62, 2**62, 2**62], 2**63 - 1, [2]),
        ([3.0, 4.0, 5.0], [2**63 - 1, 1, 1], 2**63 - 1, [1, 2]),
    ],
)
def test_edges(values: Any, lengths: Any, capacity: int, chosen: Any) -> None:
    assert knapsack.pack(values, lengths, capacity).tolist() == chosen


def test_type_and_layout_do_not_matter(rng: np.random.Generator) -> None:
    values = rng.integers(1, 100, 40) / 8
    lengths = rng.integers(1, 30, 40)
    expected = knapsack.pack(values, lengths, 150).tolist()
    signatures = len(knapsack._pack.dispatcher.signatures)
    wide = np.zeros((40, 3))
    wide[:, 1] = values
    read_only = lengths.copy()
    read_only.setflags(write=False)
    for same_values in (values.astype(np.float32), wide[:, 1], values.tolist()):
        for same_lengths in (lengths.astype(np.int32), lengths.astype(np.uint8), read_only, lengths.tolist()):
            capacity: Any = np.int32(150)  # any integer will do
            assert knapsack.pack(same_values, same_lengths, capacity).tolist() == expected
    assert len(knapsack._pack.dispatcher.signatures) == signatures


def test_before_the_compiler_is_started_the_choice_is_the_same(rng: np.random.Generator, not_started: None) -> None:
    for _ in range(60):
        n_items, most = int(rng.integers(1, 40)), int(rng.choice([9, 400]))
        values, lengths = rng.integers(0, 30, n_items) / 8, rng.integers(1, most, n_items)
        capacity = int(rng.integers(0, lengths.sum() + 2))
        assert knapsack.pack(values, lengths, capacity).tolist() == twin.pack(values, lengths.tolist(), capacity)
    assert knapsack.pack([3.0, 4.0, 5.0], [2**63 - 1, 1, 1], 2**63 - 1).tolist() == [1, 2]


def test_many_problems_start_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_started", set())
    monkeypatch.setattr(compiled, "_expected_s", {})
    for _ in range(3):
        knapsack.pack([1.0, 2.0], [3, 4], 5)
    assert knapsack.__name__ not in compiled._started
    knapsack.pack([1.0, 2.0], [1, 1], 10**9)
    assert knapsack.__name__ in compiled._started


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to measure memory")
def test_eight_thousand_items_that_nothing_reduces_fit_in_250_megabytes() -> None:
    code = """
import numpy as np
from vsum_runtime.kernels import compiled, knapsack
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
lengths = np.random.default_rng(0).integers(20, 400, 8000)
compiled.start_compiler(knapsack.__name__)
knapsack.pack(lengths[:50].astype(float), lengths[:50], 999)
before = peak()
chosen = knapsack.pack(lengths.astype(float), lengths, 200_000)  # worth as much per frame, all of them
print(peak() - before, lengths[chosen].sum())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    growth, total = map(int, result.stdout.split())
    assert 200e6 < growth < 250e6
    assert total == 200_000


@pytest.mark.parametrize(
    ("values", "lengths", "capacity", "message"),
    [
        ([1.0, 2.0], [1], 5, r"values, lengths: .*\(2,\) and \(1,\)"),
        ([[1.0]], [[1]], 5, r"values, lengths: .*\(1, 1\)"),
        ([1.0, np.nan], [1, 1], 5, "values: expected finite numbers, got nan"),
        ([1.0, -np.inf], [1, 1], 5, "values: expected finite numbers, got -inf"),
        ([1.0, 2.0], [1, 0], 5, "lengths: .*got 0"),
        ([1.0, 2.0], [1, -3], 5, "lengths: .*got -3"),
        ([1.0, 2.0], [1.0, 2.0], 5, "lengths: expected integers, got float64"),
        ([1.0, 2.0], [1, 2**64], 5, "lengths: expected integers, got object"),
        ([1.0, 2.0], np.array([1, 2**63], dtype=np.uint64), 5, "lengths: .*below 2\\*\\*63, got 9223372036854775808"),
        ([1.0, 2.0], [1, 2], -1, "capacity: .*got -1"),
        ([1.0, 2.0], [1, 2], 2**63, "capacity: .*got 9223372036854775808"),
        ([1.0, 2.0], [1, 2], 2.5, "capacity: expected an integer, got 2.5"),
        (
            [1e12 + 1, 1e12 + 3, 1e12 + 7],
            [10**12 + 1, 10**12 + 3, 10**12 + 7],
            2 * 10**12 + 5,
            "capacity: .*coarser unit",
        ),
    ],
)
def test_bad_input_is_refused(values: Any, lengths: Any, capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knapsack.pack(values, lengths, capacity)
