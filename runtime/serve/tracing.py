"""Traces for OpenTelemetry: a span for every request, with its time in the queue and in the model as spans below it.

They are made where the environment says where to send them (``OTEL_EXPORTER_OTLP_ENDPOINT``; the other standard
``OTEL_*`` variables hold too), or where the embedding program gives a provider. Else nothing here is imported or run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.serve.schedule import Ticket

_TRACER: ContextVar[Any] = ContextVar("tracer", default=None)
"""Set while a traced request is being answered."""


def provider_of_environment() -> Any | None:
    """A provider that sends spans where the environment says; None where it says nothing.

    Raises
    ------
    InputError
        it says so, and OpenTelemetry is not installed
    """
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_TRACES_EXPORTER") == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(os.environ.get(name) for name in endpoints):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InputError(f'{" or ".join(endpoints)} is set, but {error}; pip install "vsum-runtime[otel]"') from error
    name = os.environ.get("OTEL_SERVICE_NAME", "vsum")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextmanager
def request_span(provider: Any, name: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """The span of one request, below that of its ``traceparent``."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("vsum")
    above = TraceContextTextMapPropagator().extract(headers)
    with tracer.start_as_current_span(name, context=above, kind=trace.SpanKind.SERVER) as span:
        token = _TRACER.set(tracer)
        try:
            yield span
        finally:
            _TRACER.reset(token)


def record_stages(ticket: Ticket) -> None:
    """Spans of the past for a request that has been answered: its wait, and the run of the model."""
    tracer = _TRACER.get()
    if tracer is None:
        return
    now, wall = time.monotonic(), time.time()

    def at(moment: float) -> int:
        return round((wall - now + moment) * 1e9)

    for name, began, ended in (("queue", ticket.arrived, ticket.started), ("compute", ticket.started, ticket.finished)):
        span = tracer.start_span(name, start_time=at(began), attributes={"vsum.steps": ticket.n_steps})
        span.end(end_time=at(ended))


class Trace:
    """The span of every HTTP request, named after its route: the path itself may hold the secret of a job."""

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        self._app, self._provider = app, provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import StatusCode

        method = scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with request_span(self._provider, method, headers) as span:

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            span.set_attribute("http.request.method", method)
            await self._app(scope, receive, note)
            if "endpoint" in scope:
                names = {value: f"{{{name}}}" for name, value in scope.get("path_params", {}).items()}
                route = "/".join(names.get(part, part) for part in scope["path"].split("/"))
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
