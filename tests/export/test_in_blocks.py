"""A graph in blocks of queries gives the scores of the graph it is made of, in memory that is linear in the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import cli, memory
from export.in_blocks import in_blocks
from export.onnx_from_torch import ScorerGraph, scorer_onnx
from runtime import Summarizer, bundle
from runtime.backends import open_session
from runtime.pipeline import DEFAULT_BUNDLE
from training import models

D = 48


def exported(name: str, path: Path) -> onnx.ModelProto:
    torch.manual_seed(1)
    scorer_onnx(ScorerGraph(models.build(name, feature_dim=D).eval(), "none"), D, path)
    return onnx.load(path)


def difference(a: Path, b: Path, lengths: list[int]) -> float:
    rng = np.random.default_rng(0)
    features = rng.gamma(0.5, size=(len(lengths), max(lengths), D))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    inputs = {"features": features.astype(np.float32), "lengths": np.array(lengths)}
    found = []
    for graph in (a, b):
        session = open_session(graph, "ort-cpu")
        found.append(session.run(inputs)[0])
        session.close()
    return float(np.abs(found[0] - found[1]).max())


@pytest.mark.parametrize("name", ["nonlocal_ridge", "ca_sum"])
def test_blocks_of_any_size_give_the_same_scores(name: str, tmp_path: Path) -> None:
    whole, blocked = tmp_path / "whole.onnx", tmp_path / "blocked.onnx"
    model = exported(name, whole)
    for rows in (1, 7, 32):
        made = in_blocks(model, rows)
        assert made is not None
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, blocked)
        for lengths in ([1], [7], [8], [65], [40, 33, 1]):
            assert difference(whole, blocked, lengths) <= 2e-6, (rows, lengths)


def test_no_value_outside_the_loops_has_two_axes_of_time(tmp_path: Path) -> None:
    made = in_blocks(exported("nonlocal_ridge", tmp_path / "whole.onnx"))
    assert made is not None
    shapes = [value.type.tensor_type.shape.dim for value in onnx.shape_inference.infer_shapes(made).graph.value_info]
    assert not [dims for dims in shapes if [dim.dim_param for dim in dims[-2:]] == ["time", "time"]]
    assert [node.op_type for node in made.graph.node].count("Loop") == 2


def test_a_graph_without_attention_and_one_that_mixes_rows_stay_as_they_are(tmp_path: Path) -> None:
    assert in_blocks(exported("dr_dsn", tmp_path / "recurrent.onnx")) is None
    assert in_blocks(exported("vasnet", tmp_path / "transposed.onnx")) is None  # sums over the queries


def test_export_adds_the_graph_and_long_videos_get_their_scores_from_it(
    tmp_path: Path, checkpoint: Callable[..., Path]
) -> None:
    file = checkpoint(tmp_path / "ridge.safetensors", name="nonlocal_ridge", feature_dim=D)
    assert cli.main(["--checkpoint", str(file), "--out", str(tmp_path / "bundle")]) == 0
    with Summarizer(tmp_path / "bundle") as summarizer:
        entry = summarizer.bundle.manifest["graph"]["long"]
        assert max(entry["parity"]["max_abs_difference"].values()) <= entry["parity"]["tolerance"]
        above = entry["above_steps"]
        assert difference(summarizer.bundle.graph, tmp_path / "bundle" / entry["file"], [above + 1]) <= 2e-6
        # Where the estimates change places, so do the graphs.
        assert summarizer.memory_bytes(4 * above) < summarizer.memory_bytes(above) * 4 * 4 / 2  # type: ignore[operator]
        rows = np.random.default_rng(0).random((above + 1, D), dtype=np.float32)
        both = summarizer.score([rows, rows[:-1]])
    assert [len(scores) for scores in both] == [above + 1, above]


def test_two_hours_of_the_default_model_fit_the_stated_memory() -> None:
    read = bundle.read(DEFAULT_BUNDLE)
    assert read.long is not None
    graph, _ = read.long
    stated = np.polyval(read.manifest["graph"]["long"]["memory_bytes"][::-1], 14_400)
    taken = memory.measured(graph, read.feature_dim, (14_400,))
    assert taken is not None
    assert 0.2 * stated < taken[0] <= stated < 600e6
