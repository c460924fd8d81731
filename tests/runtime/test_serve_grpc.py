"""What gRPC clients may count on beyond what Triton's client shows: streams in the queue, health, forms of tensors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
grpc = pytest.importorskip("grpc", reason="grpcio is an extra: vsum-runtime[grpc]")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is not installed")

from vsum_runtime.runtime import Summarizer  # noqa: E402
from vsum_runtime.runtime.errors import InputError  # noqa: E402
from vsum_runtime.runtime.serve import Server  # noqa: E402
from vsum_runtime.runtime.serve.grpc_message import split  # noqa: E402

DIM = 1280
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(port=0, grpc_port=0, workers=2, max_reading_mb=64.0) as found:
        yield found


@pytest.fixture
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as found:
        yield found


def features(n_steps: int) -> np.ndarray:
    return np.random.default_rng(n_steps).random((n_steps, DIM), dtype=np.float32)


def request(n_steps: int, request_id: str = "", **parameters: int) -> Any:
    made = service_pb2.ModelInferRequest(model_name="default", id=request_id)
    made.inputs.add(name="features", datatype="FP32", shape=[1, n_steps, DIM])
    made.raw_input_contents.append(features(n_steps).tobytes())
    for name, value in parameters.items():
        made.parameters[name].int64_param = value
    return made


def ask(channel: Any, message: Any) -> np.ndarray:
    sent = message if isinstance(message, bytes) else message.SerializeToString()
    answer = service_pb2.ModelInferResponse.FromString(channel.unary_unary(INFER)(sent, timeout=30))
    return np.frombuffer(answer.raw_output_contents[0], "<f4")


def stream(channel: Any, messages: list[Any]) -> list[Any]:
    answers = channel.stream_stream(STREAM)(iter([m.SerializeToString() for m in messages]), timeout=30)
    return [service_pb2.ModelStreamInferResponse.FromString(answer) for answer in answers]


class Gate:
    """Holds the calls of a model, and counts how many run at once."""

    def __init__(self, batcher: Any) -> None:
        self._run, self._batcher = batcher._run, batcher
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        batcher._run = self

    def __call__(self, videos: list[np.ndarray]) -> Any:
        self.entered.release()
        assert self.open.wait(20)
        return self._run(videos)


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    batcher = server.app.state.service.models.get("default").batcher
    found = Gate(batcher)
    yield found
    found.open.set()
    batcher._run = found._run


def test_requests_of_one_stream_use_all_workers_and_are_answered_in_order(channel: Any, gate: Gate) -> None:
    answers: list[Any] = []
    messages = [request(n, str(n)) for n in (5, 3, 4)]
    asking = threading.Thread(target=lambda: answers.extend(stream(channel, messages)))
    asking.start()
    assert all(gate.entered.acquire(timeout=10) for _ in range(2))  # both workers are at it
    gate.open.set()
    asking.join()
    assert [answer.infer_response.id for answer in answers] == ["5", "3", "4"]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    with Summarizer() as summarizer:
        for answer, n in zip(answers, (5, 3, 4), strict=True):
            scores = np.frombuffer(answer.infer_response.raw_output_contents[0], "<f4")
            np.testing.assert_allclose(scores, summarizer.score([features(n)])[0], atol=1e-6)


def test_requests_of_a_stream_are_refused_when_their_time_is_over(channel: Any, gate: Gate) -> None:
    messages = [request(3, "a"), request(3, "b"), request(3, "late", timeout=50_000), request(3, "c")]
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(stream(channel, messages)))
    asking.start()
    assert all(gate.entered.acquire(timeout=10) for _ in range(2))
    time.sleep(0.2)
    gate.open.set()
    asking.join()
    assert [bool(answer.error_message) for answer in answers] == [False, False, True, False]
    assert "timeout" in answers[2].error_message or "deadline" in answers[2].error_message
    assert answers[2].infer_response.id == "late"
    assert answers[2].infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_that_is_cancelled_gives_back_its_places(server: Server, channel: Any, gate: Gate) -> None:
    service = server.app.state.service
    batcher = service.models.get("default").batcher
    messages = [request(3).SerializeToString() for _ in range(6)]
    call = channel.stream_stream(STREAM)(iter(messages), timeout=30)
    assert all(gate.entered.acquire(timeout=10) for _ in range(2))
    assert any(batcher.n_waiting == 4 or time.sleep(0.01) for _ in range(500))
    call.cancel()
    assert any(batcher.n_waiting == 0 or time.sleep(0.01) for _ in range(500))
    gate.open.set()
    assert any(service.bodies.n_bytes == 0 or time.sleep(0.01) for _ in range(500))


@pytest.mark.parametrize("form", ["raw", "typed", "typed in two parts", "unpacked", "FP16"])
def test_features_are_read_in_every_form(channel: Any, form: str) -> None:
    made = request(4)
    values = features(4)
    if form != "raw":
        made.ClearField("raw_input_contents")
    if form.startswith("typed"):
        made.inputs[0].contents.fp32_contents.extend(values.reshape(-1).tolist())
    if form == "FP16":
        made.inputs[0].datatype = "FP16"
        made.raw_input_contents.append(values.astype("<f2").tobytes())
    sent = made.SerializeToString()
    if form == "unpacked":
        contents = b"".join(b"\x35" + value.tobytes() for value in values.reshape(-1))
    elif form == "typed in two parts":
        flat = values.reshape(-1)
        contents = b"".join(
            b"\x32" + size + part.tobytes() for size, part in ((b"\x04", flat[:1]), (b"\xfc\x9f\x01", flat[1:]))
        )
    if form in ("unpacked", "typed in two parts"):
        made.inputs[0].ClearField("contents")
        head = made.inputs[0].SerializeToString()
        entry = head + b"\x2a" + varint(len(contents)) + contents
        del made.inputs[:]
        sent = made.SerializeToString() + b"\x2a" + varint(len(entry)) + entry
        assert service_pb2.ModelInferRequest.FromString(sent).inputs[0].contents.fp32_contents[:2] == pytest.approx(
            values.reshape(-1)[:2]
        )
    with Summarizer() as summarizer:
        expected = summarizer.score([values])[0]
    np.testing.assert_allclose(ask(channel, sent), expected, atol=1e-3 if form == "FP16" else 1e-6)


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_a_message_is_split_into_what_protobuf_says_of_it(rng: np.random.Generator) -> None:
    for _ in range(200):
        made = service_pb2.ModelInferRequest(model_name="m" * rng.integers(0, 300), id="x")
        for _ in range(rng.integers(0, 4)):
            entry = made.inputs.add(name="n", shape=rng.integers(0, 1 << 40, 3).tolist())
            entry.parameters["p"].string_param = "v" * rng.integers(0, 200)
            entry.contents.int64_contents.extend(rng.integers(-5, 5, rng.integers(0, 3)).tolist())
            entry.contents.fp32_contents.extend(rng.random(rng.integers(0, 50)).tolist())
        made.raw_input_contents.extend(rng.bytes(int(n)) for n in rng.integers(0, 300, rng.integers(0, 3)))
        rest, raw, typed = split(memoryview(made.SerializeToString()))
        assert [bytes(part) for part in raw] == list(made.raw_input_contents)
        for number, entry in enumerate(made.inputs):
            found = np.frombuffer(b"".join(typed.get(number, [])), "<f4")
            np.testing.assert_array_equal(found, np.array(entry.contents.fp32_contents, np.float32))
            had = entry.HasField("contents")
            entry.contents.ClearField("fp32_contents")
            if not had:
                entry.ClearField("contents")
        made.ClearField("raw_input_contents")
        assert service_pb2.ModelInferRequest.FromString(rest) == made


def test_bytes_that_are_no_message_are_refused_and_never_end_in_another_error(
    channel: Any, rng: np.random.Generator
) -> None:
    whole = request(1).SerializeToString()
    for _ in range(300):
        data = bytearray(whole[: rng.integers(1, 80)])
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            split(memoryview(bytes(data)))
        except InputError:
            continue
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, b"\x3a\xff\xff\xff\xff\xff")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("entry", [b"\x2a\x00", b"\x3a\x00", b"\x32\x00", b"\x22\x00"])
def test_messages_of_many_empty_fields_are_refused_before_they_are_parsed(channel: Any, entry: bytes) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, entry * 400_000)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize(
    "method",
    [f"inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ModelReady", "ModelInfer", "RepositoryIndex")]
    + ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"],
)
def test_bytes_that_are_no_message_of_a_method_are_the_clients_fault(
    channel: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = channel.unary_stream if method.endswith("Watch") else channel.unary_unary
    with pytest.raises(grpc.RpcError) as refused:
        list(call(f"/{method}")(b"\x0a\x22short", timeout=20))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_errors_are_a_line_however_much_they_are_about(channel: Any) -> None:
    made = request(1)
    made.inputs[0].name = "x" * 900_000
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, made)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(refused.value.details()) < 400


def test_classification_is_refused_by_name(channel: Any) -> None:
    made = request(1)
    made.outputs.add(name="scores").parameters["classification"].int64_param = 2
    with pytest.raises(grpc.RpcError) as refused:
        ask(channel, made)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "classification" in refused.value.details()


def test_health_needs_no_key_and_speaks_the_protocol_of_kubernetes() -> None:
    with Server(port=0, grpc_port=0, api_key="secret") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            for name in ("ServerLive", "ServerReady"):
                assert channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"", timeout=5) == b"\x08\x01"
            with pytest.raises(grpc.RpcError, match="API key"):
                channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")(b"", timeout=5)
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            name = b"inference.GRPCInferenceService"
            assert check(b"", timeout=5) == check(b"\x0a" + bytes([len(name)]) + name, timeout=5) == b"\x08\x01"
            with pytest.raises(grpc.RpcError) as unknown:
                check(b"\x0a\x01x", timeout=5)
            assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=20)
            assert next(watch) == b"\x08\x01"
            server.app.state.service.models.ready = False
            assert next(watch) == check(b"", timeout=5) == b"\x08\x02"
            server.app.state.service.models.ready = True
            watch.cancel()
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            metadata = [("authorization", "bearer secret")]
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            assert b"vsum" in call(b"", metadata=metadata, timeout=5)
