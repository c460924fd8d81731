"""`kernels.kts` and the pass below it: the authors' outputs, the slow twin, and what must follow from the formula."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import ROOT
from tests.reference import kts as twin
from vsum_runtime.kernels import kts, penalised
from vsum_runtime.kernels.compiled import Compiled

steady = settings(deadline=None, derandomize=True, database=None, max_examples=40)


def video(
    rng: np.random.Generator, n_steps: int, size: int, *, shot: int = 30, noise: float = 0.1, drift: float = 0.2
) -> NDArray[np.float64]:
    """Rows of unit length: shots of random length that drift slowly, with noise."""
    drawn: list[NDArray[np.float64]] = []
    while len(drawn) < n_steps:
        length = int(rng.gamma(2.0, shot / 2)) + 1
        here, there = rng.gamma(0.4, size=(2, size))
        path = np.linspace(0.0, drift, length)[:, None]
        drawn.extend(here * (1 - path) + there * path + noise * np.abs(rng.standard_normal((length, size))))
    rows = np.array(drawn[:n_steps])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_rows(rng: np.random.Generator, n_steps: int, size: int) -> NDArray[np.float64]:
    """One of several kinds of sequence, from clear shots to pure noise."""
    kind = rng.integers(5)
    if kind == 0:
        return video(rng, n_steps, size)
    if kind == 1:
        return rng.standard_normal((n_steps, size))
    if kind == 2:
        return np.cumsum(rng.standard_normal((n_steps, size)), axis=0) * rng.choice([0.01, 0.1, 1.0])
    if kind == 3:
        return np.linspace(0, 1, n_steps)[:, None] * rng.standard_normal(size) + 0.01 * rng.standard_normal(
            (n_steps, size)
        )
    shots = np.sort(rng.integers(0, n_steps // 4 + 1, n_steps))
    return rng.standard_normal((n_steps // 4 + 1, size))[shots] + 0.1 * rng.standard_normal((n_steps, size))


def has_clear_winner(costs: NDArray[np.float64], gap: float = 1e-9) -> bool:
    best = np.sort(costs)
    return len(best) == 1 or best[1] - best[0] > gap


def golden_rows(golden: Any, case: dict[str, Any], salt: str) -> NDArray[np.float64]:
    if "walk" in case["name"]:
        draws = golden.fill._rng(f"walk-{case['n']}x64", salt)
        rows = np.cumsum(0.1 * draws.standard_normal((case["n"], 64)), axis=0)
        rows += 0.3 * draws.standard_normal((case["n"], 64))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if isinstance(case["features"], str):
        return golden.fill.features(case["n"], 1024, salt)
    if isinstance(case["features"], dict):
        return np.array(case["features"]["all_rows"])
    return np.array(case["features"])


def test_golden_cases_are_reproduced(golden: Any) -> None:
    file = golden.cases("kts")
    for case in file["cases"]:
        rows = golden_rows(golden, case, file["salt"])
        found = kts.change_points(
            rows,
            penalty=case["vmax"],
            max_change_points=case["max_ncp"],
            min_steps=case["lmin"],
            max_steps=case["lmax"],
            sampling=case["desc_rate"],
            short_first_shot=True,
        )
        assert found.tolist() == case["change_points"], case["name"]
        if case["gram"] == "float64":
            objective = twin.total_scatter(rows, found)
            np.testing.assert_allclose(objective, case["objective"][len(found)], rtol=1e-7, atol=1e-7)


def test_golden_edge_cases_are_reproduced(golden: Any) -> None:
    for case in golden.cases("kts")["edge_cases"]:
        rows = golden_rows(golden, case, "")
        found = kts.change_points(rows, penalty=case["vmax"], max_change_points=case["max_ncp"])
        assert found.tolist() == case["change_points"], case["name"]


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_random_problems_agree_with_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        n_steps, size = int(rng.integers(1, 60)), int(rng.integers(1, 12))
        rows = some_rows(rng, n_steps, size)
        options: dict[str, Any] = {
            "penalty": float(rng.choice([0.01, 0.1, 1.0, 10.0])),
            "sampling": int(rng.choice([1, 15])),
        }
        if rng.random() < 0.4:
            options["min_steps"] = int(rng.integers(1, n_steps + 1))
        if rng.random() < 0.4:
            options["max_steps"] = int(rng.integers(max(options.get("min_steps", 1), n_steps // 5 + 1), n_steps + 3))
            options["short_first_shot"] = bool(rng.random() < 0.3)
        if rng.random() < 0.5:
            options["max_change_points"] = int(rng.integers(0, n_steps // options.get("min_steps", 1)))
        expected, costs = twin.segmentation(rows, **options)
        if np.isinf(costs).all():
            with pytest.raises(ValueError, match="no way to cut"):
                kts.change_points(rows, **options)
            continue
        found = kts.change_points(rows, **options)
        cost = twin.cost(rows, found, options["penalty"], options["sampling"])
        assert cost == pytest.approx(costs.min(), rel=1e-9, abs=1e-12), options
        if has_clear_winner(costs):
            assert found.tolist() == expected.tolist(), options


@pytest.mark.parametrize("n_steps", [129, 200, 330])
def test_several_blocks_agree_with_the_twin(rng: np.random.Generator, n_steps: int) -> None:
    for kind in range(6):
        rows = some_rows(rng, n_steps, 8) if kind else video(rng, n_steps, 8, shot=150)
        expected, costs = twin.segmentation(rows, penalty=0.3)
        if has_clear_winner(costs):
            assert kts.change_points(rows, penalty=0.3).tolist() == expected.tolist()


def test_all_ways_to_the_scatter_are_equal(rng: np.random.Generator) -> None:
    rows = video(rng, 150, 6)
    by_definition = twin.scatter_by_definition(rows)
    for way in (twin.scatter_from_gram, twin.scatter_from_sums, twin.scatter_by_diagonals):
        np.testing.assert_allclose(way(rows), by_definition, atol=1e-11)
    problem = penalised.Penalised(rows, penalised.Limits(1, 151, 151))
    for end in (1, 64, 65, 149, 150):
        np.testing.assert_allclose(problem.scatter_before(end), by_definition[:end, end], atol=1e-11)
    for slope in (0.01, 1.0, 100.0):
        solution = problem.solve(slope)
        assert solution.scatter == pytest.approx(twin.total_scatter(rows, solution.change_points), abs=1e-10)


def test_tiles_computed_again_give_the_same_answer(rng: np.random.Generator) -> None:
    rows = video(rng, 1000, 5, shot=200)
    limits = penalised.Limits(1, 1001, 1001)
    keeping = penalised.Penalised(rows, limits)
    for memory in (0, 20 * 8 * penalised.TILE**2):
        forgetting = penalised.Penalised(rows, limits, memory=memory)
        for slope in (5.0, 0.1, 1.0, 0.5, 2.0):
            expected, found = keeping.solve(slope), forgetting.solve(slope)
            assert found.change_points.tolist() == expected.change_points.tolist()
            np.testing.assert_array_equal(found.values, expected.values)


def test_a_slope_gives_the_cuts_of_ruptures(rng: np.random.Generator) -> None:
    ruptures = pytest.importorskip("ruptures")
    rows = video(rng, 300, 8)
    for slope in (0.2, 0.5, 2.0):
        model = ruptures.KernelCPD(kernel="linear", min_size=1).fit(rows)
        assert kts.change_points_at_slope(rows, slope).tolist() == model.predict(pen=slope)[:-1]


@steady
@given(st.integers(0, 2**32), st.integers(1, 11), st.sampled_from([0.05, 0.5, 2.0]))
def test_no_way_to_cut_is_better(seed: int, n_steps: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    rows = some_rows(rng, n_steps, 3)
    found = kts.change_points(rows, penalty=penalty)
    assert twin.cost(rows, found, penalty) <= twin.least_cost_of_all_ways(rows, penalty) + 1e-12


def clear_problem(seed: int) -> tuple[np.random.Generator, NDArray[np.float64], list[int]]:
    """NDArray[np.float64] whose best segmentation no rounding can change, and that segmentation."""
    rng = np.random.default_rng(seed)
    while True:
        rows = some_rows(rng, int(rng.integers(2, 90)), int(rng.integers(2, 8)))
        found, costs = twin.segmentation(rows, penalty=0.3)
        if has_clear_winner(costs, gap=1e-7):
            return rng, rows, found.tolist()


@steady
@given(st.integers(0, 2**32))
def test_adding_a_constant_vector_changes_nothing(seed: int) -> None:
    rng, rows, expected = clear_problem(seed)
    shift = 100.0 * rng.standard_normal(rows.shape[1])
    assert kts.change_points(rows + shift, penalty=0.3).tolist() == expected


@steady
@given(st.integers(0, 2**32))
def test_rotation_changes_nothing(seed: int) -> None:
    rng, rows, expected = clear_problem(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((rows.shape[1], rows.shape[1])))
    assert kts.change_points(rows @ rotation, penalty=0.3).tolist() == expected


@steady
@given(st.integers(0, 2**32), st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_scaling_the_rows_scales_the_penalty_by_its_square(seed: int, scale: Any) -> None:
    _, rows, expected = clear_problem(seed)
    assert kts.change_points(rows * scale, penalty=0.3 * scale**2).tolist() == expected


@steady
@given(st.integers(0, 2**32))
def test_reversing_time_mirrors_the_cuts(seed: int) -> None:
    _, rows, expected = clear_problem(seed)
    mirrored = [len(rows) - cut for cut in reversed(expected)]
    assert kts.change_points(rows[::-1], penalty=0.3).tolist() == mirrored


@steady
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_repeating_every_row_is_the_same_as_sampling_it(seed: int, times: Any) -> None:
    rng = np.random.default_rng(seed)
    rows = some_rows(rng, int(rng.integers(2, 60)), 4)
    expected, costs = twin.segmentation(rows, penalty=0.3, sampling=times)
    if has_clear_winner(costs, gap=1e-7):
        repeated = kts.change_points(np.repeat(rows, times, axis=0), penalty=0.3)
        assert repeated.tolist() == [times * cut for cut in expected]


@steady
@given(st.integers(0, 2**32))
def test_the_slope_of_the_answer_gives_the_answer(seed: int) -> None:
    _, rows, expected = clear_problem(seed)
    if expected:
        slope = kts.slope(len(rows) / len(expected), penalty=0.3)
        assert kts.change_points_at_slope(rows, slope).tolist() == expected


def test_a_higher_penalty_never_makes_more_cuts(rng: np.random.Generator) -> None:
    rows = video(rng, 400, 6)
    counts = [len(kts.change_points(rows, penalty=penalty)) for penalty in (0.01, 0.1, 0.5, 1.0, 2.0, 8.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.parametrize(("shortest", "longest"), [(1, 40), (5, 12), (70, 150), (100, 100), (54, 56)])
def test_limits_on_shots_are_kept(rng: np.random.Generator, shortest: Any, longest: Any) -> None:
    rows = video(rng, 600, 4)
    found = kts.change_points(rows, penalty=0.2, min_steps=shortest, max_steps=longest)
    lengths = np.diff(np.concatenate(([0], found, [600])))
    assert lengths.min() >= shortest
    assert lengths.max() <= longest
    expected, costs = twin.segmentation(rows, penalty=0.2, min_steps=shortest, max_steps=longest)
    assert has_clear_winner(costs)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 20])
def test_a_limit_on_the_cuts_gives_the_best_within_it(rng: np.random.Generator, most: Any) -> None:
    rows = video(rng, 300, 6, shot=10)
    assert len(kts.change_points(rows, penalty=0.05)) > 20
    expected, _ = twin.segmentation(rows, penalty=0.05, max_change_points=most)
    assert kts.change_points(rows, penalty=0.05, max_change_points=most).tolist() == expected.tolist()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-30, 1e30])
@pytest.mark.parametrize("n_steps", [1, 2, 64, 65, 500])
def test_a_constant_sequence_is_one_shot(value: Any, n_steps: int) -> None:
    assert kts.change_points(np.full((n_steps, 3), value)).tolist() == []


def test_exact_blocks_are_found_with_repeated_and_zero_rows() -> None:
    rows = np.concatenate([np.zeros((70, 4)), *([np.eye(4)[k]] * 45 for k in range(4)), np.zeros((66, 4))])
    cuts = [70, 115, 160, 205, 250]
    assert kts.change_points(rows).tolist() == cuts
    assert kts.change_points(rows[::-1]).tolist() == [len(rows) - cut for cut in reversed(cuts)]


def test_ties_go_to_the_earlier_cut() -> None:
    # The middle row is as near to the one side as to the other.
    assert kts.change_points_at_slope([[0.0], [0.0], [1.0], [2.0], [2.0]], 1.0).tolist() == [2]
    # Every row a shot costs as much as one shot, and as everything between: the first start wins.
    assert kts.change_points_at_slope(np.eye(6), 1.0).tolist() == []


def test_a_frozen_picture_does_not_slow_the_pass(rng: np.random.Generator) -> None:
    rows = np.concatenate([video(rng, 300, 4), np.repeat(video(rng, 1, 4), 20_000, axis=0)])
    problem = penalised.Penalised(rows, penalised.Limits(1, len(rows), len(rows)))
    problem.solve(1.0)
    assert problem.n_tiles < 3 * len(rows) / penalised.TILE


def test_an_endless_shot_costs_two_tiles_per_block(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((20_000, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    problem = penalised.Penalised(rows, penalised.Limits(1, len(rows), len(rows)))
    assert problem.solve(6.0).change_points.tolist() == []
    assert problem.n_tiles < 2.2 * len(rows) / penalised.TILE


def test_type_and_layout_of_the_rows_do_not_matter(rng: np.random.Generator) -> None:
    rows = video(rng, 200, 8).astype(np.float16)
    wide = np.zeros((400, 16), dtype=np.float32)
    wide[::2, ::2] = rows
    read_only = rows.astype(np.float32)
    read_only.setflags(write=False)
    expected = kts.change_points(rows.astype(np.float64)).tolist()
    kts.change_points(rows.astype(np.float32))
    signatures = [len(function.dispatcher.signatures) for function in compiled_functions()]
    assert len(expected) > 2
    for same in (
        rows,
        rows.astype(np.float32),
        rows.astype(">f4"),
        rows.astype(">f8"),
        np.asfortranarray(rows, dtype=np.float32),
        np.asfortranarray(rows, dtype=np.float64),
        wide[::2, ::2],
        read_only,
        rows.tolist(),
    ):
        assert kts.change_points(same).tolist() == expected
    assert [len(function.dispatcher.signatures) for function in compiled_functions()] == signatures


def compiled_functions() -> list[Any]:
    modules = (kts, penalised)
    return [value for module in modules for value in vars(module).values() if isinstance(value, Compiled)]


def test_whole_numbers_are_taken() -> None:
    assert kts.change_points(np.array([[0, 0]] * 5 + [[9, 9]] * 5, dtype=np.uint8)).tolist() == [5]


def test_arguments_are_left_alone(rng: np.random.Generator) -> None:
    rows = video(rng, 100, 4)
    before = rows.copy()
    kts.change_points(rows, max_change_points=2)
    np.testing.assert_array_equal(rows, before)


def test_several_threads_at_once_give_the_same_answers(rng: np.random.Generator) -> None:
    problems = [video(np.random.default_rng(seed), 500, 8) for seed in range(8)]
    expected = [kts.change_points(rows).tolist() for rows in problems]
    found = [None] * len(problems)

    def work(at: int) -> None:
        found[at] = kts.change_points(problems[at]).tolist()

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def run_python(code: str, **environment: Any) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_no_number_of_threads_changes_the_answer(rng: np.random.Generator, n_threads: Any) -> None:
    rows = np.repeat(video(rng, 800, 6), 3, axis=0)
    limits = penalised.Limits(1, 2401, 2401)
    one, several = penalised.Penalised(rows, limits), penalised.Penalised(rows, limits, n_threads=n_threads)
    for slope in (2.0, 0.1, 5.0):
        np.testing.assert_array_equal(one.solve(slope).values, several.solve(slope).values)
    expected = kts.change_points(rows, n_threads=1).tolist()
    assert kts.change_points(rows, n_threads=n_threads).tolist() == expected


@pytest.mark.parametrize("n_tiles", [3, 20, 60])
def test_threads_that_run_out_of_memory_for_tiles_do_no_harm(rng: np.random.Generator, n_tiles: Any) -> None:
    rows = video(rng, 2400, 4, shot=300)
    limits = penalised.Limits(1, 2401, 2401)
    expected = penalised.Penalised(rows, limits).solve(1.0).values
    for _ in range(5):
        scarce = penalised.Penalised(rows, limits, n_threads=4, memory=n_tiles * 8 * penalised.TILE**2)
        for _ in range(2):
            np.testing.assert_array_equal(scarce.solve(1.0).values, expected)


def test_three_thousand_steps_take_less_than_a_second(rng: np.random.Generator) -> None:
    rows = video(rng, 3000, 1024).astype(np.float32)
    kts.change_points(rows[:200])
    began = time.thread_time()
    kts.change_points(rows)
    assert time.thread_time() - began < 1.0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc to measure memory")
def test_memory_is_bounded_at_twenty_thousand_steps() -> None:
    code = """
