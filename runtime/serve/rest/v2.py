"""V2 over HTTP: JSON, with tensors as JSON or as raw little-endian bytes after it, in both directions."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vsum_runtime.runtime.errors import InputError, brief
from vsum_runtime.runtime.serve import protocol
from vsum_runtime.runtime.serve.bodies import HEADER_LENGTH, Bodies, Held, unless_gone
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.models import Model, Models
from vsum_runtime.runtime.serve.shared_memory import Output, Regions

_VERSION = ("", "/versions/{version}")
_LARGE_JSON, _LARGE_BODY = 1 << 16, 1 << 24  # bytes; larger ones are parsed beside the event loop


def routes(models: Models, bodies: Bodies, regions: Regions, config: ServeConfig) -> list[Route]:
    """All paths of V2, with Triton's extensions: configuration, statistics, model repository, system shared memory."""

    def find(request: Request) -> Model:
        return models.get(request.path_params["model"], request.path_params.get("version", ""))

    async def server(request: Request) -> Response:
        return JSONResponse(protocol.server_metadata(shared_memory=config.shared_memory))

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": models.ready}, 200 if models.ready else 503)

    async def metadata(request: Request) -> Response:
        model = find(request)
        return JSONResponse(protocol.model_metadata(model, models.versions(model.name)))

    async def model_ready(request: Request) -> Response:
        model = find(request)
        return JSONResponse({"name": model.name, "ready": True})

    async def model_config(request: Request) -> Response:
        return JSONResponse(protocol.model_config(find(request)))

    async def statistics(request: Request) -> Response:
        found = [find(request)] if "model" in request.path_params else list(models)
        return JSONResponse({"model_stats": [protocol.model_statistics(model) for model in found]})

    async def infer(request: Request) -> Response:
        async with bodies.read(request) as (body, held):
            return await unless_gone(request, _infer(request, body, held))

    async def _infer(request: Request, body: memoryview, held: Held) -> Response:
        began = time.monotonic()
        model = find(request)
        length = _header_length(request.headers, len(body))
        if length > _LARGE_JSON or len(body) > _LARGE_BODY:
            header, tensors = await bodies.beside(_parse, body, length, regions, held)
        else:
            header, tensors = _parse(body, length, regions, held)
        checked = protocol.check_request(model, tensors, _parameters(header), max_steps=config.max_steps)
        binary, output = _wanted(header, regions, checked.answer_bytes)
        model, scores = await protocol.infer(
            models, model.name, request.path_params.get("version", ""), checked, began=began
        )
        return _answer(model, header.get("id"), scores, binary, output)

    async def read_object(request: Request) -> dict[str, Any]:
        async with bodies.read(request) as (body, held):
            if len(body) > _LARGE_JSON:
                return await bodies.beside(_object, body, held)
            return _object(body, held)

    async def index(request: Request) -> Response:
        only_ready = (await read_object(request)).get("ready") is True
        return JSONResponse([row for row in models.index() if not only_ready or row["state"] == "READY"])

    async def load(request: Request) -> Response:
        if _parameters(await read_object(request)):
            raise InputError("load: takes no parameters; configuration and files come from the model directory")
        await asyncio.to_thread(models.load, request.path_params["model"])
        return Response(status_code=200)

    async def unload(request: Request) -> Response:
        await read_object(request)
        await asyncio.to_thread(models.unload, request.path_params["model"])
        return Response(status_code=200)

    async def memory_status(request: Request) -> Response:
        return JSONResponse(regions.status(request.path_params.get("region", "")))

    async def register_memory(request: Request) -> Response:
        asked = await read_object(request)
        key, offset, byte_size = asked.get("key"), asked.get("offset", 0), asked.get("byte_size")
        await asyncio.to_thread(regions.register, request.path_params["region"], key, offset, byte_size)
        return Response(status_code=200)

    async def unregister_memory(request: Request) -> Response:
        await read_object(request)
        await asyncio.to_thread(regions.unregister, request.path_params.get("region", ""))
        return Response(status_code=200)

    found = [Route(f"/v2/models/{{model}}{version}/infer", infer, methods=["POST"]) for version in _VERSION]
    found += [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models/stats", statistics),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", unload, methods=["POST"]),
        Route("/v2/systemsharedmemory/region/{region}/register", register_memory, methods=["POST"]),
    ]
    for path in ("/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{region}"):
        found += [
            Route(path + "/status", memory_status),
            Route(path + "/unregister", unregister_memory, methods=["POST"]),
        ]
    for path in (f"/v2/models/{{model}}{version}" for version in _VERSION):
        found += [
            Route(path, metadata),
            Route(path + "/ready", model_ready),
            Route(path + "/config", model_config),
            Route(path + "/stats", statistics),
        ]
    return found


def _header_length(headers: Mapping[str, str], n_bytes: int) -> int:
    text = headers.get(HEADER_LENGTH, str(n_bytes))
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or not 0 < int(text) <= n_bytes:
        raise InputError(f"Inference-Header-Content-Length: expected 1 to {n_bytes} (the body), got {brief(text)}")
    return int(text)


