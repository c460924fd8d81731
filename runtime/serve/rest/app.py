"""The service, and the ASGI application in front of it: all routes, and the log line of every request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsum_runtime.runtime.serve import tracing
from vsum_runtime.runtime.serve.bodies import Bodies
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.job_store import label
from vsum_runtime.runtime.serve.jobs import Jobs
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.models import Models
from vsum_runtime.runtime.serve.rest import page
from vsum_runtime.runtime.serve.rest import v2 as rest
from vsum_runtime.runtime.serve.rest import videos as summarize
from vsum_runtime.runtime.serve.rest.answers import HANDLERS, error_response
from vsum_runtime.runtime.serve.rest.guard import Guard
from vsum_runtime.runtime.serve.shared_memory import Regions

log = logging.getLogger("vsum_runtime.runtime.serve.access")

_JOB_ID = re.compile(r"[0-9a-fA-F]{32}")
_LOGGED_PATH = 300  # characters


class Service:
    """Models, jobs and counters of one server; an asynchronous context manager, ready once entered."""

    def __init__(self, config: ServeConfig, tracer_provider: Any | None = None) -> None:
        self.config = config
        self._own_provider = tracing.provider_of_environment() if tracer_provider is None else None
        self.tracer_provider = tracer_provider or self._own_provider
        self.models = Models(config)
        self.metrics = Metrics(self.models)
        self.bodies = Bodies(config)
        self.regions = Regions(config)
        self.jobs = Jobs(config, self.metrics, broken=self._not_ready)

    async def __aenter__(self) -> None:
        try:
            await asyncio.to_thread(self.models.load_configured)
            await self.jobs.start()
        except BaseException:
            await self.close(0.0)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + self.config.grace_s
        self._not_ready()
        await self.jobs.drain(self.config.grace_s)
        await self.close(until - time.monotonic())

    async def close(self, grace_s: float) -> None:
        """End jobs at once, and models when what they were asked is answered, at most the grace time."""
        await self.jobs.stop()
        await asyncio.to_thread(self.models.close, grace_s)
        self.regions.close()
        self.bodies.close()
        if self._own_provider is not None:
            await asyncio.to_thread(self._own_provider.shutdown)

    def _not_ready(self) -> None:
        self.models.ready = False


def create_app(config: ServeConfig | None = None, *, tracer_provider: Any | None = None) -> Starlette:
    """The whole server as an ASGI application.

    Alone, its lifespan opens and closes the models. Mounted in another application, whose lifespan is the only one that
    runs, that one enters ``app.state.service``::

        vsum = create_app()
        app = Starlette(routes=[Mount("/vsum", vsum)], lifespan=lambda _: vsum.state.service)

    ``tracer_provider``, of OpenTelemetry, gets a span of every request; None: what the environment says.
    """
    service = Service(config or ServeConfig(), tracer_provider)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            *page.routes(),
            Route("/metrics", metrics),
            *rest.routes(service.models, service.bodies, service.regions, service.config),
            *summarize.routes(service.config, service.models, service.bodies, service.jobs, service.metrics),
        ],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.add_middleware(EndOfGrace)
    app.add_middleware(Guard, api_key=service.config.api_key, hosts=service.config.allowed_hosts)
    app.add_middleware(AccessLog)
    if service.tracer_provider is not None:
        app.add_middleware(tracing.Trace, provider=service.tracer_provider)
    app.state.service = service
    return app


class EndOfGrace:
    """Answers a request that the server cancels because its grace time is over: 503, and it may be sent again.

    An answer that has begun is cut off: the web server closes the connection, and says so.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if started:
                return
            response = error_response(503, "the server stopped before this was answered; send it again")
            response.headers["Retry-After"] = "5"
            await response(scope, receive, send)


class AccessLog:
    """One line of JSON for every request; the id of a job, which is a secret, is replaced by its label."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            took_ms = round(1e3 * (time.monotonic() - began), 2)
            client = scope.get("client") or ("",)
            path = _JOB_ID.sub(lambda match: label(match[0]), scope["path"][:_LOGGED_PATH])
            fields = {"method": scope["method"], "path": path, "status": status, "ms": took_ms}
            log.info(json.dumps({**fields, "client": client[0]}))


class JsonFormatter(logging.Formatter):
    """Log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        message = record.getMessage()
        line |= json.loads(message) if record.name == log.name else {"message": message}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
