"""Short sequences, cut without the compiler: the same cuts as the compiled pass gives, which the slow twin confirms."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import ROOT
from tests.kernels.test_kts import some_rows, video
from tests.reference import kts as twin
from vsum_runtime.kernels import compiled, dense, kts, penalised


def test_random_sequences_have_the_cuts_of_the_compiled_pass(rng: np.random.Generator, not_started: None) -> None:
    for trial in range(150):
        n_steps, size = int(rng.integers(1, 200)), int(rng.choice([1, 3, 64, 100, 130]))
        rows = some_rows(rng, n_steps, size).astype(str(rng.choice(["float32", "float64"])))
        shortest = int(rng.integers(1, min(6, n_steps) + 1))
        longest = int(rng.integers(shortest, n_steps + 1))
        first = longest - (trial % 3 == 0)
        limits = penalised.Limits(shortest, longest, first)
        if first < shortest or -(-n_steps // longest) * shortest > n_steps:
            continue
        slopes = (0.0, 1e-3, 0.1, 2.0, 50.0)
        short = dense.Dense(rows, limits)
        found = [short.solve(slope) for slope in slopes]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiled, "_started", set())  # what `Penalised` starts ends with the block
            long = penalised.Penalised(rows, limits)
            expected = [long.solve(slope) for slope in slopes]
        assert short.tolerance == pytest.approx(long.tolerance, rel=1e-12)
        assert short.scatter_of_all() == pytest.approx(long.scatter_of_all(), rel=1e-9, abs=2 * long.tolerance)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.change_points.tolist() == theirs.change_points.tolist()
            np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-9, atol=4 * n_steps * long.tolerance)


@pytest.mark.parametrize("options", [{}, {"min_steps": 3, "max_steps": 17}, {"penalty": 0.1}, {"sampling": 15}])
def test_change_points_are_those_of_the_slow_twin(
    rng: np.random.Generator, not_started: None, options: dict[str, Any]
) -> None:
    for n_steps in (1 if not options else 12, 64, 65, 129):
        rows = video(rng, n_steps, 7)
        assert kts.change_points(rows, **options).tolist() == twin.change_points(rows, **options).tolist()


def test_repeated_rows_go_to_the_earlier_cut(not_started: None) -> None:
    rows = np.repeat([[0.0], [1.0], [0.0]], [40, 50, 45], axis=0)
    assert kts.change_points(rows).tolist() == [40, 90]
    assert kts.change_points(np.ones((300, 2))).tolist() == []
    assert kts.change_points(np.ones((30, 2)), max_steps=12).tolist() == [6, 18]


def test_a_price_of_a_cut_gives_the_same_cuts(rng: np.random.Generator, not_started: None) -> None:
    rows = video(rng, 300, 16)
    assert kts.change_points_at_slope(rows, 0.4).tolist() == penalised_cuts(rows, 0.4)


def penalised_cuts(rows: NDArray[np.float64], slope: float) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_started", set())
        limits = penalised.Limits(1, len(rows) + 1, len(rows) + 1)
        return penalised.Penalised(rows, limits).solve(slope).change_points.tolist()


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "infinity in row 3"), (np.inf, "in row 3"), (1e200, "squares")]
)
def test_rows_that_are_not_finite_are_refused(not_started: None, value: Any, message: str) -> None:
    rows = np.ones((9, 2))
    rows[3, 1] = value
    with pytest.raises(ValueError, match=message):
        kts.change_points(rows)


def test_patience_ends_with_one_long_sequence_or_with_many_short_ones() -> None:
    code = """
import sys
import numpy as np
from vsum_runtime.kernels import compiled, kts, penalised
compiled.start_compiler = lambda module: sys.exit(f"starts {module}")
n_steps = int(sys.argv[1])
rows = np.zeros((n_steps, 64), dtype=np.float32)
for _ in range(int(sys.argv[2])):
    kts.change_points(rows)
print("numba" in sys.modules)
"""

    def run(*arguments: Any) -> Any:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert run(1000, 1).stdout.strip() == "False"
    for arguments in ((9000, 1), (100, 100)):
        assert "starts vsum_runtime.kernels.penalised" in run(*arguments).stderr
