"""A graph in blocks of queries gives the scores of the graph it is made of, in memory that is linear in the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vsum_runtime.export import cli, memory
from vsum_runtime.export.in_blocks import has_squares, in_blocks
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.runtime import Summarizer, bundle
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.training import models

D = 48


def exported(name: str, path: Path, **options: object) -> onnx.ModelProto:
    torch.manual_seed(1)
    scorer_onnx(ScorerGraph(models.build(name, feature_dim=D, **options).eval(), "none"), D, path)
    return onnx.load(path)


def difference(a: Path, b: Path, lengths: list[int]) -> float:
    """The largest of any output; relative where the output is above 1, as offsets of proposals are."""
    rng = np.random.default_rng(0)
    features = rng.gamma(0.5, size=(len(lengths), max(lengths), D))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    inputs = {"features": features.astype(np.float32), "lengths": np.array(lengths)}
    found = []
    for graph in (a, b):
        session = open_session(graph, "ort-cpu")
        found.append(session.run(inputs))
        session.close()
    return max(float((np.abs(x - y) / np.maximum(1, np.abs(x))).max()) for x, y in zip(*found, strict=True))


def n_loops(model: onnx.ModelProto) -> int:
    return [node.op_type for node in model.graph.node].count("Loop")


@pytest.mark.parametrize(
    ("name", "options", "loops"),
    [
        ("nonlocal_ridge", {}, 2),
        ("ca_sum", {}, 4),
        ("vasnet", {}, 1),  # sums over the queries
        ("pgl_sum", {}, 2),  # the whole video, and its segments
        ("pgl_sum", {"pos_enc": "relative", "fusion": "max"}, 2),
        ("dsnet_ab", {}, 1),
        ("dsnet_af", {}, 1),
        ("sspvs", {"iter": 2, "nlayers_vid": 1, "nhid_vid": 16}, 2),  # one row more than steps
    ],
)
def test_blocks_of_any_size_give_the_same_scores(
    name: str, options: dict[str, object], loops: int, tmp_path: Path
) -> None:
    whole, blocked = tmp_path / "whole.onnx", tmp_path / "blocked.onnx"
    model = exported(name, whole, **options)
    for rows in (1, 7, 32):
        made = in_blocks(model, rows)
        assert made is not None
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, blocked)
        for lengths in ([1], [7], [8], [65], [40, 33, 1]):
            assert difference(whole, blocked, lengths) <= 2e-6, (rows, lengths)
    assert n_loops(made) == loops
    assert has_squares(model)
    assert not has_squares(made)  # outside the loops


def test_graphs_without_attention_stay_as_they_are(tmp_path: Path) -> None:
    assert in_blocks(exported("dr_dsn", tmp_path / "recurrent.onnx")) is None


@pytest.mark.parametrize(
    "mixes",
    [
        "sums = ReduceSum<keepdims=0>(energies, axis1)",
        "powers = MatMul(energies, energies)\n sums = ReduceSum<keepdims=0>(powers, axis2)",
        "by_key = Softmax<axis=1>(energies)\n sums = ReduceSum<keepdims=0>(by_key, axis2)",
        "turned = Transpose<perm=[0,2,1]>(energies)\n sums = ReduceSum<keepdims=0>(turned, axis2)",
    ],
)
def test_a_graph_that_mixes_the_rows_is_left_alone(mixes: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]>
        rows (float[batch,time,8] features, int64[batch] lengths) => (float[batch,time] sums)
        <int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}}> {{
            keys = Transpose<perm=[0,2,1]>(features)
            energies = MatMul(features, keys)
            {mixes}
        }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    assert in_blocks(model) is None


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
