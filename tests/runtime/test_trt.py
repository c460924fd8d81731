"""The TensorRT backend without a GPU: a host-memory device stands in for CUDA, and a small interpreter for an engine.

What TensorRT itself computes cannot be tested here; how requests reach it and come back is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from vsum_runtime.runtime.backends import absences, open_session
from vsum_runtime.runtime.backends.tensorrt import cuda
from vsum_runtime.runtime.backends.tensorrt.engine_cache import Engine
from vsum_runtime.runtime.backends.tensorrt.native import Lru, TensorrtSession
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES, Profile, bucket, choose_profile, rows_per_call
from vsum_runtime.runtime.cli import backends as cli
from vsum_runtime.runtime.errors import BackendError, InputError

D = 8


class HostDevice:
    """Device memory is host memory, and a stream runs at once; a graph repeats the calls it recorded."""

    def __init__(self, free: int = 1 << 40) -> None:
        self.graphs = self
        self.free, self.buffers, self.recorded, self.launched, self.dropped, self.open = free, {}, 0, 0, 0, True
        self.allocations = 0

    def describe(self) -> tuple[str, str, int]:
        return "host", "9.0", 13000

    def free_bytes(self) -> int:
        return self.free

    def use(self) -> None: ...

    def stream(self) -> int:
        return 7

    def device_buffer(self, n_bytes: int) -> int:
        self.allocations += 1
        buffer = ctypes.create_string_buffer(min(n_bytes, 1 << 24))  # the largest profile is never filled here
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def pinned_buffer(self, n_bytes: int) -> np.ndarray:
        self.allocations += 1
        return np.zeros(n_bytes, dtype=np.uint8)

    def to_device(self, address: int, host: np.ndarray, stream: int) -> None:
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def to_host(self, host: np.ndarray, address: int, stream: int) -> None:
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def synchronize(self, stream: int) -> None: ...

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        self.recorded += 1
        return work

    def launch(self, graph: Any, stream: int) -> None:
        self.launched += 1
        graph()

    def drop_graph(self, graph: Any) -> None:
        self.dropped += 1

    def close(self) -> None:
        self.open = False


class SumContext:
    """Scores are sums of a step's features where the step is inside the video, else 0."""

    def __init__(self, fails: list[bool]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = fails
        self.profile = -1

    def set_device_memory(self, address: int, n_bytes: int) -> None: ...

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        most = PROFILES[self.profile].most
        self.shapes[name] = shape
        return shape[0] <= most[0] and (len(shape) == 1 or shape[1] <= most[1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.fails:
            return self.fails.pop()
        b, t, d = self.shapes["features"]
        features = np.ctypeslib.as_array((ctypes.c_float * (b * t * d)).from_address(self.addresses["features"]))
        lengths = np.ctypeslib.as_array((ctypes.c_int64 * b).from_address(self.addresses["lengths"]))
        scores = np.ctypeslib.as_array((ctypes.c_float * (b * t)).from_address(self.addresses["scores"]))
        assert (lengths >= 1).all()
        inside = np.arange(t) < lengths[:, None]
        scores[:] = (features.reshape(b, t, d).sum(axis=2) * inside).ravel()
        return True


class SumEngine:
    num_io_tensors, num_optimization_profiles = 3, len(PROFILES)
    axes: ClassVar = {"features": (-1, -1, D), "lengths": (-1,), "scores": (-1, -1)}

    def __init__(self) -> None:
        self.fails: list[bool] = []

    def get_tensor_name(self, i: int) -> str:
        return list(self.axes)[i]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.axes[name]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "scores" else "in"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="INT64" if name == "lengths" else "FLOAT")

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 * (profile + 1)

    def create_execution_context(self, strategy: str) -> SumContext:
        assert strategy == "user managed"
        return SumContext(self.fails)


def library(engine: Any) -> Any:
    class Logger:
        WARNING = 1

        def __init__(self, _: int) -> None: ...

    return SimpleNamespace(
        Logger=Logger,
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )


def opened(engine: Any, device: HostDevice) -> TensorrtSession:
    return TensorrtSession(library(engine), device, Engine(b"", PROFILES, {}), "fp16")  # type: ignore[arg-type]


def request(rng: np.random.Generator, *lengths: int) -> dict[str, np.ndarray]:
    features = rng.random((len(lengths), max(lengths), D), dtype=np.float32)
    return {"features": features, "lengths": np.array(lengths)}


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    inside = np.arange(inputs["features"].shape[1]) < inputs["lengths"][:, None]
    return inputs["features"].sum(axis=2) * inside


@pytest.mark.parametrize("lengths", [(1,), (320,), (5, 3, 1), (300,) * 33, (600, 9) * 6, (3000,), (3000, 20)])
def test_request_of_any_shape_comes_back_in_its_own_shape(rng: np.random.Generator, lengths: tuple[int, ...]) -> None:
    session = opened(SumEngine(), HostDevice())
    inputs = request(rng, *lengths)
    (scores,) = session.run(inputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(inputs), rtol=1e-5)


def test_request_too_long_for_every_profile_is_the_callers_error_and_the_next_is_served(
    rng: np.random.Generator,
) -> None:
    session = opened(SumEngine(), HostDevice())
    with pytest.raises(InputError, match=r"at most 10000 steps.* got 20000.*--max-steps 20000"):
        session.run({"features": np.zeros((1, 20_000, D), np.float32), "lengths": np.array([20_000])})
    inputs = request(rng, 4)
    np.testing.assert_allclose(session.run(inputs)[0], expected(inputs), rtol=1e-5)


def test_shapes_of_one_bucket_share_a_graph_and_nothing_is_allocated_after_opening(rng: np.random.Generator) -> None:
    device = HostDevice()
    session = opened(SumEngine(), device)
    after_opening = device.allocations
    for n_steps in (305, 310, 320, 307):
        session.run(request(rng, n_steps))
    assert (device.recorded, device.launched) == (1, 4)
    for n_steps in range(16, 16 * 40, 16):
        session.run(request(rng, n_steps))
    assert device.dropped == device.recorded - 16
    assert device.allocations == after_opening
    session.close()
    assert device.dropped == device.recorded
    assert not device.open


def test_failed_computation_is_a_backend_error_and_the_next_request_is_served(rng: np.random.Generator) -> None:
    engine = SumEngine()
    session = opened(engine, HostDevice())
    engine.fails.append(False)
    inputs = request(rng, 12)
    with pytest.raises(BackendError, match="could not start"):
        session.run(inputs)
    np.testing.assert_allclose(session.run(inputs)[0], expected(inputs), rtol=1e-5)


def test_threads_get_their_own_answers(rng: np.random.Generator) -> None:
    session = opened(SumEngine(), HostDevice())
    inputs = [request(rng, *lengths) for lengths in ((50,), (7, 9), (333,), (64, 2, 3))] * 5
    answers: list[Any] = [None] * len(inputs)

    def ask(i: int) -> None:
        (answers[i],) = session.run(inputs[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for answer, asked in zip(answers, inputs, strict=True):
        np.testing.assert_allclose(answer, expected(asked), rtol=1e-5)


def test_engine_that_does_not_fit_the_card_is_refused_before_it_allocates() -> None:
    device = HostDevice(free=4000)
    with pytest.raises(BackendError, match="out of device memory: 2 contexts need"):
        opened(SumEngine(), device)
    assert device.allocations == 0


def test_engine_the_library_refuses_is_told() -> None:
    with pytest.raises(BackendError, match="refused the engine; build it again"):
        opened(None, HostDevice())


def test_buckets_hold_the_request_and_stay_inside_the_profile() -> None:
    for n_videos, n_steps in ((1, 1), (1, 2047), (3, 77), (32, 511), (5, 1999), (1, 9999)):
        index = choose_profile(PROFILES, n_videos, n_steps)
        assert index is not None
        padded = bucket(PROFILES[index], n_videos, n_steps)
        assert n_videos <= padded[0] <= PROFILES[index].most[0]
        assert n_steps <= padded[1] <= min(PROFILES[index].most[1], n_steps * 1.15 + 16)
    assert rows_per_call((Profile((1, 1), (4, 10)),), 10) == 4


def test_lru_drops_the_longest_unused() -> None:
    dropped: list[str] = []
    lru: Lru[str] = Lru(2, dropped.append)
    for name in ((1,), (2,), (1,), (3,)):
        lru.get(name, lambda name=name: f"v{name[0]}")
    assert dropped == ["v2"]
    lru.clear()
    assert sorted(dropped) == ["v1", "v2", "v3"]


def test_cuda_python_reports_what_the_driver_says() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    reason = cuda.why_absent()
    if reason is None:
        pytest.skip("a GPU is here")
    assert "no NVIDIA driver answers" in reason


def test_every_cuda_call_exists_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    import inspect
    import re

    source = inspect.getsource(cuda.CudaPython)
    for name in {*re.findall(r'"(cuda\w+)"', source), *re.findall(r"_cudart\.(\w+)", source)}:
        assert hasattr(runtime, name), name


def test_list_of_backends_gives_a_reason_for_each_absent_one(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert cli.main([]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == set(absences())
    assert lines["ort-cpu"] == "can run here"
    if absences()["tensorrt"] is not None:
        assert lines["tensorrt"].startswith("absent: ")
        with pytest.raises(BackendError, match="'tensorrt' cannot run here"):
            open_session(tmp_path / "scorer.onnx", "tensorrt")
