"""V2 over gRPC: the same checks and the same queue as over HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # read at import; its handlers may end a child that is forked under load
import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from vsum_runtime.runtime.errors import InputError, NotFoundError, VsumError, brief
from vsum_runtime.runtime.serve import protocol
from vsum_runtime.runtime.serve.bodies import Held
from vsum_runtime.runtime.serve.grpc_message import REST_FACTOR, split
from vsum_runtime.runtime.serve.rest.guard import key_matches
from vsum_runtime.runtime.serve.shared_memory import Regions
from vsum_runtime.runtime.serve.tracing import request_span

if TYPE_CHECKING:
    from vsum_runtime.runtime.serve.rest.app import Service

SERVICE = "inference.GRPCInferenceService"
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}
_FRAME = (1 << 24) - 1
"""Bytes of one HTTP/2 frame, at most: the largest there is; the default is 16 KB. It saved a third of the time of a
large request in one of two measurements, and nothing in the other."""
_MESSAGE = 1000
"""Characters of an error: it travels in a header."""
_OPEN = ("ServerLive", "ServerReady")
"""Methods that need no key, as over HTTP; neither does grpc.health.v1."""


def descriptors() -> descriptor_pool.DescriptorPool:
    """The service definition, in a pool of its own: a client's copy in this process does not collide with it."""
    files = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "open_inference.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    pool.Add(_health())
    return pool


