"""The protocol, spoken by clients that know nothing of this project."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")

from vsum_runtime.runtime import Summarizer  # noqa: E402
from vsum_runtime.runtime.errors import BundleError, InputError  # noqa: E402
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE  # noqa: E402
from vsum_runtime.runtime.serve import Server, create_app  # noqa: E402
from vsum_runtime.runtime.serve.config import ServeConfig, read_config, settings_table  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DIM = 1280


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models to load: one bundle, and one with two versions."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(DEFAULT_BUNDLE, folder / "single")
    for version in ("2", "10"):
        shutil.copytree(DEFAULT_BUNDLE, folder / "versions" / version)
    return folder


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Server]:
    settings = {"model_dir": model_dir, "max_body_mb": 20.0, "max_steps": 2000, "body_timeout_s": 1.0}
    with Server(port=0, grpc_port=0, bundle=("default=" + str(DEFAULT_BUNDLE),), **settings) as found:
        yield found


@pytest.fixture(scope="module")
def summarizer() -> Iterator[Summarizer]:
    with Summarizer() as found:
        yield found


@pytest.fixture(params=["http", "http json", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An unmodified client of Triton, for each protocol; ``infer_scores`` is the only addition."""
    module = triton_grpc if request.param == "grpc" else triton_http
    port = server.grpc_port if request.param == "grpc" else server.port
    binary = {} if request.param == "grpc" else {"binary_data": request.param == "http"}
    found = module.InferenceServerClient(f"127.0.0.1:{port}")

    def infer_scores(model: str, features: np.ndarray, lengths: list[int] | None = None, **options: Any) -> Any:
        inputs = [module.InferInput("features", list(features.shape), "FP32")]
        inputs[0].set_data_from_numpy(features, **binary)
        if lengths is not None:
            inputs.append(module.InferInput("lengths", [len(lengths)], "INT64"))
            inputs[1].set_data_from_numpy(np.array(lengths, dtype=np.int64), **binary)
        outputs = [module.InferRequestedOutput("scores", **binary)]
        return found.infer(model, inputs, outputs=outputs, **options)

    found.infer_scores = infer_scores
    yield found
    found.close()


def plain(answer: Any) -> Any:
    """A gRPC message as the dictionary that HTTP gives."""
    from google.protobuf import json_format

    return answer if isinstance(answer, (dict, list)) else json_format.MessageToDict(answer, True, True)


