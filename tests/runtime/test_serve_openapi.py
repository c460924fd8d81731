"""The description of ``/v1`` says what the server does."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from vsum_runtime.runtime.serve.server import Server  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Any:
    with Server(port=0, api_key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    answer = httpx.get(server.url + "/v1/openapi.json")  # without the key
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def test_it_has_every_path_and_method_of_v1(server: Server, description: dict[str, Any]) -> None:
    served = {
        (route.path, method.lower())
        for route in server.app.routes
        if route.path.startswith("/v1/") and route.path != "/v1/openapi.json"
        for method in route.methods - {"HEAD"}
    }
    assert served == {
        (path, method) for path, item in description["paths"].items() for method in item if method != "parameters"
    }


def fits(value: Any, schema: dict[str, Any], description: dict[str, Any]) -> bool:
    """As far as the description goes: references, types, constants, required and known names, items."""
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "const" in schema or "enum" in schema:
        return bool(value in schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    named = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}
    if not any(value is None if kind == "null" else isinstance(value, named[kind]) for kind in kinds):
        return False
    if isinstance(value, dict):
        known = schema["properties"]
        names = set(schema["required"]) <= value.keys() <= known.keys()
        return names and all(fits(part, known[name], description) for name, part in value.items())
    return not isinstance(value, list) or all(fits(part, schema["items"], description) for part in value)


@pytest.mark.parametrize("fps", [None, 30.0])
def test_a_summary_is_as_described(server: Server, description: dict[str, Any], fps: float | None) -> None:
    with io.BytesIO() as file:
        rows = np.random.default_rng(0).random((40, 1280), dtype=np.float32)
        np.savez(file, features=rows, **({} if fps is None else {"fps": fps}))
        files = {"features": ("features.npz", file.getvalue())}
    answer = httpx.post(
        server.url + "/v1/summarize", files=files, headers={"Authorization": "Bearer secret"}, timeout=60
    )
    assert answer.status_code == 200
    summary = answer.json()
    assert fits(summary, {"$ref": "#/components/schemas/Summary"}, description)
    assert ("segments_s" in summary) == (fps is not None)
    assert not fits({**summary, "unheard_of": 1}, {"$ref": "#/components/schemas/Summary"}, description)


def test_errors_and_jobs_are_as_described(server: Server, description: dict[str, Any]) -> None:
    headers = {"X-API-Key": "secret"}
    answers = [
        httpx.get(server.url + "/v1/jobs/" + 32 * "0", headers=headers),
        httpx.get(server.url + "/v1/jobs/" + 32 * "0"),
        httpx.post(server.url + "/v1/summarize", files={"video": ("film.mp4", b"none")}, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [404, 401, 422]
    assert all(fits(answer.json(), {"$ref": "#/components/schemas/Error"}, description) for answer in answers)
    files = {"video": ("film.mp4", b"none")}
    job = httpx.post(server.url + "/v1/summarize", files=files, headers=headers | {"Prefer": "respond-async"})
    assert job.status_code == 202
    assert fits(job.json(), {"$ref": "#/components/schemas/Job"}, description)
    location = server.url + job.headers["Location"]
    while (state := httpx.get(location, headers=headers).json())["state"] != "failed":  # and the server need not wait
        assert fits(state, {"$ref": "#/components/schemas/Job"}, description)
        time.sleep(0.05)
    assert fits(state, {"$ref": "#/components/schemas/Job"}, description)
    assert state["status"] == 422
