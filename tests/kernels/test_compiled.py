"""Compiled code is ready when needed: caches that survive a read-only installation and processes that start together.

A package with one small kernel stands for the whole, because compiling it takes a fraction of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

TINY = """
from vsum_runtime.kernels.compiled import compiled

@compiled
def double(x):
    return 2 * x
"""

USE = """
import json
import os
from kernels.tiny import double
from vsum_runtime.kernels import compiled

compiled.start_compiler("kernels.tiny")
result = double(float(os.environ["HALF"]) if "HALF" in os.environ else 21)
stats = double.dispatcher.stats
print(json.dumps([result, sum(stats.cache_misses.values()), stats.cache_path]))
"""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """A folder with the package in it, a home folder, and who uses them; unlocked again afterwards."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.py").write_text(TINY)
    (tmp_path / "home").mkdir()
    yield tmp_path
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)


def lock(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def environment(installation: Path, **more: Any) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "XDG", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(installation / "site"), "HOME": str(installation / "home"), **more}


# The super-user may write into locked folders, until CAP_DAC_OVERRIDE is taken from what the process executes next.
AS_ANYBODY = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def start(installation: Path, **more: Any) -> subprocess.Popen[str]:
    is_root = sys.platform == "linux" and os.getuid() == 0
    return subprocess.Popen(
        [sys.executable, "-c", AS_ANYBODY, USE] if is_root else [sys.executable, "-c", USE],
        env=environment(installation, **more),
        cwd=installation,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], expected: float = 42) -> tuple[int, Path | None]:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert error == ""
    result, n_compiled, path = json.loads(out)
    assert result == expected
    return n_compiled, path and Path(path)


def run(installation: Path, **more: Any) -> Any:
    return finish(start(installation, **more))


def test_code_is_compiled_once_and_kept_beside_the_source(installation: Path) -> None:
    cache = installation / "site" / "kernels" / "__pycache__"
    assert run(installation) == (1, cache)
    assert run(installation) == (0, cache)


def test_a_read_only_installation_uses_the_cache_it_was_given(installation: Path) -> None:
    run(installation)
    lock(installation)
    assert run(installation)[0] == 0


def test_a_read_only_installation_without_a_cache_keeps_it_for_the_user(installation: Path) -> None:
    lock(installation / "site")
    assert run(installation)[0] == 1
    assert run(installation)[0] == 0
    assert list((installation / "home").rglob("tiny.double*.nbc"))


def test_code_runs_where_nothing_can_be_written(installation: Path) -> None:
    lock(installation)
    assert run(installation)[0] == 1


def test_a_folder_can_be_named(installation: Path) -> None:
    lock(installation / "site")
    named = installation / "named"
    named.mkdir()
    assert run(installation, NUMBA_CACHE_DIR=str(named))[0] == 1
    assert run(installation, NUMBA_CACHE_DIR=str(named))[0] == 0
    assert list(named.rglob("tiny.double*.nbc"))


def test_processes_that_start_together_do_not_disturb_each_other(installation: Path) -> None:
    for process in [start(installation) for _ in range(4)]:
        finish(process)
    assert run(installation)[0] == 0
    assert not list(installation.rglob("*.tmp.*"))


OTHER_PROCESSOR = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


def test_processors_that_share_a_folder_keep_their_code_apart(installation: Path) -> None:
    assert run(installation)[0] == 1
    assert run(installation, **OTHER_PROCESSOR)[0] == 1
    assert run(installation)[0] == run(installation, **OTHER_PROCESSOR)[0] == 0
    assert len(list(installation.rglob("tiny.double*"))) == 2


def test_processors_and_types_that_compile_at_once_do_not_take_each_others_code(installation: Path) -> None:
    """numba's own index would name one file for all four."""
    kinds = [{"HALF": half, **processor} for half in ("0.25", "21.0") for processor in ({}, OTHER_PROCESSOR)]
    kinds += [dict(processor) for processor in ({}, OTHER_PROCESSOR)]
    answers = [2 * float(kind.get("HALF", 21)) for kind in kinds]
    for process, answer in zip([start(installation, **kind) for kind in kinds], answers, strict=True):
        finish(process, answer)
    for kind, answer in zip(kinds, answers, strict=True):
        assert finish(start(installation, **kind), answer)[0] == 0
    assert len(list(installation.rglob("tiny.double*"))) == 4


def test_nothing_is_made_in_a_home_that_is_not_needed(installation: Path) -> None:
    run(installation)
    assert list((installation / "home").iterdir()) == []


def test_a_damaged_cache_is_no_cache(installation: Path) -> None:
    run(installation)
    (damaged,) = (installation / "site").rglob("tiny.double*.nbc")
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert run(installation)[0] == 1


