"""The contract every backend meets, run on each one that can run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import Summarizer, pipeline
from runtime.backends import BACKENDS, absences, open_session
from runtime.backends.base import Session
from runtime.errors import BackendError, InputError


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """features [batch, time, 2] -> scores = features summed over the last axis."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["features", "axes"], ["scores"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", "time", 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "time"])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "sum.onnx")
    return tmp_path / "sum.onnx"


@pytest.mark.parametrize("name", list(BACKENDS))
def test_backend_runs_any_batch_and_length_or_says_why_not(doubling: Path, name: str) -> None:
    if (reason := absences()[name]) is not None:
        assert "pip install" in reason or "driver" in reason
        with pytest.raises(BackendError, match="cannot run here"):
            open_session(doubling, name)
        return
    session = open_session(doubling, name)
    assert session.name == name
    for shape in [(1, 1, 2), (3, 5, 2), (1, 400, 2)]:
        rows = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(session.run({"features": rows})[0], rows.sum(axis=2), rtol=1e-6)
    session.close()


def test_a_call_beside_another_gives_the_same_numbers(doubling: Path) -> None:
    rows = np.random.default_rng(0).random((3, 50, 2), dtype=np.float32)
    session = open_session(doubling, "ort-cpu", n_threads=2)
    alone = session.run({"features": rows})[0]
    with session._entered() as first, session._entered() as second:
        assert first is not second
        np.testing.assert_array_equal(session.run({"features": rows})[0], alone)
    with session._entered() as again:
        assert again is first
    session.close()


def test_auto_takes_the_first_backend_that_can_run(doubling: Path) -> None:
    first = next(name for name, reason in absences().items() if reason is None)
    assert open_session(doubling, "auto").name == first


def test_unknown_backend_names_the_known_ones(doubling: Path) -> None:
    with pytest.raises(InputError, match="ort-cpu"):
        open_session(doubling, "cuda")


def test_graph_that_is_none_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"junk")
    with pytest.raises(BackendError, match=r"cannot open x\.onnx"):
        open_session(tmp_path / "x.onnx", "ort-cpu")


@pytest.mark.parametrize(("error", "accepted"), [(1e-4, True), (2e-3, False)])
def test_model_is_refused_on_a_backend_whose_scores_of_its_example_are_off(
    monkeypatch: pytest.MonkeyPatch, error: float, accepted: bool
) -> None:
    closed = []

    class Off:
        """A GPU backend that rounds too much, where there is no GPU: the CPU's scores, shifted."""

        name, precision, batch_tokens, n_callers = "ort-cuda", "fp16", 1, 1

        def __init__(self, session: Session) -> None:
            self.session = session

        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [output + np.float32(error) for output in self.session.run(inputs)]

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(pipeline, "open_session", lambda graph, *_, **__: Off(open_session(graph, "ort-cpu")))
    if accepted:
        assert Summarizer().precision == "fp16"
    else:
        with pytest.raises(BackendError, match=r"ort-cuda in fp16 is 2\.0e-03 from the float32 scores"):
            Summarizer()
        assert closed == [True]