def _health() -> descriptor_pb2.FileDescriptorProto:
    """The health service that Kubernetes asks (grpc.health.v1)."""
    file = descriptor_pb2.FileDescriptorProto(name="health.proto", package="grpc.health.v1", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    request, response = file.message_type.add(name="HealthCheckRequest"), file.message_type.add()
    response.name = "HealthCheckResponse"
    request.field.add(name="service", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    status = response.field.add(name="status", number=1, type=kinds.TYPE_ENUM, label=kinds.LABEL_OPTIONAL)
    status.type_name = ".grpc.health.v1.HealthCheckResponse.ServingStatus"
    names = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        names.value.add(name=name, number=number)
    return file


_POOL = descriptors()


def _message(name: str, package: str = "inference") -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


class _Calls:
    """The methods of the service: a message in, a message out, a VsumError where there is none."""

    def __init__(self, service: Service) -> None:
        self._models, self._bodies, self._config = service.models, service.bodies, service.config
        self._regions = service.regions

    async def ServerLive(self, _: Any) -> Any:
        return _message("ServerLiveResponse")(live=True)

    async def ServerReady(self, _: Any) -> Any:
        return _message("ServerReadyResponse")(ready=self._models.ready)

    async def ModelReady(self, request: Any) -> Any:
        with suppress(NotFoundError):
            self._models.get(request.name, request.version)
            return _message("ModelReadyResponse")(ready=True)
        return _message("ModelReadyResponse")(ready=False)

    async def ServerMetadata(self, _: Any) -> Any:
        return _message("ServerMetadataResponse")(**protocol.server_metadata(shared_memory=self._config.shared_memory))

    async def ModelMetadata(self, request: Any) -> Any:
        model = self._models.get(request.name, request.version)
        found = protocol.model_metadata(model, self._models.versions(model.name))
        return json_format.ParseDict(found, _message("ModelMetadataResponse")())

    async def ModelConfig(self, request: Any) -> Any:
        model = self._models.get(request.name, request.version)
        return json_format.ParseDict({"config": protocol.model_config(model)}, _message("ModelConfigResponse")())

    async def ModelStatistics(self, request: Any) -> Any:
        found = [self._models.get(request.name, request.version)] if request.name else list(self._models)
        statistics = {"model_stats": [protocol.model_statistics(model) for model in found]}
        return json_format.ParseDict(statistics, _message("ModelStatisticsResponse")())

    async def RepositoryIndex(self, request: Any) -> Any:
        rows = [row for row in self._models.index() if not request.ready or row["state"] == "READY"]
        return json_format.ParseDict({"models": rows}, _message("RepositoryIndexResponse")())

    async def RepositoryModelLoad(self, request: Any) -> Any:
        if request.parameters:
            raise InputError("load: takes no parameters; configuration and files come from the model directory")
        await asyncio.to_thread(self._models.load, request.model_name)
        return _message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        await asyncio.to_thread(self._models.unload, request.model_name)
        return _message("RepositoryModelUnloadResponse")()

    async def SystemSharedMemoryStatus(self, request: Any) -> Any:
        found = {"regions": {row["name"]: row for row in self._regions.status(request.name)}}
        return json_format.ParseDict(found, _message("SystemSharedMemoryStatusResponse")())

    async def SystemSharedMemoryRegister(self, request: Any) -> Any:
        part = (request.key, request.offset, request.byte_size)
        await asyncio.to_thread(self._regions.register, request.name, *part)
        return _message("SystemSharedMemoryRegisterResponse")()

    async def SystemSharedMemoryUnregister(self, request: Any) -> Any:
        await asyncio.to_thread(self._regions.unregister, request.name)
        return _message("SystemSharedMemoryUnregisterResponse")()

    async def ModelInfer(self, message: bytes) -> Any:
        with self._bodies.hold(len(message)) as held:
            try:
                return await self._infer(memoryview(message), held)
            except VsumError as error:
                # grpc and the queue keep it for a while, and its trace would keep the features.
                raise error.with_traceback(None) from None

    async def _infer(self, message: memoryview, held: Held) -> Any:
        began = time.monotonic()
        rest, raw, typed = split(message)
        held.add(REST_FACTOR * len(rest))
        request = _read(_message("ModelInferRequest"), rest)
        model = self._models.get(request.model_name, request.model_version)
        wanted = [(output.name, _parameters(output.parameters)) for output in request.outputs]
        protocol.check_outputs(wanted)
        tensors = _tensors(request, raw, typed, self._regions, held)
        parameters = _parameters(request.parameters)
        checked = protocol.check_request(model, tensors, parameters, max_steps=self._config.max_steps)
        places = [self._regions.output(checked.answer_bytes, of_output) for _, of_output in wanted]
        shared = next((place for place in places if place is not None), None)
        model, scores = await protocol.infer(
            self._models, request.model_name, request.model_version, checked, began=began
        )
        answer = _message("ModelInferResponse")(model_name=model.name, model_version=model.version, id=request.id)
        answer.outputs.add(name="scores", datatype="FP32", shape=scores.shape)
        data = scores.astype("<f4", copy=False).tobytes()
        if shared is None:
            answer.raw_output_contents.append(data)
        else:
            shared.write(data)
        return answer


def _tensors(
    request: Any, raw: list[memoryview], typed: dict[int, list[memoryview]], regions: Regions, held: Held
) -> list[protocol.Tensor]:
    tensors, n_sent = [], 0
    for number, entry in enumerate(request.inputs):
        name, datatype = entry.name, entry.datatype
        shape = protocol.check_tensor(name, datatype, tuple(entry.shape))
        shared = regions.input(name, datatype, shape, _parameters(entry.parameters))
        held.add(protocol.converted_bytes(shape, datatype))
        if shared is not None:
            if entry.HasField("contents"):
                raise InputError(f"{name}: expected contents or shared memory, got both")
            tensors.append(shared)
            continue
        dtype, expected = protocol.DTYPES[datatype], protocol.tensor_bytes(shape, datatype)
        content: bytes | memoryview
        if raw:
            content = raw[n_sent] if n_sent < len(raw) else b""
        elif parts := typed.get(number) if datatype == "FP32" else None:
            content = parts[0] if len(parts) == 1 else b"".join(parts)
        else:
            values = {"FP32": entry.contents.fp32_contents, "INT64": entry.contents.int64_contents}.get(datatype, [])
            content = np.array(values, dtype=dtype).tobytes()
        if len(content) != expected:
            raise InputError(f"{name}: shape {list(shape)} takes {expected} bytes, {len(content)} came")
        array = np.frombuffer(content, dtype)
        held.add(0 if array.flags.aligned else array.nbytes)
        array = np.require(array, requirements="A")
        tensors.append(protocol.Tensor(name, datatype, shape, array))
        n_sent += 1
    if len(raw) not in (0, n_sent):
        raise InputError(f"raw_input_contents: expected one for each of {n_sent} inputs, got {len(raw)}")
    return tensors


def _parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for key, value in found.items()}


async def start(service: Service) -> tuple[grpc.aio.Server, int]:
    """Listen; the server and its port."""
    config = service.config
    size = int(config.max_body_mb * 1e6)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_frame_size", _FRAME),
        ],
        maximum_concurrent_rpcs=config.max_queue * 4,
    )
    server.add_generic_rpc_handlers((_handlers(service), _health_handlers(service)))
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.grpc_port}"
    try:
        if config.tls_cert is not None and config.tls_key is not None:
            authority = None if config.tls_client_ca is None else config.tls_client_ca.read_bytes()
            pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
            credentials = grpc.ssl_server_credentials([pair], authority, authority is not None)
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except (RuntimeError, OSError) as error:
        raise VsumError(f"cannot listen on {address} for gRPC: {error}") from error
    await server.start()
    return server, port


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    calls = _Calls(service)
    handlers = {}
    for method in _POOL.FindServiceByName(SERVICE).methods:
        request = message_factory.GetMessageClass(method.input_type)
        kinds: dict[str, Any] = {"response_serializer": lambda message: message.SerializeToString()}
        if method.name == "ModelStreamInfer":
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(_stream(service, calls), **kinds)
            continue
        call = getattr(calls, method.name)
        if method.name != "ModelInfer":  # which is counted before it is parsed
            call = partial(_of_bytes, request, call)
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(_unary(service, method.name, call), **kinds)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _read(kind: Any, message: bytes | memoryview) -> Any:
    """A message of this kind. The library itself would log a trace of what is none, and answer UNKNOWN."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InputError(f"message: expected a {kind.DESCRIPTOR.name}: {error}") from error


async def _of_bytes(kind: Any, call: Callable[[Any], Awaitable[Any]], message: bytes) -> Any:
    return await call(_read(kind, message))


def _unary(service: Service, name: str, call: Callable[[Any], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def run(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _span(service, name, context):
            if name not in _OPEN:
                await _check_key(service, context)
            try:
                return await call(request)
            except VsumError as error:
                code = _CODES.get(error.http_status, grpc.StatusCode.INTERNAL)
                await context.abort(code, str(error)[:_MESSAGE])

    return run


def _stream(service: Service, calls: _Calls) -> Callable[..., AsyncIterator[Any]]:
    async def answered(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        made = _message("ModelStreamInferResponse")()
        try:
            with _span(service, "ModelStreamInfer", context):
                made.infer_response.CopyFrom(await calls.ModelInfer(message))
        except VsumError as error:
            made.error_message = str(error)[:_MESSAGE]
            made.infer_response.id = _request_id(message)
        made.infer_response.parameters["triton_final_response"].bool_param = True
        return made

    async def run(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        """All requests of a stream are in the queue at once, and are answered in the order they came."""
        await _check_key(service, context)
        asked: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(2 * service.config.max_queue)
        tasks: set[asyncio.Task[Any]] = set()

        async def ask() -> None:
            async for message in messages:
                task = asyncio.create_task(answered(message, context))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asked.put(task)
            await asked.put(None)

        asking = asyncio.create_task(ask())
        asking.add_done_callback(lambda _: None if asking.cancelled() or not asking.exception() else context.cancel())
        try:
            while (task := await asked.get()) is not None:
                yield await task
        finally:
            for each in (asking, *tasks):
                each.cancel()

    return run


def _request_id(message: bytes) -> str:
    """The id in a request that failed, if it can be read."""
    with suppress(VsumError, DecodeError):
        rest, _, _ = split(memoryview(message))
        if len(rest) < 1 << 16:
            return str(_message("ModelInferRequest").FromString(rest).id)
    return ""


def _health_handlers(service: Service) -> grpc.GenericRpcHandler:
    response = partial(_message, package="grpc.health.v1")("HealthCheckResponse")
    request = partial(_message, package="grpc.health.v1")("HealthCheckRequest")

    def status(name: str) -> int | None:
        if name not in ("", SERVICE):
            return None
        return 1 if service.models.ready else 2

    async def name_in(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        try:
            return str(_read(request, message).service)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:_MESSAGE])
            raise

    async def check(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        name = await name_in(message, context)
        found = status(name)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {brief(name)}")
        return response(status=found)

    async def watch(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        name, last = await name_in(message, context), 0
        while True:
            found = status(name) or 3
            if found != last:
                last = found
                yield response(status=found)
            await asyncio.sleep(0.5)

    kinds: dict[str, Any] = {"response_serializer": lambda message: message.SerializeToString()}
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **kinds),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **kinds),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


def _span(service: Service, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> AbstractContextManager[Any]:
    if service.tracer_provider is None:
        return nullcontext()
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    return request_span(service.tracer_provider, f"{SERVICE}/{name}", headers)


async def _check_key(service: Service, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    key = service.config.api_key
    if key is None:
        return
    given = {name.encode(): value.encode() for name, value in context.invocation_metadata() if isinstance(value, str)}
    if not key_matches(key, given):
        await context.abort(_CODES[401], "expected the API key, as Bearer token in authorization or as x-api-key")
