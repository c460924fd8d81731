"""The parity report: an exported bundle against PyTorch, and what it says when scores differ."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import bundles
from benchmarks.measure.rows import read
from vsum_runtime.export.convert import ExportConfig, export
from vsum_runtime.training.cli import main as train
from vsum_runtime.training.datasets import Video, prepare, read_dataset
from vsum_runtime.training.judge import Rules


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Path, Path]:
    """Six videos with clear shots, prepared, and a split file."""
    rng = np.random.default_rng(5)
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        for number in range(1, 7):
            group, n_steps = file.create_group(f"video_{number}"), 60
            scenes = np.repeat(rng.normal(size=(20, 16)), 3, axis=0)
            group["features"] = (scenes + 0.05 * rng.normal(size=scenes.shape)).astype(np.float32)
            group["picks"], group["n_frames"] = np.arange(0, 15 * n_steps, 15), 15 * n_steps
            scores = rng.integers(1, 6, size=(3, n_steps)).repeat(15, axis=1)
            group["user_scores"], group["gtscore"] = scores.astype(np.uint8), scores[:, ::15].mean(axis=0) / 5
    prepare(tmp_path / "plain.h5", tmp_path / "six.h5")
    keys = [f"video_{n}" for n in range(1, 7)]
    (tmp_path / "splits.json").write_text(json.dumps([{"train_keys": keys[:4], "test_keys": keys[4:]}]))
    return tmp_path / "six.h5", tmp_path / "splits.json"


def test_an_exported_bundle_makes_the_summaries_of_pytorch(videos: tuple[Path, Path], tmp_path: Path) -> None:
    files = ["--dataset", str(videos[0]), "--splits", str(videos[1])]
    assert train(["--model", "nonlocal_ridge", *files, "--option", "rank=4", "--runs", str(tmp_path / "runs")]) == 0
    checkpoint = tmp_path / "runs/six/nonlocal_ridge/split1/best.safetensors"
    export(ExportConfig(checkpoint, tmp_path / "bundle", "fp16", features="none"))
    given = ["--bundle", str(tmp_path / "bundle"), "--checkpoint", str(checkpoint), *files]
    assert bundles.main([*given, "--out", str(tmp_path / "out.json")]) == 0
    rows = {(row.implementation, row.metric): row for row in read(tmp_path / "out.json") if row.what == "bundle"}
    single, half = ({metric: row.p50 for (who, metric), row in rows.items() if who == name} for name in ENGINES)
    assert {row.size for row in rows.values() if row.implementation == bundles.HALF} == {"fp16"}
    assert (single["videos"], single["same summaries"], half["same summaries"]) == (2, 1.0, 1.0)
    assert 0 < half["largest difference"] < 1e-3
    assert single["largest difference"] < 1e-5
    assert single["time"] > 0
    assert "time" not in half
    assert rows["ort-cpu", "same summaries"].note == ""


ENGINES = ("ort-cpu", bundles.HALF)


def test_an_engine_that_changes_a_summary_is_named(videos: tuple[Path, Path]) -> None:
    dataset = read_dataset(videos[0])
    tested: list[Video] = [dataset.videos["video_5"], dataset.videos["video_6"]]
    rng = np.random.default_rng(0)
    reference = [rng.random(60).astype(np.float32) for _ in tested]
    other = [reference[0] * np.float32(0.5), reference[1][::-1]]
    found, changed = bundles.compare(dataset, tested, reference, other, Rules("tvsum-annotators-at-picks"))
    assert changed == ["video_6"]
    assert found["same summaries"] == 0.5
    assert found["least tau between"] < 0.5 < found["mean tau between"] + 0.5
    assert found["change of tau"] != 0.0