def _object(body: memoryview, held: Held) -> dict[str, Any]:
    """A JSON object; nothing at all stands for an empty one."""
    held.add_json(body)
    try:
        found = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InputError(f"body: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"body: expected a JSON object, got {type(found).__name__}")
    return found


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise InputError(f"parameters: expected an object, got {brief(found)}")
    return found


def _list(header: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = header.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{key}: expected a list of objects")
    return found


def _parse(
    body: memoryview, header_length: int, regions: Regions, held: Held
) -> tuple[dict[str, Any], list[protocol.Tensor]]:
    header = _object(body[:header_length], held)
    if not isinstance(header.get("id", ""), str):
        raise InputError(f"id: expected a string, got {brief(header['id'])}")
    protocol.check_outputs([(entry.get("name"), _parameters(entry)) for entry in _list(header, "outputs")])
    tensors = []
    at = header_length
    for entry in _list(header, "inputs"):
        shape = protocol.check_tensor(entry.get("name"), entry.get("datatype"), entry.get("shape"))
        name, datatype, parameters = entry["name"], entry["datatype"], _parameters(entry)
        shared = regions.input(name, datatype, shape, parameters)
        if [shared is not None, "data" in entry, "binary_data_size" in parameters].count(True) != 1:
            raise InputError(f"{name}: expected data, the parameter binary_data_size, or shared memory: one of them")
        held.add(protocol.converted_bytes(shape, datatype))
        if shared is not None:
            tensors.append(shared)
            continue
        if "data" in entry:
            if datatype == "FP16":
                raise InputError(f"{name}: expected FP16 as bytes (binary_data_size), JSON has no such numbers")
            values = _values(name, datatype, shape, entry["data"])
        else:
            size, expected = parameters["binary_data_size"], protocol.tensor_bytes(shape, datatype)
            if type(size) is not int or size != expected or at + size > len(body):
                raise InputError(
                    f"{name}: shape {list(shape)} takes {expected} bytes, binary_data_size says {brief(size)}, and "
                    f"{len(body) - at} follow the JSON and earlier tensors"
                )
            values = np.frombuffer(body[at : at + size], dtype=protocol.DTYPES[datatype])
            held.add(0 if values.flags.aligned else values.nbytes)
            values = np.require(values, requirements="A")
            at += size
        tensors.append(protocol.Tensor(name, datatype, shape, values))
    if at != len(body):
        raise InputError(f"body: {len(body) - at} bytes follow the last tensor")
    return header, tensors


def _values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
    """The values of a tensor sent as JSON, flat or nested; they are counted before memory is taken for their shape."""
    nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)
    rows = list(_rows(name, data, shape if nested else (math.prod(shape),), shape))
    kinds = {int, float} if datatype == "FP32" else {int}
    if any(not set(map(type, row)) <= kinds for row in rows):
        raise InputError(f"{name}: expected {datatype} numbers, got others")
    values = np.empty((len(rows), len(rows[0])), dtype=protocol.DTYPES[datatype])
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which the model refuses
            for target, row in zip(values, rows, strict=True):
                target[:] = np.array(row, dtype=np.float64 if datatype == "FP32" else np.int64)
    except OverflowError:
        raise InputError(f"{name}: expected {datatype} numbers, got larger ones") from None
    return values.reshape(-1)


def _rows(name: str, data: Any, sizes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[list[Any]]:
    """The innermost lists of nested ones, if their lengths are these sizes."""
    if not isinstance(data, list):
        raise InputError(f"{name}: expected data to be lists of numbers, nested as the shape says, got {brief(data)}")
    if len(data) != sizes[0]:
        raise InputError(f"{name}: the shape is {brief(list(shape))}, the data has a list of {len(data)}")
    if len(sizes) == 1:
        yield data
        return
    for part in data:
        yield from _rows(name, part, sizes[1:], shape)


def _wanted(header: Mapping[str, Any], regions: Regions, n_bytes: int) -> tuple[bool, Output | None]:
    """Whether the answer shall be binary, and the shared memory it shall go to."""
    for entry in _list(header, "outputs"):
        parameters = _parameters(entry)
        output = regions.output(n_bytes, parameters)
        if output is not None or "binary_data" in parameters:
            return parameters.get("binary_data") is True, output
    return _parameters(header).get("binary_data_output") is True, None


def _answer(
    model: Model, request_id: str | None, scores: NDArray[np.float32], binary: bool, shared: Output | None
) -> Response:
    output: dict[str, Any] = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": [output]}
    if request_id:
        answer["id"] = request_id
    if shared is not None:
        shared.write(scores.astype("<f4", copy=False).tobytes())
        return Response(orjson.dumps(answer), media_type="application/json")
    if not binary:
        output["data"] = scores.reshape(-1)
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
    raw = scores.astype("<f4", copy=False).tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    head = orjson.dumps(answer)
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=headers)
