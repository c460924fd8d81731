import numpy as np

from kernels import knapsack


def test_golden_problems_are_solved_with_the_reference_choice(golden):
    file = golden.cases("knapsack")
    for case in file["instances"]:
        chosen = knapsack.pack(case["values"], case["weights"], case["capacity"])
        assert np.array(case["weights"])[chosen].sum() <= case["capacity"]
        assert abs(np.array(case["values"])[chosen].sum() - case["optimal_value"]) <= 1e-9
        assert chosen.tolist() == case["peers"]["float64_table"]["selected"], case["id"]


def large_problem(golden, case):
    draws = golden.fill._rng(f"knapsack-large-{case['name']}", "public")
    if case["name"] == "two-hours":
        lengths = draws.integers(30, 190, case["n"])
        values = draws.integers(1, 2**20, case["n"])
    else:
        lengths = draws.integers(20, 300, case["n"])
        values = 4096 * lengths + draws.integers(0, 20000, case["n"])
    assert lengths[:5].tolist() == case["weights_head"]
    assert values[:5].tolist() == case["values_int_head"]
    return values, lengths


def test_golden_large_problems_reach_the_optimum(golden):
    for case in golden.cases("knapsack")["large"]:
        values, lengths = large_problem(golden, case)
        chosen = knapsack.pack(values / 2**20, lengths, case["capacity"])
        assert lengths[chosen].sum() <= case["capacity"]
        assert values[chosen].sum() == case["optimal_value_int"]
