"""The benchmark of GPUs, rehearsed on the CPU: the same code, one tiny model, no row that could pass for a GPU's."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import bench
from benchmarks.gpu.contestants import CONTESTANTS, padded
from benchmarks.measure.rows import RESULTS, Results, Row, read, write
from benchmarks.pages import gpus
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import MODELS


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert bench.main(["--dry-run", "--out", str(out), "--graphs", str(out / "graphs")]) == 0
    return out


def _rows(folder: Path) -> dict[tuple[str, str, str], Row]:
    """By shape, contestant and metric."""
    return {row.key[1:]: row for row in read(folder / "gpu_cpu.json") if row.what != bench.CEILINGS}


SHAPES = [*bench.REHEARSAL.first, *bench.REHEARSAL.rest]


def test_rehearsal_measures_every_contestant_or_says_why_not(rehearsed: Path) -> None:
    rows = _rows(rehearsed)
    assert {row.run.device for row in rows.values()} == {"cpu"}
    for shape, contestant in product(SHAPES, CONTESTANTS):
        request = rows[shape.name, contestant.label, bench.REQUEST]
        if contestant.name.startswith(("tensorrt", "torch.compile")):
            assert request.p50 is None
            assert request.note.startswith("absent: ")
        else:
            assert request.p50 is not None, request.note
            found = {
                metric: row.p50 for (*where, metric), row in rows.items() if where == [shape.name, contestant.label]
            }
            assert found["largest difference"] < 1e-3
            assert found["same summaries"] == 1.0
            assert rows[shape.name, contestant.label, "resident"].runs >= 3


def test_the_floor_is_the_time_of_the_products_or_of_the_bytes(rehearsed: Path) -> None:
    ceilings = {row.implementation: row.p50 for row in read(rehearsed / "gpu_cpu.json") if row.what == bench.CEILINGS}
    rows = _rows(rehearsed)
    share, resident = (rows["2 x 12", "torch eager fp32", metric].p50 for metric in ("share of the floor", "resident"))
    bytes_s = 2 * 12 * 17 * 4 / ceilings["copy"]
    products_s = 2 * 12 * 12 * 16 * 2 / ceilings["products, tf32"]
    assert share * resident >= max(bytes_s, products_s)


def test_second_run_keeps_rows_and_tries_nothing_again_that_ended_the_process(rehearsed: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpu_cpu.json"
    rows = read(rehearsed / "gpu_cpu.json")
    ended = next(row for row in rows if row.metric == bench.REQUEST and row.p50 is not None)
    started = replace(ended, p20=None, p50=None, p80=None, runs=0, note=bench.STARTED)
    write(path, [started if row.key == started.key else row for row in rows])
    assert bench.main(["--dry-run", "--out", str(tmp_path), "--graphs", str(rehearsed / "graphs")]) == 0
    again = {row.key: row for row in read(path)}
    assert again[ended.key].note == "error: the process ended during this row"
    kept = [row for row in rows if row.p50 is not None and row.what != bench.CEILINGS and row.key != ended.key]
    assert [again[row.key] for row in kept] == kept


def test_every_model_has_been_built_in_both_precisions() -> None:
    rows = read(RESULTS / "trt_build.json")
    times = [row for row in rows if row.metric == "time"]
    assert [(row.what, row.size) for row in times] == list(product(MODELS, ("fp32", "fp16")))
    assert all(row.p50 is not None for row in rows)
    assert max(row.p50 for row in rows if row.metric.startswith("memory")) < 8e9


def test_rows_of_a_cpu_never_reach_the_page(rehearsed: Path) -> None:
    with pytest.raises(InputError, match="measured on a GPU, got rows of the rehearsal"):
        gpus.measured(read(rehearsed / "gpu_cpu.json"))


def test_no_row_is_left_out_of_the_page(rehearsed: Path) -> None:
    rows = read(rehearsed / "gpu_cpu.json")
    of_a_card = [replace(row, run=replace(row.run, device="a card")) for row in rows]  # to see the table
    text = gpus.measured(of_a_card)
    requests = [row for row in rows if row.metric == bench.REQUEST and row.p50 is not None]
    assert text.count("\n| nonlocal_ridge |") == len(requests) > 0
    assert "- ours, tensorrt fp16, 3 rows: absent: " in text
    assert "| copy | " in text


def test_time_that_is_up_starts_no_row(tmp_path: Path) -> None:
    config, results = bench.BenchConfig(device="cpu", minutes=0.0), Results("x", ())
    assert bench.Bench(config, tmp_path, results, [], {}).run() == 0
    assert results.rows == []


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
