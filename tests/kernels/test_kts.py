import numpy as np

from kernels import kts


def golden_rows(golden, case, salt):
    if case["name"].startswith("walk"):
        draws = golden.fill._rng(f"walk-{case['n']}x64", salt)
        rows = np.cumsum(0.1 * draws.standard_normal((case["n"], 64)), axis=0)
        rows += 0.3 * draws.standard_normal((case["n"], 64))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if isinstance(case["features"], str):
        return golden.fill.features(case["n"], 1024, salt)
    if isinstance(case["features"], dict):
        return np.array(case["features"]["all_rows"])
    return np.array(case["features"])


def test_golden_cases_are_reproduced(golden):
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


def test_golden_edge_cases_are_reproduced(golden):
    for case in golden.cases("kts")["edge_cases"]:
        rows = golden_rows(golden, case, "")
        found = kts.change_points(rows, penalty=case["vmax"], max_change_points=case["max_ncp"])
        assert found.tolist() == case["change_points"], case["name"]