def test_clients_list_check_and_describe(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("default")
    assert client.is_model_ready("default", "1")
    assert "binary_tensor_data" in plain(client.get_server_metadata())["extensions"]
    described = plain(client.get_model_metadata("default"))
    assert described["versions"] == ["1"]
    assert [int(n) for n in described["inputs"][0]["shape"]] == [-1, -1, DIM]
    index = plain(client.get_model_repository_index())
    rows = index if isinstance(index, list) else index["models"]
    assert {"default", "single", "versions"} <= {row["name"] for row in rows}
    config = plain(client.get_model_config("default"))
    assert config.get("config", config)["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 256


def test_scores_are_those_of_the_runtime(client: Any, summarizer: Summarizer, rng: np.random.Generator) -> None:
    features = rng.random((3, 40, DIM), dtype=np.float32)
    features[1, 25:] = 1e30  # after the end of a video nothing is read
    answer = client.infer_scores("default", features, [40, 25, 1], request_id="request 7")
    scores = answer.as_numpy("scores")
    expected = summarizer.score([features[0], features[1, :25], features[2, :1]])
    for row, values in zip(scores, expected, strict=True):
        np.testing.assert_allclose(row[: len(values)], values, atol=1e-6)
        assert not row[len(values) :].any()
    response = plain(answer.get_response())
    assert (response["id"], response["model_name"], response["model_version"]) == ("request 7", "default", "1")


def test_features_of_half_precision_travel_in_half_the_bytes(
    server: Server, summarizer: Summarizer, rng: np.random.Generator
) -> None:
    features = rng.random((2, 30, DIM), dtype=np.float32)
    tensor = triton_http.InferInput("features", [2, 30, DIM], "FP16")
    tensor.set_data_from_numpy(features.astype(np.float16))
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        scores = client.infer("default", [tensor]).as_numpy("scores")
    np.testing.assert_allclose(scores, summarizer.score(list(features)), atol=1e-3)
    rounded = [rows.astype(np.float16).astype(np.float32) for rows in features]
    np.testing.assert_allclose(scores, summarizer.score(rounded), atol=1e-6)


def test_lengths_may_be_left_out(client: Any, summarizer: Summarizer, rng: np.random.Generator) -> None:
    features = rng.random((2, 9, DIM), dtype=np.float32)
    scores = client.infer_scores("default", features).as_numpy("scores")
    np.testing.assert_allclose(scores, summarizer.score(list(features)), atol=1e-6)


def test_statistics_count_requests_and_videos(client: Any, rng: np.random.Generator) -> None:
    def counts() -> list[int]:
        found = plain(client.get_inference_statistics("default"))["model_stats"][0]
        return [int(found["inference_count"]), int(found["inference_stats"]["success"]["count"])]

    before = counts()
    client.infer_scores("default", rng.random((2, 4, DIM), dtype=np.float32))
    assert [a - b for a, b in zip(counts(), before, strict=True)] == [2, 1]


@pytest.mark.parametrize(
    ("model", "shape", "lengths", "options", "status", "message"),
    [
        ("nobody", (1, 3, DIM), None, {}, "404", "unknown model"),
        ("default", (1, 3, DIM), None, {"model_version": "7"}, "404", "no version '7'"),
        ("default", (1, 3, DIM - 1), None, {}, "400", "features: model default takes"),
        ("default", (1, 2001, 4), None, {}, "400", "takes"),
        ("default", (1, 3, DIM), [4], {}, "400", "lengths: expected 1 values of 1 to 3"),
        ("default", (2, 3, DIM), [3], {}, "400", "lengths: expected 2 values"),
        ("default", (1, 3, DIM), [0], {}, "400", "lengths: expected"),
        ("default", (1, 3, DIM), None, {"priority": 11}, "400", "priority"),
        ("default", (1, 2001, DIM), None, {}, "413", "at most 2000 steps"),
    ],
)
def test_what_cannot_be_is_refused(
    client: Any, model: str, shape: tuple[int, ...], lengths: list[int] | None, options: Any, status: str, message: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as refused:
        client.infer_scores(model, np.zeros(shape, np.float32), lengths, **options)
    assert message in refused.value.message()
    of_grpc = {"400": "INVALID_ARGUMENT", "413": "INVALID_ARGUMENT", "404": "NOT_FOUND"}[status]
    assert status in refused.value.status() or of_grpc in refused.value.status()
    assert client.is_server_live()


def test_nan_is_refused(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=r"NaN or infinity at step 2|expected JSON"):
        client.infer_scores("default", np.array([[[1.0] * DIM, [1.0] * DIM, [np.inf] * DIM]], np.float32))


def test_a_stream_answers_good_and_bad_in_order(server: Server, rng: np.random.Generator) -> None:
    answers: list[Any] = []
    got = threading.Semaphore(0)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: (answers.append(error or result), got.release()))
        for name in ("default", "nobody", "default"):
            tensor = triton_grpc.InferInput("features", [1, 5, DIM], "FP32")
            tensor.set_data_from_numpy(rng.random((1, 5, DIM), dtype=np.float32))
            client.async_stream_infer(name, [tensor])
        assert all(got.acquire(timeout=5) for _ in range(3))
        client.stop_stream()
    assert "unknown model" in str(answers[1])
    assert [answers[i].as_numpy("scores").shape for i in (0, 2)] == [(1, 5), (1, 5)]


def infer_json(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 1, DIM], "data": [0.5] * DIM} | changes
    return {"inputs": [tensor]}


BAD_BODIES: dict[str, Any] = {
    "no body": b"",
    "not JSON": b"{",
    "not an object": [1],
    "nested too deep": b"[" * 100_000,
    "not UTF-8": b'{"id": "\xff"}',
    "no inputs": {},
    "inputs are no list": {"inputs": 3},
    "an input is no object": {"inputs": [3]},
    "no such input": infer_json(name="pixels"),
    "name is a list": infer_json(name=["features"]),
    "name of a megabyte": infer_json(name="x" * 1_000_000),
    "shape of a megabyte": infer_json(shape=[1] * 300_000),
    "id of a megabyte": infer_json() | {"id": [["x" * 100] * 100] * 100},
    "a string of a megabyte among many": infer_json(data=["x" * 100_000, *["y"] * (DIM - 1)]),
    "truths": infer_json(data=[True] * DIM),
    "empty lists": infer_json(data=[[]] * DIM),
    "half precision as JSON": infer_json(datatype="FP16"),
    "whole numbers beyond int64": infer_json()
    | {"inputs": [*infer_json()["inputs"], {"name": "lengths", "datatype": "INT64", "shape": [1], "data": [1 << 63]}]},
    "no features": {"inputs": [{"name": "lengths", "datatype": "INT64", "shape": [1], "data": [1]}]},
    "features twice": {"inputs": infer_json()["inputs"] * 2},
    "wrong type": infer_json(datatype="FP64"),
    "type is no string": infer_json(datatype=["FP32"]),
    "negative shape": infer_json(shape=[1, -1, DIM]),
    "zero videos": infer_json(shape=[0, 1, DIM], data=[]),
    "shape of floats": infer_json(shape=[1.0, 1, DIM]),
    "shape of another rank": infer_json(shape=[1, DIM]),
    "shape too large for any memory": infer_json(shape=[1 << 39, 1 << 39, DIM]),
    "fewer numbers than the shape says": infer_json(data=[0.5]),
    "nested otherwise than the shape": infer_json(shape=[1, 2, DIM], data=[[[0.5, 0.5]] * DIM]),
    "ragged": infer_json(data=[[1.0], [1.0, 2.0]]),
    "strings": infer_json(data=["0.5"] * DIM),
    "nulls": infer_json(data=[None] * DIM),
    "objects": infer_json(data={"0": 1}),
    "beyond float32": infer_json(data=[1e300] * DIM),
    "no data": {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 1, DIM]}]},
    "data and binary": infer_json(parameters={"binary_data_size": 4 * DIM}),
    "shared memory": infer_json(parameters={"shared_memory_region": "r"}),
    "id is no string": infer_json() | {"id": 3},
    "no such output": infer_json() | {"outputs": [{"name": "labels"}]},
    "classification": infer_json() | {"outputs": [{"name": "scores", "parameters": {"classification": 2}}]},
    "parameters are no object": infer_json() | {"parameters": 3},
    "timeout below zero": infer_json() | {"parameters": {"timeout": -1}},
    "timeout is no number": infer_json() | {"parameters": {"timeout": "soon"}},
    "priority is a truth": infer_json() | {"parameters": {"priority": True}},
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_answered_with_400_and_the_reason(server: Server, name: str) -> None:
    body = BAD_BODIES[name]
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = httpx.post(server.url + "/v2/models/default/infer", content=content)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert len(answer.json()["error"]) < 400


