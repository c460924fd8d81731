"""Tensors in shared memory, by Triton's own clients: registered, used, cut, taken away, and refused."""

from __future__ import annotations

import gc
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402
from tritonclient.utils import shared_memory as shm  # noqa: E402

from vsum_runtime.runtime import Summarizer  # noqa: E402
from vsum_runtime.runtime.errors import InputError  # noqa: E402
from vsum_runtime.runtime.serve import ServeConfig, Server  # noqa: E402
from vsum_runtime.runtime.serve import shared_memory as of_server  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")

ROOT = Path(__file__).resolve().parents[2]
DIM = 1280
_NUMBERS = itertools.count()


class Memory:
    """Shared memory of a client, with its values."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.key = f"/vsum-test-{os.getpid()}-{next(_NUMBERS)}"
        self.file = Path("/dev/shm" + self.key)
        self.n_bytes = sum(array.nbytes for array in arrays)
        self.handle = shm.create_shared_memory_region(self.key[1:], self.key, self.n_bytes, create_only=True)
        shm.set_shared_memory_region(self.handle, list(arrays))

    def read(self, shape: list[int], offset: int = 0) -> np.ndarray:
        return np.array(shm.get_contents_as_numpy(self.handle, np.float32, shape, offset))


@pytest.fixture
def memory() -> Iterator[Callable[..., Memory]]:
    made: list[Memory] = []

    def make(*arrays: np.ndarray) -> Memory:
        made.append(Memory(*arrays))
        return made[-1]

    yield make
    for each in made:
        shm.destroy_shared_memory_region(each.handle)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = {"max_body_mb": 3.0, "max_reading_mb": 12.0, "max_queue": 8}
    with Server(port=0, grpc_port=0, shared_memory=True, **settings) as found:
        yield found


@pytest.fixture
def batcher(server: Server) -> Any:
    return server.app.state.service.models.get("default").batcher


class Client:
    """Triton's client of one protocol, unmodified, and shorter words for its requests."""

    def __init__(self, module: Any, port: int | None) -> None:
        self.module, self.port = module, port
        self.triton = module.InferenceServerClient(f"127.0.0.1:{port}")

    def sent(self, name: str, values: np.ndarray) -> Any:
        tensor = self.module.InferInput(name, list(values.shape), "FP32" if name == "features" else "INT64")
        tensor.set_data_from_numpy(values)
        return tensor

    def shared(self, region: str, shape: list[int], n_bytes: int | None = None, offset: int = 0) -> Any:
        name, datatype, size = ("features", "FP32", 4) if len(shape) == 3 else ("lengths", "INT64", 8)
        tensor = self.module.InferInput(name, shape, datatype)
        tensor.set_shared_memory(region, int(np.prod(shape)) * size if n_bytes is None else n_bytes, offset)
        return tensor

    def output(self, region: str, n_bytes: int, offset: int = 0) -> Any:
        wanted = self.module.InferRequestedOutput("scores")
        wanted.set_shared_memory(region, n_bytes, offset)
        return wanted

    def infer(self, *inputs: Any, output: Any = None, **options: Any) -> Any:
        return self.triton.infer("default", list(inputs), outputs=output and [output], **options)

    def infer_in_thread(self, *inputs: Any, output: Any = None) -> Any:
        """By a client of its own: they belong to the thread that made them."""
        other = Client(self.module, self.port)
        try:
            return other.infer(*inputs, output=output)
        finally:
            other.triton.close()

    def scores(self, *inputs: Any) -> np.ndarray:
        return np.array(self.infer(*inputs).as_numpy("scores"))

    def register(self, name: str, made: Memory, n_bytes: int | None = None, offset: int = 0) -> None:
        self.triton.register_system_shared_memory(name, made.key, n_bytes or made.n_bytes - offset, offset)

    def status(self, name: str = "") -> dict[str, tuple[str, int, int]]:
        found = self.triton.get_system_shared_memory_status(name)
        rows = [dict(row) for row in found] if isinstance(found, list) else list(found.regions.values())
        take = (lambda row, key: row[key]) if isinstance(found, list) else getattr
        return {take(row, "name"): tuple(take(row, key) for key in ("key", "offset", "byte_size")) for row in rows}