def test_changed_code_is_compiled_anew(installation: Path) -> None:
    run(installation)
    (installation / "site" / "kernels" / "tiny.py").write_text(TINY.replace("2 * x", "x + x"))
    assert run(installation)[0] == 1


def test_warm_up_leaves_nothing_to_compile() -> None:
    """After ``python -m kernels``, a fresh process finds all code that any call can need."""
    code = """
import json
import numpy as np
from vsum_runtime.kernels import __main__ as warm, knapsack, kts, kts_stream, metrics, nms, penalised, shot_scores
warm.warm_up()
before = [len(function.signatures) for function in warm.dispatchers()]
for dtype in (np.float16, np.float32, np.float64, np.int64):
    for rows in (np.arange(900).reshape(300, 3) % 7, np.arange(1800).reshape(300, 6)[:, ::2] % 7):
        rows = np.asfortranarray(rows.astype(dtype))
        kts.change_points(rows, penalty=5.0)
        kts.change_points(rows, penalty=0.5, max_change_points=40, min_steps=2, max_steps=90)
        kts.change_points_at_slope(rows, 3.0)
        stream = kts_stream.Stream(steps_per_cut=9, max_steps=50, min_steps=2)
        stream.push(rows)
        stream.finish()
shot_scores.pool(np.ones(2, np.float32), np.array([0, 5], np.int32), np.asfortranarray([[0, 3], [3, 9]]), np.int32(9))
knapsack.pack(np.arange(9, dtype=np.float32), np.arange(1, 10, dtype=np.uint16), np.int16(20))
nms.keep(np.array([[0, 4], [1, 5]], np.int32), np.array([0.5, 0.6], np.float32), iou_threshold=1)
for dtype in (bool, np.uint8, np.float32):
    curves = np.asfortranarray(np.arange(40).reshape(4, 10) % 3).astype(dtype)
    metrics.kendall_tau(curves[0], curves[1:])
    metrics.spearman_rho(curves[0], curves[1:])
after = [len(function.signatures) for function in warm.dispatchers()]
n_compiled = sum(sum(function.stats.cache_misses.values()) for function in warm.dispatchers())
print(json.dumps([len(before), sum(after) - sum(before), n_compiled]))
"""
    warm_up = [sys.executable, "-m", "kernels"]
    subprocess.run(warm_up, cwd=ROOT, check=True, capture_output=True, timeout=500)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    n_functions, n_new_signatures, n_compiled = json.loads(result.stdout)
    assert n_functions >= 15
    assert n_new_signatures == 0
    assert n_compiled == 0


def test_the_logic_is_the_same_without_the_compiler() -> None:
    """``NUMBA_DISABLE_JIT=1`` runs the same lines in plain Python, for coverage and debugging."""
    code = """
import numpy as np
from vsum_runtime.kernels import compiled, knapsack, kts, kts_stream, metrics, nms, shot_scores
from tests.reference import knapsack as slow_knapsack, kts as slow_kts, metrics as slow_metrics
from tests.reference import nms as slow_nms, shot_scores as slow_shot_scores

from vsum_runtime.kernels import __main__ as warm
for module in warm.MODULES:
    compiled.start_compiler(module.__name__)
assert knapsack._pack.dispatcher is knapsack._pack.py_func
draws = np.random.default_rng(0)
rows = np.repeat(draws.standard_normal((12, 2)), 12, axis=0) + 0.1 * draws.standard_normal((144, 2))
for options in ({}, {"min_steps": 5, "max_steps": 40}, {"penalty": 0.02, "max_change_points": 6}):
    assert kts.change_points(rows, **options).tolist() == slow_kts.change_points(rows, **options).tolist()
stream = kts_stream.Stream(steps_per_cut=12, max_steps=40)
cuts = stream.push(rows).tolist() + stream.finish().tolist()
assert cuts == kts.change_points_at_slope(rows, kts.slope(12), max_steps=40).tolist()
for _ in range(20):
    lengths, values = draws.integers(1, 9, 12), draws.integers(0, 9, 12) / 8
    assert knapsack.pack(values, lengths, 20).tolist() == slow_knapsack.pack(values, lengths.tolist(), 20)
    np.testing.assert_allclose(
        metrics.kendall_tau(values, [lengths]), [slow_metrics.kendall_tau(values, lengths)], atol=1e-12
    )
    np.testing.assert_allclose(
        metrics.spearman_rho(values, [lengths]), [slow_metrics.spearman_rho(values, lengths)], atol=1e-12
    )
    boxes = np.stack([lengths, lengths + 4], axis=1)
    assert nms.keep(boxes, values).tolist() == slow_nms.keep(boxes, values)
shots = np.array([[0, 10], [12, 40]])
np.testing.assert_allclose(
    shot_scores.pool([1.0, 2.0], [3, 15], shots, 40), slow_shot_scores.pool([1.0, 2.0], [3, 15], shots, 40)
)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
