"""The parity report: an exported bundle against PyTorch, and what it says when scores differ."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import accuracy
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


def test_an_exported_bundle_makes_the_summaries_of_pytorch(
    videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--dataset", str(videos[0]), "--splits", str(videos[1])]
    assert train(["--model", "nonlocal_ridge", *files, "--option", "rank=4", "--runs", str(tmp_path / "runs")]) == 0
    checkpoint = tmp_path / "runs/six/nonlocal_ridge/split1/best.safetensors"
    export(ExportConfig(checkpoint, tmp_path / "bundle", "fp16", features="none"))
    capsys.readouterr()
    given = ["--bundle", str(tmp_path / "bundle"), "--checkpoint", str(checkpoint), *files]
    assert accuracy.main([*given, "--out", str(tmp_path / "out.json")]) == 0
    rows = {row["backend"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    half, row = rows[accuracy.HALF], rows["ort-cpu"]
    assert (half["precision"], half["same_summary_rate"], half["latency"]) == ("fp16", 1.0, None)
    assert 0 < half["max_abs_difference"] < 1e-3
    assert (row["precision"], row["videos"], row["same_summary_rate"]) == ("fp32", 2, 1.0)
    assert row["max_abs_difference"] < 1e-5
    assert row["latency"]["p50_s"] > 0
    out = capsys.readouterr().out
    assert "| bundle | fp32 | ort-cpu | 2 |" in out
    assert "changes the summary" not in out
    assert accuracy.main([*given, "--out", str(tmp_path / "out.json"), "--keep"]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == len(rows)


def test_an_engine_that_changes_a_summary_is_named(videos: tuple[Path, Path]) -> None:
    dataset = read_dataset(videos[0])
    tested: list[Video] = [dataset.videos["video_5"], dataset.videos["video_6"]]
    rng = np.random.default_rng(0)
    reference = [rng.random(60).astype(np.float32) for _ in tested]
    other = [reference[0] * np.float32(0.5), reference[1][::-1]]
    row = accuracy.compare(dataset, tested, reference, other, Rules("tvsum-annotators-at-picks"))
    assert row["summaries_changed"] == ["video_6"]
    assert row["same_summary_rate"] == 0.5
    assert row["by_video"]["video_5"]["tau_between"] == pytest.approx(1.0)
    assert row["by_video"]["video_5"]["tau"] == 0.0
    assert row["largest_change"]["tau"] == abs(row["by_video"]["video_6"]["tau"]) > 0
    row |= {"bundle": "b", "precision": "fp16", "backend": "x", "latency": {"p50_s": 0.001}}
    about = {"machine": {"device": "d", "commit": "c"}, "dataset": {"name": "n"}, "protocol": "p", "f_rule": "exact"}
    told = accuracy.table({**about, "splits": {"name": "s", "numbers": [1]}, "absent": {"y": "no y"}, "rows": [row]})
    assert "**b on x changes the summary of video_6.**" in told
    assert "Not run: y: no y" in told