def binary_body(size: Any, n_bytes: int) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 1, DIM], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + bytes(n_bytes), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    ("size", "n_bytes", "length"),
    [
        (4 * DIM, 4 * DIM - 1, None),
        (4 * DIM, 0, None),
        (4 * DIM, 4 * DIM + 1, None),
        (3 * DIM, 3 * DIM, None),
        (-1, 4 * DIM, None),
        ("many", 4 * DIM, None),
        (4 * DIM, 4 * DIM, "0"),
        (4 * DIM, 4 * DIM, "-1"),
        (4 * DIM, 4 * DIM, "99999999"),
        (4 * DIM, 4 * DIM, "ten"),
        (4 * DIM, 4 * DIM, "10"),
    ],
)
def test_binary_parts_that_disagree_are_refused(server: Server, size: Any, n_bytes: int, length: str | None) -> None:
    body, headers = binary_body(size, n_bytes)
    if length is not None:
        headers["Inference-Header-Content-Length"] = length
    answer = httpx.post(server.url + "/v2/models/default/infer", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("identity, gzip,", gzip.compress),  # empty elements of a list count for nothing
        ("gzip", lambda text: b"".join(gzip.compress(text[at : at + 1000]) for at in range(0, len(text), 1000))),
        ("gzip", lambda text: gzip.compress(b"") + gzip.compress(text) + gzip.compress(b"")),
        ("gzip", lambda text: gzip.compress(text) + bytes(512)),
        ("deflate", zlib.compress),
        ("Deflate", lambda text: zlib.compress(text)[2:-4]),  # raw, as some clients mean it
        ("identity", lambda text: text),
    ],
)
def test_packed_bodies_are_read_by_every_name_and_in_every_form(server: Server, encoding: str, packed: Any) -> None:
    url = server.url + "/v2/models/default/infer"
    for n_steps in (1, 20):
        text = json.dumps(infer_json(shape=[1, n_steps, DIM], data=[0.123456789] * n_steps * DIM)).encode()
        answer = httpx.post(url, content=packed(text), headers={"Content-Encoding": encoding})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["outputs"][0]["data"]) == n_steps


def test_packed_bodies_are_unpacked_within_the_limit(server: Server) -> None:
    url = server.url + "/v2/models/default/infer"
    headers = {"Content-Encoding": "gzip"}
    good = gzip.compress(json.dumps(infer_json()).encode())
    assert httpx.post(url, content=good, headers=headers).status_code == 200
    assert httpx.post(url, content=good + b"more", headers=headers).status_code == 400
    assert httpx.post(url, content=good[:-9], headers=headers).status_code == 400
    assert httpx.post(url, content=b"no gzip", headers=headers).status_code == 400
    bomb = gzip.compress(bytes(200_000_000), 1)
    assert httpx.post(url, content=bomb, headers=headers).status_code == 413
    assert httpx.post(url, content=good, headers={"Content-Encoding": "br"}).status_code == 415