@pytest.fixture(params=["http", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    found = Client(triton_http, server.port) if request.param == "http" else Client(triton_grpc, server.grpc_port)
    yield found
    found.triton.unregister_system_shared_memory()
    found.triton.close()


def random_videos(rng: np.random.Generator, n_videos: int = 1, n_steps: int = 40) -> np.ndarray:
    return rng.random((n_videos, n_steps, DIM), dtype=np.float32)


def test_shared_features_have_the_scores_of_features_that_are_sent(
    client: Client, memory: Any, rng: np.random.Generator
) -> None:
    features, lengths = random_videos(rng, 3), np.array([40, 25, 1], np.int64)
    made, answer = memory(features, lengths), memory(np.zeros(1000, np.float32))
    client.register("in", made)
    client.register("out", answer)
    expected = client.scores(client.sent("features", features), client.sent("lengths", lengths))
    shared = client.shared("in", [3, 40, DIM])
    for tensor in (client.sent("lengths", lengths), client.shared("in", [3], offset=features.nbytes)):
        for inputs in ((shared, tensor), (tensor, shared)):
            np.testing.assert_array_equal(client.scores(*inputs), expected)
    found = client.infer(shared, tensor, output=client.output("out", 1000, 64), request_id="7")
    np.testing.assert_array_equal(answer.read([3, 40], 64), expected)
    assert not answer.read([16]).any()
    output = found.get_output("scores")
    assert list(output["shape"] if isinstance(output, dict) else output.shape) == [3, 40]
    assert "data" not in output if isinstance(output, dict) else not found.get_response().raw_output_contents


def test_a_region_may_begin_and_end_anywhere(client: Client, memory: Any, rng: np.random.Generator) -> None:
    features = random_videos(rng)
    expected = client.scores(client.sent("features", features))
    for n_before in (4, 4096, 4100):
        made = memory(np.full(n_before // 4, np.nan, np.float32), features, np.full(3, np.nan, np.float32))
        client.register("in", made, n_before + features.nbytes - 4, 4)
        found = client.scores(client.shared("in", [1, 40, DIM], offset=n_before - 4))
        np.testing.assert_array_equal(found, expected)
        client.triton.unregister_system_shared_memory("in")


def test_regions_are_listed_until_they_are_unregistered(client: Client, memory: Any) -> None:
    made = memory(np.zeros(100, np.float32))
    assert "system_shared_memory" in str(client.triton.get_server_metadata())
    assert client.status() == {}
    client.register("one", made)
    client.register("two", made, 80, 16)
    rows = {"one": (made.key, 0, 400), "two": (made.key, 16, 80)}
    assert client.status() == rows
    assert client.status("two") == {"two": rows["two"]}
    client.triton.unregister_system_shared_memory("one")
    client.triton.unregister_system_shared_memory("one")
    assert list(client.status()) == ["two"]
    with pytest.raises(InferenceServerException, match="unknown region 'one'"):
        client.status("one")
    client.register("one", made)
    client.triton.unregister_system_shared_memory()
    assert client.status() == {}


def test_without_the_setting_all_of_it_is_refused() -> None:
    with Server(port=0, grpc_port=0) as server:
        for module, port in ((triton_http, server.port), (triton_grpc, server.grpc_port)):
            client = Client(module, port)
            calls: list[Callable[[], object]] = [
                lambda client=client: client.triton.register_system_shared_memory("r", "/vsum-none", 4),
                lambda client=client: client.triton.unregister_system_shared_memory(),
                lambda client=client: client.status(),
                lambda client=client: client.infer(client.shared("r", [1, 2, DIM])),
                lambda client=client: client.infer(
                    client.sent("features", np.zeros((1, 2, DIM), np.float32)), output=client.output("r", 8)
                ),
            ]
            for call in calls:
                with pytest.raises(InferenceServerException, match="start the server with --shared-memory"):
                    call()
            assert "system_shared_memory" not in str(client.triton.get_server_metadata())
            client.triton.close()


def test_a_machine_without_shared_memory_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_server, "FOLDER", tmp_path / "none")
    with pytest.raises(InputError, match="shared_memory: needs POSIX shared memory"):
        Server(port=0, shared_memory=True)


@pytest.mark.parametrize("key", ["", "/", "../x", "/../x", "/a/b", "//x", "..", "/.", "/x\0", "/ä", "/" + "x" * 256])
def test_only_plain_names_of_shared_memory_are_keys(client: Client, key: str) -> None:
    with pytest.raises(InferenceServerException, match="key: expected /NAME"):
        client.triton.register_system_shared_memory("r", key, 4)


def test_only_files_of_shared_memory_are_mapped(client: Client, memory: Any, tmp_path: Path) -> None:
    made = memory(np.zeros(4, np.float32))
    linked, folder, pipe = (Path(f"{made.file}-{kind}") for kind in ("link", "folder", "pipe"))
    linked.symlink_to(made.file)
    folder.mkdir()
    os.mkfifo(pipe)
    try:
        for file in (linked, folder, pipe, Path("/dev/shm/vsum-test-missing")):
            with pytest.raises(InferenceServerException, match=f"key: /{file.name} "):
                client.triton.register_system_shared_memory("r", "/" + file.name, 4)
    finally:
        linked.unlink()
        folder.rmdir()
        pipe.unlink()
    assert client.status() == {}


@pytest.mark.parametrize(("n_bytes", "offset"), [(17, 0), (16, 1), (1, 16), (16, 1 << 61)])
def test_a_region_beyond_its_memory_is_refused(client: Client, memory: Any, n_bytes: int, offset: int) -> None:
    made = memory(np.zeros(4, np.float32))
    with pytest.raises(InferenceServerException, match=f"end at byte {offset + n_bytes} of {made.key}, which has 16"):
        client.triton.register_system_shared_memory("r", made.key, n_bytes, offset)
    with pytest.raises(InferenceServerException, match="byte_size: expected an integer of 1 or more"):
        client.triton.register_system_shared_memory("r", made.key, 0)


@pytest.mark.parametrize(
    "changes", [{"key": 3}, {"key": None}, {"byte_size": "4"}, {"byte_size": True}, {"offset": -1}, {"offset": 0.5}]
)
def test_what_no_region_can_be_is_answered_with_400(server: Server, changes: dict[str, Any]) -> None:
    body = {"key": "/vsum-test-missing", "offset": 0, "byte_size": 4} | changes
    answer = httpx.post(server.url + "/v2/systemsharedmemory/region/r/register", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(next(iter(changes)) + ": expected")


def test_a_name_is_registered_once(client: Client, memory: Any) -> None:
    made, other = memory(np.zeros(4, np.float32)), memory(np.zeros(8, np.float32))
    client.register("r", made)
    with pytest.raises(InferenceServerException, match="'r' is registered already"):
        client.register("r", other)
    assert client.status() == {"r": (made.key, 0, 16)}


def test_regions_are_limited_in_number_and_size(client: Client, memory: Any, batcher: Any) -> None:
    large, small = memory(np.zeros(11_000_000, np.uint8)), memory(np.zeros(4, np.float32))
    for i in range(8):
        client.register(str(i), small)
    with pytest.raises(InferenceServerException, match=r"in 8 regions \(max_queue\)"):
        client.register("8", small)
    client.triton.unregister_system_shared_memory()
    client.register("0", large)
    with pytest.raises(InferenceServerException, match=r"at most 12000000 bytes \(max_reading_mb\)"):
        client.register("1", large)


@pytest.mark.parametrize(
    ("shape", "n_bytes", "offset", "message"),
    [
        (
            [1, 4, DIM],
            4 * 4 * DIM - 4,
            0,
            f"shape .* takes {16 * DIM} bytes, shared_memory_byte_size says {16 * DIM - 4}",
        ),
        ([1, 4, DIM], 4 * 4 * DIM + 4, 0, f"takes {16 * DIM} bytes"),
        ([1, 4, DIM], None, 8 * 4 * DIM - 4, "not inside region 'r', which has"),
        ([1, 4, DIM], None, 1 << 60, "not inside region 'r'"),
        ([1, 4, DIM], None, 2, "shared_memory_offset to be a multiple of 4"),
        ([1, 9, DIM], None, 0, "not inside region 'r'"),
        ([1, 4, DIM - 1], None, 0, "model default takes"),
        ([1, 4, DIM], 0, 0, "expected shared_memory_region"),
    ],
)
def test_shared_inputs_that_cannot_be_are_refused(
    client: Client, memory: Any, shape: list[int], n_bytes: int | None, offset: int, message: str
) -> None:
    client.register("r", memory(np.zeros((8, DIM), np.float32)))
    with pytest.raises(InferenceServerException, match=message) as refused:
        client.infer(client.shared("r", shape, n_bytes, offset))
    assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_values_that_cannot_be_are_refused_in_shared_memory_too(client: Client, memory: Any) -> None:
    features = np.zeros((4, DIM), np.float32)
    features[2, 7] = np.nan
    client.register("r", memory(features, np.array([5], np.int64)))
    with pytest.raises(InferenceServerException, match="NaN or infinity at step 2"):
        client.infer(client.shared("r", [1, 4, DIM]))
    with pytest.raises(InferenceServerException, match="lengths: expected 1 values of 1 to 4"):
        client.infer(client.shared("r", [1, 4, DIM]), client.shared("r", [1], offset=features.nbytes))


def test_shared_inputs_have_the_limits_of_those_that_are_sent(client: Client, memory: Any) -> None:
    n_steps = 3_000_000 // (4 * DIM) + 1
    client.register("r", memory(np.zeros((n_steps, DIM), np.float32)))
    assert client.scores(client.shared("r", [1, n_steps - 1, DIM])).shape == (1, n_steps - 1)
    with pytest.raises(InferenceServerException, match="at most 3000000 bytes"):
        client.infer(client.shared("r", [1, n_steps, DIM]))


def test_regions_nobody_registered_are_refused(client: Client, memory: Any, rng: np.random.Generator) -> None:
    features = random_videos(rng, n_steps=2)
    client.register("r", memory(features))
    for call in (
        lambda: client.infer(client.shared("nobody", [1, 2, DIM])),
        lambda: client.infer(client.shared("r", [1, 2, DIM]), output=client.output("nobody", 8)),
    ):
        with pytest.raises(InferenceServerException, match="unknown region 'nobody'") as refused:
            call()
        assert refused.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_an_output_that_is_too_small_is_refused_before_anything_runs(
    client: Client, memory: Any, batcher: Any, rng: np.random.Generator
) -> None:
    client.register("in", memory(random_videos(rng)))
    client.register("out", memory(np.ones(40, np.float32)))
    before = batcher.executions
    for n_bytes, offset, message in (
        (156, 0, "the scores take 160 bytes, shared_memory_byte_size gives them 156"),
        (160, 4, "160 bytes from 4 are not inside region 'out', which has 160"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(client.shared("in", [1, 40, DIM]), output=client.output("out", n_bytes, offset))
    assert batcher.executions == before


def test_an_input_comes_in_one_way(server: Server, memory: Any) -> None:
    made = memory(np.zeros(DIM, np.float32))
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.register_system_shared_memory("r", made.key, made.n_bytes)
        shared = {"shared_memory_region": "r", "shared_memory_byte_size": made.n_bytes}
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 1, DIM]}
        for more in ({"data": [0.0] * DIM}, {"parameters": shared | {"binary_data_size": 4 * DIM}}):
            body = {"inputs": [tensor | {"parameters": shared} | more]}
            answer = httpx.post(server.url + "/v2/models/default/infer", json=body)
            assert answer.status_code == 400
            assert "one of them" in answer.json()["error"]
        client.unregister_system_shared_memory()


def test_an_input_comes_in_one_way_over_grpc(server: Server, memory: Any) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    made = memory(np.zeros(DIM, np.float32))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        part = {"key": made.key, "byte_size": made.n_bytes}
        stub.SystemSharedMemoryRegister(service_pb2.SystemSharedMemoryRegisterRequest(name="r", **part))
        request = service_pb2.ModelInferRequest(model_name="default")
        tensor = request.inputs.add(name="features", datatype="FP32", shape=[1, 1, DIM])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = made.n_bytes
        assert stub.ModelInfer(request).outputs[0].shape == [1, 1]
        request.raw_input_contents.append(bytes(4 * DIM))
        with pytest.raises(grpc.RpcError, match="raw_input_contents: expected one for each of 0 inputs, got 1"):
            stub.ModelInfer(request)
        del request.raw_input_contents[:]
        tensor.contents.fp32_contents.extend([0.0] * DIM)
        with pytest.raises(grpc.RpcError, match="contents or shared memory, got both"):
            stub.ModelInfer(request)
        stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest())


def test_only_features_are_read_where_they_lie(memory: Any) -> None:
    features, lengths = np.ones((3, DIM), np.float32), np.array([3], np.int64)
    made = memory(features, lengths)
    regions = of_server.Regions(ServeConfig(shared_memory=True))
    regions.register("r", made.key, 0, made.n_bytes)
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": features.nbytes}
    of_features = regions.input("features", "FP32", (1, 3, DIM), parameters)
    parameters = {"shared_memory_region": "r", "shared_memory_offset": features.nbytes, "shared_memory_byte_size": 8}
    of_lengths = regions.input("lengths", "INT64", (1,), parameters)
    shm.set_shared_memory_region(made.handle, [features * 2, lengths + 1])
    assert of_features is not None
    assert of_lengths is not None
    assert (of_features.values == 2).all()
    assert not of_features.values.flags.writeable
    assert of_lengths.values == [3]


def test_registering_reserves_memory_that_nobody_has_written(client: Client, memory: Any) -> None:
    made = memory(np.zeros(8, np.uint8))
    os.truncate(made.file, 1_000_000)
    assert made.file.stat().st_blocks * 512 < 10_000
    client.triton.register_system_shared_memory("r", made.key, 1_000_000)
    assert made.file.stat().st_blocks * 512 >= 1_000_000
    assert made.file.stat().st_size == 1_000_000


def test_a_request_that_fails_lets_go_of_its_memory(server: Server, client: Client, memory: Any) -> None:
    """Its error lives on in places, until the next request or the collector of garbage comes."""
    features = np.full((4, DIM), np.nan, np.float32)
    client.register("r", memory(features))
    for n_bytes, message in ((None, "NaN"), (4, "takes")):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(client.shared("r", [1, 4, DIM], n_bytes))
    regions = server.app.state.service.regions
    gc.disable()
    try:
        client.triton.unregister_system_shared_memory()
        until(lambda: not regions._mapped)
    finally:
        gc.enable()


@pytest.fixture
def gate(batcher: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Models wait for it with their videos in hand."""
    found, run = threading.Event(), batcher._run

    def waits(videos: list[np.ndarray]) -> list[np.ndarray]:
        assert found.wait(20)
        return run(videos)

    monkeypatch.setattr(batcher, "_run", waits)
    yield found
    found.set()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to be")


def test_memory_stays_until_the_requests_that_use_it_are_answered(
    server: Server, client: Client, memory: Any, batcher: Any, gate: threading.Event, rng: np.random.Generator
) -> None:
    features = random_videos(rng)
    regions = server.app.state.service.regions
    made, answer = memory(features), memory(np.zeros(40, np.float32))
    client.register("in", made)
    client.register("out", answer)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer_in_thread, client.shared("in", [1, 40, DIM]), output=client.output("out", 160))
        until(lambda: batcher.n_running == 1)
        with triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
            other.unregister_system_shared_memory()
            made.file.unlink()
            made.file.touch()  # for the client's own end, which removes it
            assert len(regions._mapped) == 2
            gate.set()
            asked.result(20)
            until(lambda: not regions._mapped)
    with Summarizer() as summarizer:
        np.testing.assert_array_equal(answer.read([40]), summarizer.score([features[0]])[0])


def test_files_of_regions_are_closed_when_they_are_unregistered(server: Server, client: Client, memory: Any) -> None:
    made = memory(np.zeros(4, np.float32))

    def n_open() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(made.file) for fd in os.listdir("/proc/self/fd"))

    before = n_open()
    client.register("r", made)
    assert n_open() > before
    client.triton.unregister_system_shared_memory("r")
    until(lambda: n_open() == before)


def test_memory_that_was_cut_is_refused_and_the_server_lives(
    client: Client, memory: Any, batcher: Any, gate: threading.Event, rng: np.random.Generator
) -> None:
    features = random_videos(rng)
    made, answer = memory(features), memory(np.zeros(40, np.float32))
    client.register("in", made)
    client.register("out", answer)
    shared, output = client.shared("in", [1, 40, DIM]), client.output("out", 160)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer_in_thread, shared, output=output)
        until(lambda: batcher.n_running == 1)
        os.truncate(answer.file, 8)
        gate.set()
        with pytest.raises(InferenceServerException, match="was registered up to byte 160"):
            asked.result(20)
    with pytest.raises(InferenceServerException, match="which has 8"):
        client.infer(shared, output=output)
    assert client.scores(shared).shape == (1, 40)
    os.truncate(made.file, 4096)
    with pytest.raises(InferenceServerException, match="which has 4096"):
        client.infer(shared)
    assert client.triton.is_server_live()


def test_a_client_that_changes_its_memory_gets_other_scores_and_nobody_else_does(
    client: Client, memory: Any, batcher: Any, gate: threading.Event, rng: np.random.Generator
) -> None:
    features, lengths = random_videos(rng, 2), np.array([40, 3], np.int64)
    made = memory(features, lengths)
    client.register("in", made)
    inputs = (client.shared("in", [2, 40, DIM]), client.shared("in", [2], offset=features.nbytes))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer_in_thread, *inputs)
        until(lambda: batcher.n_running == 1)
        shm.set_shared_memory_region(made.handle, [features[::-1].copy(), np.array([-5, 1 << 40], np.int64)])
        gate.set()
        found = asked.result(20).as_numpy("scores")
    with Summarizer() as summarizer:
        expected = summarizer.score([features[1], features[0, :3]])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], np.pad(expected[1], (0, 37)))


def test_values_that_change_after_they_were_checked_fail_their_own_request(
    server: Server, client: Client, memory: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    features = random_videos(rng)
    made = memory(features)
    client.register("in", made)
    summarizer = server.app.state.service.models.get("default").summarizer
    checked = summarizer._scorer.checked

    def changed(rows: np.ndarray, name: str) -> np.ndarray:
        found = checked(rows, name)
        shm.set_shared_memory_region(made.handle, [np.full_like(features, np.inf)])
        return found

    monkeypatch.setattr(summarizer._scorer, "checked", changed)
    with pytest.raises(InferenceServerException, match="scores that are not finite"):
        client.infer(client.shared("in", [1, 40, DIM]))
    monkeypatch.undo()
    with Summarizer() as own:
        np.testing.assert_array_equal(client.scores(client.sent("features", features))[0], own.score([features[0]])[0])


def test_a_stream_takes_shared_memory(server: Server, memory: Any, rng: np.random.Generator) -> None:
    features = random_videos(rng)
    made = memory(features)
    answers: list[Any] = []
    got = threading.Semaphore(0)
    client = Client(triton_grpc, server.grpc_port)
    client.register("in", made)
    client.triton.start_stream(lambda result, error: (answers.append(error or result), got.release()))
    for region in ("in", "nobody", "in"):
        client.triton.async_stream_infer("default", [client.shared(region, [1, 40, DIM])])
    assert all(got.acquire(timeout=20) for _ in range(3))
    client.triton.stop_stream()
    assert "unknown region" in str(answers[1])
    expected = client.scores(client.sent("features", features))
    for i in (0, 2):
        np.testing.assert_array_equal(answers[i].as_numpy("scores"), expected)
    client.triton.unregister_system_shared_memory()
    client.triton.close()


def test_isolated_models_take_shared_memory(memory: Any, rng: np.random.Generator) -> None:
    features = random_videos(rng)
    made, answer = memory(features), memory(np.zeros(40, np.float32))
    with Server(port=0, isolate=True, workers=1, shared_memory=True) as server:
        client = Client(triton_http, server.port)
        client.register("in", made)
        client.register("out", answer)
        client.infer(client.shared("in", [1, 40, DIM]), output=client.output("out", 160))
        np.testing.assert_array_equal(answer.read([1, 40]), client.scores(client.sent("features", features)))
        client.triton.close()


def test_the_example_of_the_documentation_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    found = re.search(r"## Shared memory\n.*?```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    assert "127.0.0.1:8000" in found[1]
    features = random_videos(rng)[0]
    np.save(tmp_path / "features.npy", features)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(found[1].replace(":8000", f":{server.port}"), names)
    names["client"].close()
    with Summarizer() as summarizer:
        np.testing.assert_array_equal(names["scores"][0], summarizer.score([features])[0])
    assert not server.app.state.service.regions.status()
