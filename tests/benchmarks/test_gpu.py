"""The benchmark of GPUs, rehearsed on the CPU: the same code, one tiny model, no row that could pass for a GPU's."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import bench
from benchmarks.gpu.contestants import CONTESTANTS, padded
from benchmarks.measure.rows import RESULTS, read
from benchmarks.pages import gpus
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import MODELS


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert bench.main(["--dry-run", "--out", str(out), "--graphs", str(out / "graphs")]) == 0
    return out


def _rows(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "cpu.json").read_text())["rows"])


def test_rehearsal_measures_every_contestant_or_says_why_not(rehearsed: Path) -> None:
    rows = _rows(rehearsed)
    shapes = [*bench.REHEARSAL.first, *bench.REHEARSAL.rest]
    assert len(rows) == len(CONTESTANTS) * len(shapes)
    assert {row["device"] for row in rows} == {"cpu"}
    for row in rows:
        if row["contestant"].startswith(("tensorrt", "torch.compile")):
            assert row["status"] == "absent"
            assert row["reason"]
        else:
            assert row["status"] == "ok", row
            assert row["max_abs_difference"] < 1e-3
            assert row["same_summaries"] == row["videos_checked"]
            assert row["request_p50_s"] > 0
            assert row["resident_calls"] >= 3


def test_floor_counts_the_products_of_the_model(rehearsed: Path) -> None:
    row = next(row for row in _rows(rehearsed) if row["shape"] == "2 x 12" and row["contestant"] == "torch eager fp32")
    similarity, embedding = 2 * 12 * 12 * 16, 2 * 12 * 16 * 16
    assert row["operations"] >= 2 * min(similarity, embedding)
    assert row["bytes"] > 2 * 12 * 16 * 4
    assert row["of_floor"] == pytest.approx(row["floor_s"] / row["resident_p50_s"])


def test_second_run_keeps_rows_and_tries_no_row_again_that_ended_the_process(rehearsed: Path, tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    whole = json.loads((rehearsed / "cpu.json").read_text())
    kept = [row for row in whole["rows"] if row["status"] == "ok"]
    ended = {**kept[0], "status": "started"}
    path.write_text(json.dumps({**whole, "rows": [ended, *kept[1:]]}))
    assert bench.main(["--dry-run", "--out", str(tmp_path), "--graphs", str(rehearsed / "graphs")]) == 0
    rows = _rows(tmp_path)
    assert rows[0]["reason"] == "the process ended during this row"
    assert rows[1 : len(kept)] == kept[1:]


def test_every_model_has_been_built_in_both_precisions() -> None:
    rows = read(RESULTS / "trt_build.json")
    times = [row for row in rows if row.metric == "time"]
    assert [(row.what, row.size) for row in times] == list(product(MODELS, ("fp32", "fp16")))
    assert all(row.p50 is not None for row in rows)
    assert max(row.p50 for row in rows if row.metric.startswith("memory")) < 8e9


def test_rows_of_a_cpu_never_reach_the_page(rehearsed: Path) -> None:
    with pytest.raises(InputError, match=r"measured on a GPU, got .* of device 'cpu'"):
        gpus.measured(rehearsed)


def test_no_row_is_left_out_of_the_page(rehearsed: Path) -> None:
    whole = json.loads((rehearsed / "cpu.json").read_text())
    for row in whole["rows"]:
        row["device"] = "cuda"  # to see the table; made here and thrown away
    text = gpus.section(whole)
    measured = [row for row in whole["rows"] if row["status"] == "ok"]
    assert text.count("\n| nonlocal_ridge |") == len(measured)
    assert "tensorrt fp16, 3 rows, absent" in text


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert gpus.measured(tmp_path) == "Not measured yet."


def test_time_that_is_up_starts_no_row(tmp_path: Path) -> None:
    rows = bench.Rows(tmp_path / "x.json", {"card": "cpu", "commit": "c"})
    config = bench.BenchConfig(device="cpu", minutes=0.0)
    assert bench.Bench(config, tmp_path, rows, {}).run() == 0
    assert rows.rows == []


def test_important_rows_come_first() -> None:
    order = [(name, contestant.name, shape.name) for _, name, contestant, shapes in bench.schedule(bench.BenchConfig())
             for shape in shapes]  # fmt: skip
    first = order.index(("csta", "torch-cuda-graph", "32 of TVSum"))
    assert first < order.index(("csta", "torch-cuda-graph", "1 x 60"))
    assert first < order.index(("csta", "torch.compile max-autotune fp16", "1 x 320"))
    assert {name for name, _, _ in order} == set(bench.MODELS)
    assert {shape.partition(" ")[0] for _, _, shape in order} == {"1", "8", "32"}


def test_ragged_batches_are_padded_with_zeros() -> None:
    features, lengths = padded([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)])
    assert lengths.tolist() == [2, 4]
    assert features[0, 2:].sum() == 0


@pytest.mark.parametrize("script", ["run.sh", "prepare.sh"])
def test_scripts_parse_and_tell_their_use(script: str) -> None:
    path = bench.HERE / script
    subprocess.run(["bash", "-n", path], check=True)
    arguments = ["--no-such-option"] if script == "run.sh" else []
    told = subprocess.run([path, *arguments], capture_output=True, text=True)
    assert told.returncode == 2
    assert f"benchmarks/gpu/{script}" in told.stderr
