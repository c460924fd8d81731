"""The contract every backend meets, run on each one that can run here."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.backends import BACKENDS, absences, open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.backends.ort import Lane, OrdinaryMemory
from vsum_runtime.runtime.backends.tensorrt import providers as ort_trt
from vsum_runtime.runtime.backends.tensorrt.engine_cache import sealed
from vsum_runtime.runtime.backends.tensorrt.profiles import Profile
from vsum_runtime.runtime.backends.tensorrt.providers import ByProfile, OrtTensorrt
from vsum_runtime.runtime.errors import BackendError, InputError


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


@pytest.mark.parametrize("name", list(BACKENDS))
def test_calls_side_by_side_give_the_same_numbers(doubling: Path, name: str) -> None:
    if absences()[name] is not None:
        pytest.skip("cannot run here")
    session = open_session(doubling, name, n_threads=3, side_by_side=True)
    assert session.n_callers == (1 if "cuda" in name else 3)
    many = np.random.default_rng(0).random((40, 1, 50, 2), dtype=np.float32)
    with ThreadPoolExecutor(session.n_callers) as callers:
        found = list(callers.map(lambda rows: session.run({"features": rows})[0], many))
    np.testing.assert_allclose(found, many.sum(axis=3), rtol=1e-6)
    session.close()


def test_calls_side_by_side_share_one_session(doubling: Path) -> None:
    session = open_session(doubling, "ort-cpu", n_threads=2, side_by_side=True)
    with session._entered() as first, session._entered() as second:
        assert first is second
        assert first.get_session_options().intra_op_num_threads == 1
    session.close()


def test_large_calls_leave_no_memory_behind_and_hold_the_weights_once(doubling: Path) -> None:
    session = open_session(doubling, "ort-cpu")
    large = np.ones((1, 1_000_000, 2), np.float32)
    session.run({"features": large})
    (only,) = session._sessions.values()
    assert not only.get_session_options().enable_cpu_mem_arena
    np.testing.assert_array_equal(session.run({"features": large[:, :3]})[0], np.full((1, 3), 2.0))
    assert [each.get_session_options().enable_cpu_mem_arena for each in session._sessions.values()] == [False, True]
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
def test_model_is_refused_on_a_backend_whose_scores_of_its_example_are_off(error: float, accepted: bool) -> None:
    closed = []

    class Off:
        """A GPU backend that rounds too much, where there is no GPU: the CPU's scores, shifted."""

        name, precision, batch_tokens, n_callers = "ort-cuda", "fp16", 1, 1
        is_reference = uses_host_memory = False

        def __init__(self, session: Session) -> None:
            self.session = session

        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [output + np.float32(error) for output in self.session.run(inputs)]

        def close(self) -> None:
            closed.append(True)

    def opener(graph: Path, *_: Any, **__: Any) -> Off:
        return Off(open_session(graph, "ort-cpu"))

    if accepted:
        assert Summarizer(opener=opener).precision == "fp16"
    else:
        with pytest.raises(BackendError, match=r"ort-cuda in fp16 is 2\.0e-03 from the float32 scores"):
            Summarizer(opener=opener)
        assert closed == [True]


def test_auto_takes_what_opens_at_once_before_what_builds_or_compiles() -> None:
    assert list(BACKENDS)[:2] == ["ort-cuda", "ort-cpu"]


def test_lane_gives_what_a_plain_run_gives_and_uses_its_buffers_again(doubling: Path) -> None:
    """On the CPU: the provider's copies are then none, all else is what a GPU session does."""
    (session,) = open_session(doubling, "ort-cpu")._sessions.values()  # type: ignore[attr-defined]
    allocated: list[int] = []

    class Counting(OrdinaryMemory):
        def pinned_buffer(self, n_bytes: int) -> np.ndarray:
            allocated.append(n_bytes)
            return super().pinned_buffer(n_bytes)

    lane = Lane(session, Counting())
    kept = []
    for shape in [(2, 50, 2), (1, 1, 2), (3, 5, 2), (1, 100, 2)]:
        rows = np.random.default_rng(shape[1]).random(shape, dtype=np.float32)
        strided = np.repeat(rows, 2, axis=1)[:, ::2]
        kept.append((lane.run({"features": strided})[0], session.run(None, {"features": rows})[0]))
    assert allocated == [1024, 512]  # the first request was the largest
    for found, wanted in kept:  # no result is overwritten by the next
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(KeyError):
        lane.run({"lengths": np.array([1])})
    lane.close()


def test_requests_go_to_the_session_of_their_profile_which_is_opened_once(doubling: Path) -> None:
    opened = []

    def open_profile(profile: Profile, inputs: dict[str, np.ndarray]) -> Session:
        opened.append(profile.most)
        return open_session(doubling, "ort-cpu")

    session = ByProfile(OrtTensorrt(), "fp32", open_profile)  # type: ignore[arg-type]
    for shape in [(1, 9, 2), (40, 300, 2), (1, 9, 2), (1, 9000, 2)]:
        rows = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(session.run({"features": rows})[0], rows.sum(axis=2), rtol=1e-6)
    assert opened == [(1, 2048), (32, 512), (1, 10_000)]
    with pytest.raises(InputError, match=r"at most 10000 steps.* got 20000"):
        session.run({"features": np.zeros((1, 20_000, 2), np.float32)})
    session.close()


def test_folder_of_engines_that_changed_since_it_was_left_is_refused(tmp_path: Path) -> None:
    digest = "a" * 64
    with sealed(tmp_path, digest) as folder:
        (folder / "graph.engine").write_bytes(b"plan")
    with sealed(tmp_path, digest) as folder:
        assert (folder / "graph.engine").read_bytes() == b"plan"
        (folder / "longer.engine").write_bytes(b"plan 2")
    (folder / "longer.engine").write_bytes(b"Plan 2")
    for harm in (lambda: None, (folder / "longer.engine").unlink, lambda: (folder / "seal.json").write_text("{")):
        harm()
        with pytest.raises(BackendError, match=r"not those that were built here; delete "), sealed(tmp_path, digest):
            pytest.fail("entered")


def test_folder_of_engines_that_others_may_write_is_refused(tmp_path: Path) -> None:
    with sealed(tmp_path, "a" * 64) as folder:
        pass
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="others may have written it"), sealed(tmp_path, "a" * 64):
        pytest.fail("entered")


def test_rtx_plug_in_without_a_driver_is_absent_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the cheap look for a driver, the real plug-in is loaded and says what it lacks."""
    if importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx") is None:
        pytest.skip("the plug-in is not installed")
    if absences()["ort-tensorrt-rtx"] is None:
        pytest.skip("it can run here")
    monkeypatch.setattr(ort_trt, "why_no_driver", lambda: None)
    reason = absences()["ort-tensorrt-rtx"]
    assert reason is not None
    assert "driver" in reason