import numpy as np
from vsum_runtime.kernels import kts
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
draws = np.random.default_rng(0)
rows = np.cumsum(draws.standard_normal((20_000, 16)), axis=0).astype(np.float32)
kts.change_points(rows[:200])
before = peak()
kts.change_points(rows, penalty=100.0)
print(peak() - before)
"""
    assert int(run_python(code)) < 200e6


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.zeros((0, 4)), {}, r"features: .*shape \(0, 4\)"),
        (np.zeros((4, 0)), {}, r"features: .*shape \(4, 0\)"),
        (np.zeros(4), {}, r"features: .*shape \(4,\)"),
        (np.zeros((2, 2, 2)), {}, "features"),
        (np.array([["a", "b"]]), {}, "features: expected real numbers"),
        (np.zeros((3, 2), dtype=complex), {}, "features: expected real numbers, got complex128"),
        ([[0.0], [np.nan], [1.0]], {}, "features: .*NaN or infinity in row 1"),
        ([[0.0], [1.0], [-np.inf]], {}, "features: .*NaN or infinity in row 2"),
        ([[0.0], [1e200], [1.0]], {}, "features: .*squares are finite"),
        (np.zeros((5, 2)), {"max_change_points": 5}, "max_change_points: expected 0 .. 4 .*got 5"),
        (np.zeros((5, 2)), {"max_change_points": -1}, "max_change_points: .*got -1"),
        (np.zeros((5, 2)), {"min_steps": 0}, "min_steps: .*got 0"),
        (np.zeros((5, 2)), {"min_steps": 6}, "min_steps: expected 1 .. 5, .*got 6"),
        (np.zeros((5, 2)), {"min_steps": 3, "max_steps": 2}, "max_steps: .*got 2"),
        (np.zeros((5, 2)), {"max_steps": 0}, "max_steps: .*got 0"),
        (np.zeros((5, 2)), {"min_steps": 3, "max_steps": 4}, "no way to cut 5 steps"),
        (np.zeros((9, 2)), {"max_steps": 4, "max_change_points": 1}, "no way to cut 9 steps"),
        (np.zeros((8, 2)), {"max_steps": 4, "max_change_points": 1, "short_first_shot": True}, "no way to cut"),
        (np.zeros((5, 2)), {"penalty": 0.0}, "penalty: .*got 0.0"),
        (np.zeros((5, 2)), {"penalty": -1.0}, "penalty"),
        (np.zeros((5, 2)), {"penalty": np.nan}, "penalty: .*got nan"),
        (np.zeros((5, 2)), {"penalty": np.inf}, "penalty: .*got inf"),
        (np.zeros((5, 2)), {"sampling": 0.5}, "sampling: .*got 0.5"),
        (np.zeros((5, 2)), {"sampling": np.inf}, "sampling"),
        (np.zeros((5, 2)), {"n_threads": 0}, "n_threads: .*got 0"),
    ],
)
def test_bad_input_is_refused(features: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kts.change_points(features, **options)


@pytest.mark.parametrize("slope", [-1.0, np.nan, np.inf])
def test_a_bad_slope_is_refused(slope: float) -> None:
    with pytest.raises(ValueError, match="slope: expected a finite number >= 0"):
        kts.change_points_at_slope(np.zeros((5, 2)), slope)
