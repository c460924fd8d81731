"""The stated memory of a graph covers what it takes at lengths that were not measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsum_runtime.export import memory
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.runtime.bundle import read
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.training import models

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory to be read here")


def test_the_default_model_stays_within_its_stated_memory() -> None:
    bundle = read(DEFAULT_BUNDLE)
    stated = bundle.manifest["graph"]["memory_bytes"]
    lengths = (1500, 4000)
    taken = memory.measured(bundle.graph, bundle.feature_dim, lengths)
    assert taken is not None
    for n_steps, found in zip(lengths, taken, strict=True):
        assert 0.3 * np.polyval(stated[::-1], n_steps) < found <= np.polyval(stated[::-1], n_steps)


def test_a_line_covers_short_videos_in_their_arena_and_long_ones_without(tmp_path: Path) -> None:
    graph = tmp_path / "scorer.onnx"
    scorer_onnx(ScorerGraph(models.build("dr_dsn", feature_dim=1024).eval(), "none"), 1024, graph)
    stated = memory.memory_bytes(graph, 1024)
    assert stated is not None
    assert stated[2] == 0
    for n_steps in (700, 1500, 4000):
        taken = memory.measured(graph, 1024, (n_steps,))
        assert taken is not None
        assert 0.4 * np.polyval(stated[::-1], n_steps) < taken[0] <= np.polyval(stated[::-1], n_steps)


def test_a_model_whose_loading_takes_more_than_its_scoring_is_not_stated_as_free(tmp_path: Path) -> None:
    rows = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", "time", 8])
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "time"])
    weights = numpy_helper.from_array(np.ones((8, 4_000_000), np.float32), "weights")  # 128 MB
    first = numpy_helper.from_array(np.zeros(1, np.int64), "first")
    nodes = [
        helper.make_node("Gather", ["weights", "first"], ["column"], axis=1),
        helper.make_node("MatMul", ["features", "column"], ["wide"]),
        helper.make_node("Squeeze", ["wide", "axis"], ["scores"]),
    ]
    axis = numpy_helper.from_array(np.array([2]), "axis")
    graph = helper.make_graph(nodes, "heavy", [rows, lengths], [scores], [weights, first, axis])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "heavy.onnx"
    )
    taken = memory.measured(tmp_path / "heavy.onnx", 8, (1000, 100_000))
    assert taken is not None
    assert taken[0] > 0
    assert 400_000 <= taken[1] < 50_000_000


def test_the_envelope_lies_on_or_above_what_was_measured() -> None:
    for taken in ([10.0, 10.0, 10.0], [0.0, 5.0, 1.0], [1e6, 3e6, 9e6], [0.0, 0.0, 0.0]):
        coefficients = memory.envelope(memory.LENGTHS, taken)
        assert min(coefficients) >= 0
        assert (np.polyval(coefficients[::-1], memory.LENGTHS) >= np.array(taken) * 0.999).all()
        line = memory.envelope(memory.LENGTHS, taken, degree=1)
        assert line[2] == 0
        assert (np.polyval(line[::-1], memory.LENGTHS) >= np.array(taken) * 0.999).all()
