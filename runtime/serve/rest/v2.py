"""V2 over HTTP: JSON, with tensors as JSON or as raw little-endian bytes after it, in both directions."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vsum_runtime.runtime.errors import BusyError, InputError, TooLargeError
from vsum_runtime.runtime.serve import protocol
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.models import Model, Models
from vsum_runtime.runtime.serve.rest.wire import RECEIVE_INTO
from vsum_runtime.runtime.serve.shared_memory import Output, Regions

HEADER_LENGTH = "inference-header-content-length"
_VERSION = ("", "/versions/{version}")
_LARGE_JSON = 1 << 18  # bytes; larger ones are parsed beside the event loop

Result = TypeVar("Result")


class Bodies:
    """Reads request bodies into memory, within limits of size, time and of all of them together."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[memoryview]:
        """The whole body, unpacked; it counts against the server's memory until the block ends.

        Raises
        ------
        TooLargeError   it says it is, or is, larger than allowed, as sent or unpacked
        BusyError       the server holds as much as it may
        HTTPException   408, the client was too slow
        """
        limit = int(self._config.max_body_mb * 1e6)
        claimed = request.headers.get("content-length", "0")
        if claimed.isdecimal() and int(claimed) > limit:
            raise TooLargeError(f"body: expected at most {limit} bytes, got Content-Length {claimed}")
        head = request.headers.get(HEADER_LENGTH, "0")
        head_bytes = int(head) if head.isdecimal() else 0
        encoding = request.headers.get("content-encoding", "identity")
        size = 0

        def came(n_bytes: int) -> None:
            nonlocal size
            size += n_bytes
            self._add(n_bytes)
            if size > limit:
                raise TooLargeError(f"body: expected at most {limit} bytes, got more")

        try:
            try:
                body = await _received(request, encoding, head_bytes, came, self._config.body_timeout_s)
            except TimeoutError:
                raise HTTPException(408, f"the body was not here after {self._config.body_timeout_s:g} s") from None
            except ConnectionResetError:
                raise ClientDisconnect from None
            if encoding != "identity":
                body = memoryview(_unpacked(bytes(body), encoding, limit))
            yield body
        finally:
            self._held -= size

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count what another door has read, until the block ends.

        Raises
        ------
        BusyError   the server holds as much as it may
        """
        try:
            self._add(size)
            yield
        finally:
            self._held -= size

    def _add(self, n_bytes: int) -> None:
        self._held += n_bytes
        if self._held > self._config.max_reading_mb * 1e6:
            raise BusyError("requests in memory reach the server's limit")


async def _received(
    request: Request, encoding: str, head: int, came: Callable[[int], None], timeout_s: float
) -> memoryview:
    """The whole body. Memory is handed on only when this request has filled it."""
    claimed = request.headers.get("content-length", "")
    receive_into = request.scope.get("extensions", {}).get(RECEIVE_INTO)
    if receive_into is not None and encoding == "identity" and claimed.isdecimal():
        body = _memory(int(claimed), head)
        await receive_into(body, came, timeout_s)
        return body
    whole = bytearray()
    with anyio.fail_after(timeout_s):
        async for part in request.stream():
            came(len(part))
            whole += part
    body = _memory(len(whole), head)
    body[:] = whole
    return body


def _memory(size: int, head: int) -> memoryview:
    """Memory for a body, what follows its head aligned for the model, so that it is not copied again."""
    memory = np.empty(size + 64, dtype=np.uint8)
    start = -(memory.ctypes.data + head) % 64
    return memory.data[start : start + size]


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in ("gzip", "deflate"):
        raise HTTPException(415, f"Content-Encoding: expected gzip, deflate or none, got {encoding}")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        whole = unpacker.decompress(body, limit)
    except zlib.error as error:
        raise InputError(f"body: expected {encoding}: {error}") from error
    if unpacker.unconsumed_tail:
        raise TooLargeError(f"body: expected at most {limit} bytes unpacked, got more")
    if not unpacker.eof:
        raise InputError(f"body: the {encoding} data is cut off")
    return whole


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await work for a request whose body has been read; cancel it when the client goes away."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(request.receive())  # nothing but a disconnection can come
    at_work, left = True, False

    def leave(_: object) -> None:
        nonlocal left
        if at_work:
            left = task.cancel()

    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        at_work = False
        gone.cancel()


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
        async with bodies.read(request) as body:
            return await unless_gone(request, _infer(request, body))

    async def _infer(request: Request, body: memoryview) -> Response:
        began = time.monotonic()
        model = find(request)
        length = _header_length(request.headers, len(body))
        if length > _LARGE_JSON:
            header, tensors = await asyncio.to_thread(_parse, body, length, regions)
        else:
            header, tensors = _parse(body, length, regions)
        checked = protocol.check_request(model, tensors, _parameters(header), max_steps=config.max_steps)
        binary, output = _wanted(header, regions, checked.answer_bytes)
        model, scores = await protocol.infer(
            models, model.name, request.path_params.get("version", ""), checked, began=began
        )
        return _answer(model, header.get("id"), scores, binary, output)

    async def index(request: Request) -> Response:
        async with bodies.read(request) as body:
            only_ready = _object(body).get("ready") is True
        return JSONResponse([row for row in models.index() if not only_ready or row["state"] == "READY"])

    async def load(request: Request) -> Response:
        async with bodies.read(request) as body:
            if _parameters(_object(body)):
                raise InputError("load: takes no parameters; configuration and files come from the model directory")
        await asyncio.to_thread(models.load, request.path_params["model"])
        return Response(status_code=200)

    async def unload(request: Request) -> Response:
        async with bodies.read(request) as body:
            _object(body)
        await asyncio.to_thread(models.unload, request.path_params["model"])
        return Response(status_code=200)

    async def memory_status(request: Request) -> Response:
        return JSONResponse(regions.status(request.path_params.get("region", "")))

    async def register_memory(request: Request) -> Response:
        async with bodies.read(request) as body:
            told = _object(body)
        key, offset, byte_size = told.get("key"), told.get("offset", 0), told.get("byte_size")
        await asyncio.to_thread(regions.register, request.path_params["region"], key, offset, byte_size)
        return Response(status_code=200)

    async def unregister_memory(request: Request) -> Response:
        async with bodies.read(request) as body:
            _object(body)
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
    if not text.isdecimal() or not 0 < int(text) <= n_bytes:
        raise InputError(f"Inference-Header-Content-Length: expected 1 to {n_bytes} (the body), got {text!r}")
    return int(text)


def _object(body: memoryview) -> dict[str, Any]:
    """A JSON object; nothing at all stands for an empty one."""
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
        raise InputError(f"parameters: expected an object, got {found!r}")
    return found


def _list(header: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = header.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{key}: expected a list of objects")
    return found


def _parse(body: memoryview, header_length: int, regions: Regions) -> tuple[dict[str, Any], list[protocol.Tensor]]:
    header = _object(body[:header_length])
    if not isinstance(header.get("id", ""), str):
        raise InputError(f"id: expected a string, got {header['id']!r}")
    protocol.check_outputs([entry.get("name") for entry in _list(header, "outputs")])
    tensors = []
    at = header_length
    for entry in _list(header, "inputs"):
        shape = protocol.check_tensor(entry.get("name"), entry.get("datatype"), entry.get("shape"))
        name, datatype, parameters = entry["name"], entry["datatype"], _parameters(entry)
        shared = regions.input(name, datatype, shape, parameters)
        if [shared is not None, "data" in entry, "binary_data_size" in parameters].count(True) != 1:
            raise InputError(f"{name}: expected data, the parameter binary_data_size, or shared memory: one of them")
        if shared is not None:
            tensors.append(shared)
            continue
        if "data" in entry:
            values = _values(name, datatype, shape, entry["data"])
        else:
            size, expected = parameters["binary_data_size"], protocol.tensor_bytes(shape, datatype)
            if type(size) is not int or size != expected or at + size > len(body):
                raise InputError(
                    f"{name}: shape {list(shape)} takes {expected} bytes, binary_data_size says {size!r}, and "
                    f"{len(body) - at} follow the JSON and earlier tensors"
                )
            values = np.frombuffer(body[at : at + size], dtype=protocol.DTYPES[datatype])
            values = np.require(values, requirements="A")
            at += size
        tensors.append(protocol.Tensor(name, datatype, shape, values))
    if at != len(body):
        raise InputError(f"body: {len(body) - at} bytes follow the last tensor")
    return header, tensors


def _values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
    """The values of a tensor sent as JSON, flat or nested."""
    if not isinstance(data, list):
        raise InputError(f"{name}: expected data to be a list, got {type(data).__name__}")
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name}: expected numbers, flat or nested as the shape says: {error}") from error
    if found.dtype.kind not in ("iuf" if datatype == "FP32" else "iu"):
        raise InputError(f"{name}: expected {datatype} numbers, got others")
    if found.shape != shape and found.shape != (np.prod(shape),):
        raise InputError(f"{name}: the shape is {list(shape)}, the data has {list(found.shape)}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the model refuses
        return found.astype(protocol.DTYPES[datatype])


def _wanted(header: Mapping[str, Any], regions: Regions, n_bytes: int) -> tuple[bool, Output | None]:
    """Whether the answer shall be binary, and the shared memory it shall go to."""
    for entry in _list(header, "outputs"):
        parameters = _parameters(entry)
        if parameters.get("classification"):
            raise InputError("output: this server knows no classification")
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