def raw_exchange(server: Server, sent: bytes, timeout_s: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as wire:
        wire.sendall(sent)
        answer = b""
        while part := wire.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer and b'"}' in answer:
                break
    return answer


def test_a_claim_of_2_gb_is_refused_before_it_is_sent(server: Server) -> None:
    head = b"POST /v2/models/default/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2147483648\r\n\r\n"
    assert b" 413 " in raw_exchange(server, head).split(b"\r\n")[0]


def test_a_body_without_length_is_cut_at_the_limit(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(25):
            yield bytes(1_000_000)

    with suppress(httpx.TransportError):  # the server may close while we are still sending
        answer = httpx.post(server.url + "/v2/models/default/infer", content=endless(), timeout=10)
        assert answer.status_code == 413
    assert httpx.get(server.url + "/v2/health/live").status_code == 200


def test_a_client_that_stops_in_mid_body_is_told_and_holds_nobody_up(server: Server) -> None:
    head = b"POST /v2/models/default/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    wires = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(20)]
    for wire in wires:
        wire.sendall(head)
    answer = httpx.post(server.url + "/v2/models/default/infer", json=infer_json(), timeout=5)
    assert answer.status_code == 200
    assert b" 408 " in wires[0].recv(65536).split(b"\r\n")[0]
    for wire in wires:
        wire.close()


def large_body(features: np.ndarray, **parameters: Any) -> bytes:
    """A request for one model, in bytes, head and all."""
    tensor = {"name": "features", "datatype": "FP32", "shape": features.shape}
    tensor["parameters"] = {"binary_data_size": features.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return (
        b"POST /v2/models/default/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nInference-Header-Content-Length: %d\r\n"
        b"Content-Length: %d\r\n\r\n%s%s" % (len(header), len(header) + features.nbytes, header, features.tobytes())
    )


def answers(wire: socket.socket, n: int) -> list[tuple[int, bytes]]:
    """The next answers on a connection: status and body."""
    found = []
    with wire.makefile("rb") as stream:
        for _ in range(n):
            status = int(stream.readline().split()[1])
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            found.append((status, stream.read(int(headers[b"content-length"]))))
    return found


def test_requests_that_follow_each_other_on_a_connection_are_told_apart(
    server: Server, summarizer: Summarizer, rng: np.random.Generator
) -> None:
    videos = [rng.random((n, DIM), dtype=np.float32) for n in (200, 3, 400, 20)]
    sent = b"".join(large_body(rows[None]) for rows in videos)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(wire.sendall, sent)
        found = answers(wire, len(videos))
        sending.result()
    for (status, body), expected in zip(found, summarizer.score(videos), strict=True):
        assert status == 200
        np.testing.assert_allclose(np.frombuffer(body[-4 * len(expected) :], "<f4"), expected, atol=1e-6)


def test_a_body_that_is_refused_halfway_is_read_to_its_end_and_the_next_request_answered(
    rng: np.random.Generator,
) -> None:
    large, small = rng.random((1, 700, DIM), dtype=np.float32), rng.random((1, 100, DIM), dtype=np.float32)
    with (
        Server(port=0, max_reading_mb=1.0) as server,
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire,
    ):
        sending = pool.submit(wire.sendall, large_body(large) + large_body(small))
        found = answers(wire, 2)
        sending.result()
    assert [status for status, _ in found] == [503, 200]
    assert b"limit" in found[0][1]


def test_a_client_that_stops_in_the_middle_of_a_large_body_is_told_or_gone(server: Server) -> None:
    whole = large_body(np.zeros((1, 700, DIM), np.float32))
    stays, goes = (socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(2))
    with stays, goes:
        for wire in (stays, goes):
            wire.sendall(whole[:1_000_000])
        goes.close()
        assert answers(stays, 1)[0][0] == 408
        assert stays.recv(1) == b""
    assert server.app.state.service.bodies.n_bytes == 0


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    with (
        Server(port=0, header_timeout_s=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire,
    ):
        wire.sendall(sent)
        assert answers(wire, 1)[0][0] == 408
        assert wire.recv(1) == b""


@pytest.mark.parametrize("path", ["/v2/nothing", "/v3", "/v2/models/../../etc/passwd", "/v2/models/a%2Fb/infer"])
def test_unknown_paths_have_the_protocols_error_body(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_wrong_method_is_told(server: Server) -> None:
    assert httpx.get(server.url + "/v2/models/default/infer").status_code == 405


def test_models_come_and_go_while_others_are_served(client: Any, rng: np.random.Generator) -> None:
    features = rng.random((1, 6, DIM), dtype=np.float32)
    expected = client.infer_scores("default", features).as_numpy("scores")
    client.load_model("single")
    client.load_model("versions")
    assert plain(client.get_model_metadata("versions"))["versions"] == ["2", "10"]
    for name, version in (("single", ""), ("versions", "2"), ("versions", "")):
        answer = client.infer_scores(name, features, model_version=version)
        np.testing.assert_array_equal(answer.as_numpy("scores"), expected)
    assert plain(answer.get_response())["model_version"] == "10"
    client.unload_model("single")
    assert not client.is_model_ready("single")


def test_reloading_drops_no_request(server: Server, rng: np.random.Generator) -> None:
    body, headers = binary_body(4 * DIM, 4 * DIM)
    url = server.url + "/v2/models/single/infer"
    load = server.url + "/v2/repository/models/single/load"
    assert httpx.post(load).status_code == 200
    stop = threading.Event()

    def ask(_: int) -> list[int]:
        codes = []
        with httpx.Client() as web:
            while not stop.is_set():
                codes.append(web.post(url, content=body, headers=headers).status_code)
        return codes

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, i) for i in range(4)]
        for _ in range(4):
            assert httpx.post(load, timeout=30).status_code == 200
        stop.set()
        codes = [code for each in asking for code in each.result()]
    assert len(codes) > 20
    assert set(codes) == {200}


@pytest.mark.parametrize("name", ["..%2F..", "/etc", "single%2F..%2Fversions", ".hidden", "nothing"])
def test_only_names_in_the_model_directory_can_be_loaded(server: Server, name: str) -> None:
    assert httpx.post(f"{server.url}/v2/repository/models/{name}/load").status_code in (400, 404)


def test_load_takes_no_configuration_from_a_request(server: Server) -> None:
    answer = httpx.post(
        server.url + "/v2/repository/models/single/load", json={"parameters": {"config": '{"backend":"python"}'}}
    )
    assert answer.status_code == 400


def test_an_altered_bundle_is_not_loaded_and_the_old_one_stays(server: Server, model_dir: Path) -> None:
    assert httpx.post(server.url + "/v2/repository/models/single/load").status_code == 200
    manifest = model_dir / "single" / "manifest.json"
    kept = manifest.read_text()
    altered = json.loads(kept)
    altered["example"]["scores"][0][0] += 0.5
    manifest.write_text(json.dumps(altered))
    answer = httpx.post(server.url + "/v2/repository/models/single/load")
    manifest.write_text(kept)
    assert answer.status_code == 500
    assert "does not run here" in answer.json()["error"]
    assert httpx.get(server.url + "/v2/models/single/ready").status_code == 200


def test_a_bundle_whose_files_vanish_is_still_served(server: Server, model_dir: Path) -> None:
    shutil.copytree(DEFAULT_BUNDLE, model_dir / "vanishing")
    assert httpx.post(server.url + "/v2/repository/models/vanishing/load").status_code == 200
    shutil.rmtree(model_dir / "vanishing")
    assert httpx.post(server.url + "/v2/models/vanishing/infer", json=infer_json()).status_code == 200
    assert httpx.post(server.url + "/v2/repository/models/vanishing/unload").status_code == 200
    assert httpx.post(server.url + "/v2/models/vanishing/infer", json=infer_json()).status_code == 404


def test_a_timeout_that_cannot_be_met_is_503_with_the_time_to_wait(server: Server) -> None:
    httpx.post(server.url + "/v2/models/default/infer", json=infer_json())
    answer = httpx.post(server.url + "/v2/models/default/infer", json=infer_json() | {"parameters": {"timeout": 1}})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


def test_metrics_have_the_names_of_triton(server: Server) -> None:
    httpx.post(server.url + "/v2/models/default/infer", json=infer_json())
    text = httpx.get(server.url + "/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("nv_inference_request_success{"))
    assert 'model="default"' in line
    assert float(line.split()[-1]) >= 1
    assert "# TYPE nv_inference_pending_request_count gauge" in text


def test_the_service_definition_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    from google.protobuf import descriptor_pb2

    out = tmp_path / "out.binpb"
    folder = ROOT / "runtime" / "serve"
    assert protoc.main(["", f"-I{folder}", f"--descriptor_set_out={out}", str(folder / "open_inference.proto")]) == 0
    read = descriptor_pb2.FileDescriptorSet.FromString
    assert read(out.read_bytes()) == read((folder / "open_inference.binpb").read_bytes())


def test_the_service_definition_agrees_with_that_of_tritons_client() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    from vsum_runtime.runtime.serve.rpc import SERVICE, descriptors

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    pool = descriptors()
    checked = 0

    def compare(ours: Any, other: Any) -> None:
        nonlocal checked
        for field in ours.fields:
            twin = other.fields_by_name[field.name]
            assert (field.number, field.type) == (twin.number, twin.type), field.full_name
            checked += 1
        for nested in ours.nested_types:
            compare(nested, other.nested_types_by_name[nested.name])

    file = pool.FindServiceByName(SERVICE).file
    for name, message in file.message_types_by_name.items():
        compare(message, theirs[name])
    assert checked > 100


def test_the_key_is_asked_for_everywhere_but_at_health_and_page() -> None:
    with Server(port=0, grpc_port=0, api_key="secret") as server:
        for path, open_to_all in (("/", True), ("/v2/health/ready", True), ("/v2", False), ("/metrics", False)):
            assert (httpx.get(server.url + path).status_code == 200) == open_to_all
        for scheme in ("Bearer", "bearer", "BEARER "):
            assert httpx.get(server.url + "/v2", headers={"Authorization": f"{scheme} secret"}).status_code == 200
        for wrong in ("secret", "Basic secret", "Bearer", "Bearer wrong", "Bearersecret"):
            assert httpx.get(server.url + "/v2", headers={"Authorization": wrong}).status_code == 401
        assert httpx.get(server.url + "/v2", headers={"X-API-Key": "secret"}).status_code == 200
        assert httpx.get(server.url + "/v2", headers={"X-API-Key": "wrong"}).json()["error"].startswith("expected")
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            with pytest.raises(triton_grpc.InferenceServerException, match="API key"):
                client.get_server_metadata()
            assert client.get_server_metadata(headers={"x-api-key": "secret"}).name == "vsum"


def test_pages_of_other_sites_cannot_use_the_server(server: Server) -> None:
    answer = httpx.get(server.url + "/v2", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://{host}", 200),
        ("https://{host}", 200),  # a proxy took off TLS
        ("http://evil.example", 403),
        ("http://{host}.evil.example", 403),
        ("http://127.0.0.1", 403),  # another port is another origin
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_where_browsers_do_not_tell_the_site_the_origin_must_be_the_host(
    server: Server, origin: str, status: int
) -> None:
    headers = {"Origin": origin.format(host=f"127.0.0.1:{server.port}")}
    for path in ("/v2", "/v2/health/ready", "/"):
        assert httpx.get(server.url + path, headers=headers).status_code == status
    assert httpx.post(server.url + "/v2/models/default/infer", json=infer_json(), headers=headers).status_code == status


@pytest.mark.parametrize(("name", "good"), [("Sec-Fetch-Site", "same-origin"), ("Origin", "http://{host}")])
def test_a_good_header_does_not_cover_a_foreign_one(server: Server, name: str, good: str) -> None:
    values = ["http://evil.example", good.format(host=f"127.0.0.1:{server.port}")]
    for order in (values, values[::-1]):
        assert httpx.get(server.url + "/v2", headers=[(name, value) for value in order]).status_code == 403


@pytest.mark.parametrize("path", ["/v2", "/v2/nothing", "/metrics", "/v2/models/default/infer", "/v2/health/live"])
def test_answers_are_neither_stored_nor_taken_for_another_type(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert httpx.get(server.url + "/").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:1", 200),
        ("LOCALHOST:9", 200),
        ("evil.example", 421),
        ("", 421),
    ],
)
def test_only_the_names_of_this_machine_are_answered_on_loopback(server: Server, host: str, status: int) -> None:
    """Else a page of a name that points here could ask: to a browser both are one site."""
    for path in ("/", "/v2"):
        assert httpx.get(server.url + path, headers={"Host": host}).status_code == status


def test_names_of_this_server_can_be_given() -> None:
    with Server(port=0, allowed_hosts=("vsum.example",)) as server:
        assert httpx.get(server.url + "/v2", headers={"Host": "vsum.example:80"}).status_code == 200
        assert httpx.get(server.url + "/v2").status_code == 421


def test_messages_of_grpc_count_against_the_memory_of_the_server(rng: np.random.Generator) -> None:
    with (
        Server(port=0, grpc_port=0, max_reading_mb=1.0) as server,
        triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):

        def ask(n_steps: int) -> Any:
            tensor = triton_grpc.InferInput("features", [1, n_steps, DIM], "FP32")
            tensor.set_data_from_numpy(rng.random((1, n_steps, DIM), dtype=np.float32))
            return client.infer("default", [tensor]).as_numpy("scores")

        with pytest.raises(triton_grpc.InferenceServerException, match="limit"):
            ask(200)
        assert ask(90).shape == (1, 90)  # twice where the tensor has to be moved to be aligned


def test_features_of_half_precision_count_as_what_they_become() -> None:
    with (
        Server(port=0, max_reading_mb=1.0) as server,
        triton_http.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):

        def ask(n_steps: int) -> Any:
            tensor = triton_http.InferInput("features", [1, n_steps, DIM], "FP16")
            tensor.set_data_from_numpy(np.zeros((1, n_steps, DIM), np.float16))
            return client.infer("default", [tensor]).as_numpy("scores")

        with pytest.raises(triton_http.InferenceServerException, match="limit"):
            ask(150)  # 0.38 MB, and 0.77 as FP32
        assert ask(120).shape == (1, 120)


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/models/default/infer"])
@pytest.mark.parametrize("packed", [False, True])
def test_large_json_is_unpacked_and_parsed_beside_the_event_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, packed: bool
) -> None:
    from vsum_runtime.runtime.serve import bodies
    from vsum_runtime.runtime.serve.rest import v2

    threads: list[str] = []

    def noted(call: Any) -> Any:
        return lambda *arguments: (threads.append(threading.current_thread().name), call(*arguments))[1]

    monkeypatch.setattr(v2, "_object", noted(v2._object))
    monkeypatch.setattr(bodies, "_unpacked", noted(bodies._unpacked))
    for size in (10, 200_000):
        text = json.dumps({"id": "".join(map(chr, np.random.default_rng(0).integers(65, 91, size)))}).encode()
        headers = {"Content-Encoding": "gzip"} if packed else {}
        httpx.post(server.url + path, content=gzip.compress(text) if packed else text, headers=headers)
    small, large = threads[: len(threads) // 2], threads[len(threads) // 2 :]
    assert set(small) == {"vsum-server"}
    assert all(name.startswith("bodies") for name in large)


def test_mounted_in_another_application() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    vsum = create_app(ServeConfig())
    outer = Starlette(routes=[Mount("/vsum", vsum)], lifespan=lambda _: vsum.state.service)
    with TestClient(outer) as client:
        assert client.get("/vsum/v2/health/ready").status_code == 200
        assert client.post("/vsum/v2/models/default/infer", json=infer_json()).status_code == 200


def test_settings_of_file_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nhost = "localhost"\nmax_queue = 3\nbundle = ["a", "b"]\n')
    environment = {"VSUM_SERVE_PORT": "2", "VSUM_SERVE_MAX_QUEUE": "4", "OTHER": "x"}
    config = read_config(["--config", str(file), "--port", "3"], environment)
    assert (config.port, config.max_queue, config.host, config.bundle) == (3, 4, "localhost", ("a", "b"))


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (["--port", "many"], {}, "port: expected a whole number, got 'many'"),
        (["--port", "70000"], {}, "expected a port"),
        (["--max-queue", "0"], {}, "above zero"),
        ([], {"VSUM_SERVE_PROT": "1"}, "VSUM_SERVE_PROT is not a setting"),
        (["--host", "0.0.0.0"], {}, "can be reached by others"),
        (["--tls-cert", "c"], {}, "tls_cert and tls_key together"),
        (["--config", "/nowhere.toml"], {}, "expected a TOML file"),
    ],
)
def test_settings_that_cannot_be(argv: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(argv, environment)


def test_the_documented_table_is_the_settings() -> None:
    assert settings_table() in (ROOT / "docs" / "serving.md").read_text()


def test_a_model_that_cannot_be_loaded_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither"), Server(port=0, bundle=(str(tmp_path),)):
        pass


def test_sigterm_finishes_what_runs_and_exits_with_0(rng: np.random.Generator) -> None:
    command = [sys.executable, "-m", "vsum_runtime.runtime.serve", "--port", "0", "--workers", "1", "--grace-s", "20"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if "listening" in (message := json.loads(line).get("message", "")):
            url = message.split()[-1]
            break
    features = rng.random((1, 9999, DIM), dtype=np.float32)  # takes a second or more
    tensor = {"name": "features", "datatype": "FP32", "shape": features.shape}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": features.nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}

    def ask() -> int:
        body = head + features.tobytes()
        return httpx.post(url + "/v2/models/default/infer", content=body, headers=headers, timeout=30).status_code

    def pending() -> bool:
        text = httpx.get(url + "/v2/models/default/stats").text
        return json.loads(text)["model_stats"][0]["inference_count"] == 0

    with process, ThreadPoolExecutor(1) as pool:
        try:
            asked = pool.submit(ask)
            time.sleep(0.3)
            assert pending()
            process.send_signal(signal.SIGTERM)
            assert asked.result(30) == 200
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_client_that_goes_away_gives_back_its_place(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    with Server(port=0, grpc_port=0, workers=1) as server, ThreadPoolExecutor(1) as pool:
        batcher = server.app.state.service.models.get("default").batcher
        url, run = server.url + "/v2/models/default/infer", batcher._run
        monkeypatch.setattr(batcher, "_run", lambda videos: gate.wait(30) and run(videos))

        def waits(n: int) -> bool:
            return any(batcher.n_waiting == n or time.sleep(0.01) for _ in range(1000))

        running = pool.submit(httpx.post, url, json=infer_json(), timeout=60)
        while not batcher.n_running:
            time.sleep(0.002)
        body = json.dumps(infer_json()).encode()
        head = b"POST /v2/models/default/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        with (
            socket.create_connection(("127.0.0.1", server.port)) as wire,
            triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
        ):
            wire.sendall(head + body)
            asked = triton_grpc.InferInput("features", [1, 2, DIM], "FP32")
            asked.set_data_from_numpy(rng.random((1, 2, DIM), dtype=np.float32))
            call = client.async_infer("default", [asked], lambda result, error: None)
            assert waits(2)
            wire.close()
            call.cancel()
            assert waits(0)
        assert not running.done()
        gate.set()
        assert running.result().status_code == 200


def scoring_processes() -> list[int]:
    """Of servers in this process."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            with suppress(OSError):
                if "vsum_runtime.runtime.serve.isolated" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_scoring_process_that_dies_before_it_begins_costs_no_request_and_is_replaced(
    number: signal.Signals, summarizer: Summarizer, rng: np.random.Generator
) -> None:
    features = rng.random((1, 30, DIM), dtype=np.float32)
    with Server(port=0, isolate=True, workers=1) as server, ThreadPoolExecutor(1) as pool:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{server.port}")
        tensor = triton_http.InferInput("features", [1, 30, DIM], "FP32")
        tensor.set_data_from_numpy(features)
        (pid,) = scoring_processes()
        os.kill(pid, signal.SIGSTOP)  # so that the request is sent to it and not begun when it dies
        url = server.url + "/v2/models/default/infer"
        asking = pool.submit(httpx.post, url, json=infer_json(), timeout=30)
        while not server.app.state.service.models.get("default").batcher.n_running:
            time.sleep(0.005)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        answer = asking.result()
        assert answer.status_code == 200
        scores = client.infer("default", [tensor]).as_numpy("scores")
        np.testing.assert_allclose(scores[0], summarizer.score(list(features))[0], atol=1e-6)
        assert scoring_processes() != [pid]
        client.close()
    assert scoring_processes() == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    may_sign = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 insists on these extensions
    authority = ("-subj", "/CN=authority", "-days", "2", *may_sign)
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", *authority)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_only_clients_with_a_certificate_get_in(certificates: Path) -> None:
    ca, pem, key = (certificates / name for name in ("ca.pem", "server.pem", "server.key"))
    with Server(port=0, grpc_port=0, tls_cert=pem, tls_key=key, tls_client_ca=ca) as server:
        trusting = ssl.create_default_context(cafile=str(ca))
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/v2", verify=trusting)
        trusting.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert httpx.get(server.url + "/v2", verify=trusting).status_code == 200
        body, size = binary_body(4 * DIM * 200, 4 * DIM * 200)
        answer = httpx.post(
            server.url + "/v2/models/default/infer",
            content=body.replace(b"[1, 1,", b"[1, 200,"),
            headers={"Inference-Header-Content-Length": str(int(size["Inference-Header-Content-Length"]) + 2)},
            verify=trusting,
        )
        assert len(answer.json()["outputs"][0]["data"]) == 200
        files = {"root_certificates": str(ca)}
        own = {"private_key": str(certificates / "client.key"), "certificate_chain": str(certificates / "client.pem")}
        address = f"127.0.0.1:{server.grpc_port}"
        with triton_grpc.InferenceServerClient(address, ssl=True, **files, **own) as client:
            assert client.is_server_live()
        stranger = triton_grpc.InferenceServerClient(address, ssl=True, **files)
        with stranger, pytest.raises(triton_grpc.InferenceServerException):
            stranger.is_server_live(client_timeout=3)


def test_the_example_client_scores_files(server: Server, tmp_path: Path, rng: np.random.Generator) -> None:
    files = [tmp_path / f"{n}.npy" for n in (3, 40, 7)]
    for file in files:
        np.save(file, rng.random((int(file.stem), DIM), dtype=np.float32))
    command = [sys.executable, "examples/async_client.py", f"127.0.0.1:{server.port}", "default", *map(str, files)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split(": ")[1].split(",")[0] for line in out.splitlines()) == ["3 steps", "40 steps", "7 steps"]


@pytest.mark.parametrize("protocol", [["http"], ["http", "--async"], ["grpc"], ["grpc", "--streaming", "--async"]])
def test_tritons_load_generator_runs_against_this_server(server: Server, protocol: list[str], tmp_path: Path) -> None:
    """perf_analyzer, a program in C++; docs/serving.md says where it comes from."""
    program = os.environ.get("VSUM_PERF_ANALYZER")
    if program is None:
        pytest.skip("VSUM_PERF_ANALYZER does not name a perf_analyzer")
    port = server.grpc_port if protocol[0] == "grpc" else server.port
    step = {
        "features": {"content": [0.5] * 40 * DIM, "shape": [1, 40, DIM]},
        "lengths": {"content": [30], "shape": [1]},
    }
    (tmp_path / "data.json").write_text(json.dumps({"data": [step]}))
    command = [program, "-m", "default", "-u", f"127.0.0.1:{port}", "-i", *protocol, "--concurrency-range", "2"]
    command += ["--input-data", str(tmp_path / "data.json"), "-f", str(tmp_path / "out.csv")]
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", "20"]
    command += ["--stability-percentage", "999"]  # how fast it is is not asked here
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    names, values = (tmp_path / "out.csv").read_text().splitlines()[:2]
    row = dict(zip(names.split(","), values.split(","), strict=True))
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) > 0
