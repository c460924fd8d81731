"""The same requests to this server and to a real Triton: where they answer alike, and where they do not.

Triton comes in the package nvidia-pytriton, which needs numpy below 2 and a Python with a shared library, so an
environment of its own: VSUM_TRITON_PYTHON names its interpreter. What differs is listed in docs/serving.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

from vsum_runtime.runtime import Summarizer  # noqa: E402
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE  # noqa: E402
from vsum_runtime.runtime.serve import Server  # noqa: E402

DIM = 1280


@pytest.fixture(scope="module", params=["ours", "triton"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "ours":
        with Server(port=0, shared_memory=Path("/dev/shm").is_dir()) as server:
            yield server.port
        return
    python = os.environ.get("VSUM_TRITON_PYTHON")
    if python is None:
        pytest.skip("VSUM_TRITON_PYTHON does not name a Python with nvidia-pytriton")
    from benchmarks.serving import triton_server

    with triton_server(Path(python), DEFAULT_BUNDLE / "scorer.onnx", 2) as found:
        yield found.port


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with triton_http.InferenceServerClient(f"127.0.0.1:{port}") as found:
        yield found


def infer(client: Any, features: np.ndarray, model: str = "default", **options: Any) -> Any:
    tensor = triton_http.InferInput("features", list(features.shape), "FP32")
    tensor.set_data_from_numpy(features)
    return client.infer(model, [tensor], **options)


def tensor(shape: list[int], data: list[int]) -> bytes:
    return json.dumps({"inputs": [{"name": "features", "datatype": "FP32", "shape": shape, "data": data}]}).encode()


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("default")
    assert not client.is_model_ready("nobody")
    described = client.get_model_metadata("default")
    assert described["inputs"][0] == {"name": "features", "datatype": "FP32", "shape": [-1, -1, DIM]}
    assert described["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, -1]}]
    assert {"binary_tensor_data", "schedule_policy"} <= set(client.get_server_metadata()["extensions"])


@pytest.mark.parametrize("n_steps", [1, 7, 320])
def test_scores(client: Any, rng: np.random.Generator, n_steps: int) -> None:
    features = rng.random((2, n_steps, DIM), dtype=np.float32)
    answer = infer(client, features, request_id="mine")
    with Summarizer() as summarizer:
        np.testing.assert_allclose(answer.as_numpy("scores"), summarizer.score(list(features)), atol=1e-5)
    assert answer.get_response()["id"] == "mine"
    assert answer.get_response()["model_name"] == "default"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")
def test_shared_memory(client: Any, rng: np.random.Generator) -> None:
    from tritonclient.utils import shared_memory as shm

    features = rng.random((2, 7, DIM), dtype=np.float32)
    key, n_bytes = f"/vsum-test-{os.getpid()}", features.nbytes + 100
    memory = shm.create_shared_memory_region("r", key, n_bytes, create_only=True)
    try:
        shm.set_shared_memory_region(memory, [features])
        client.register_system_shared_memory("r", key, n_bytes)
        assert client.get_system_shared_memory_status() == [
            {"name": "r", "key": key, "offset": 0, "byte_size": n_bytes}
        ]
        shared = triton_http.InferInput("features", list(features.shape), "FP32")
        shared.set_shared_memory("r", features.nbytes)
        output = triton_http.InferRequestedOutput("scores")
        output.set_shared_memory("r", 100, features.nbytes)
        found = client.infer("default", [shared], outputs=[output]).get_output("scores")
        assert found == {"name": "scores", "datatype": "FP32", "shape": [2, 7]}
        scores = np.array(shm.get_contents_as_numpy(memory, np.float32, [2, 7], features.nbytes))
        np.testing.assert_allclose(scores, infer(client, features).as_numpy("scores"), atol=1e-6)
        refused = [
            lambda: client.register_system_shared_memory("r", key, n_bytes),
            lambda: client.register_system_shared_memory("q", key + "-missing", n_bytes),
            lambda: client.register_system_shared_memory("q", key, n_bytes + 1),
            lambda: client.get_system_shared_memory_status("q"),
            lambda: client.infer("default", [shared.set_shared_memory("q", features.nbytes)]),
            lambda: client.infer("default", [shared.set_shared_memory("r", features.nbytes - 4)]),
            lambda: client.infer("default", [shared.set_shared_memory("r", features.nbytes, 104)]),
        ]
        for call in refused:
            with pytest.raises(triton_http.InferenceServerException):
                call()
        client.unregister_system_shared_memory("q")
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        shm.destroy_shared_memory_region(memory)


@pytest.mark.parametrize(
    ("name", "path", "body", "statuses"),
    [
        ("unknown model", "nobody", b'{"inputs": []}', {404}),
        ("no inputs", "default", b'{"inputs": []}', {400}),
        ("wrong shape", "default", tensor([1, 1, 2], [1, 2]), {400}),
        ("malformed JSON", "default", b"{", {400, 500}),
        ("wrong data length", "default", tensor([1, 1, DIM], [1]), {400, 500}),
    ],
)
def test_bad_requests(port: int, name: str, path: str, body: bytes, statuses: set[int]) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/{path}/infer", content=body)
    assert answer.status_code in statuses, name
    assert list(answer.json()) == ["error"]


def test_what_differs_is_what_the_documentation_lists(client: Any, port: int, rng: np.random.Generator) -> None:
    url = f"http://127.0.0.1:{port}"
    is_triton = client.get_server_metadata()["name"] == "triton"
    for path in ("/v2/trace/setting", "/v2/logging"):
        assert (httpx.get(url + path).status_code != 404) == is_triton, path  # pytriton answers some of them with 403
    for body in (b"{", tensor([1, 1, DIM], [1])):
        assert httpx.post(url + "/v2/models/default/infer", content=body).status_code == (500 if is_triton else 400)
    features = rng.random((1, 5, DIM), dtype=np.float32)
    classes = [triton_http.InferRequestedOutput("scores", class_count=1)]
    if is_triton:
        assert infer(client, features, outputs=classes).as_numpy("scores").shape == (1, 1)
    else:
        with pytest.raises(triton_http.InferenceServerException, match="classification"):
            infer(client, features, outputs=classes)
