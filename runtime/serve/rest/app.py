"""The service, and the ASGI application in front of it: all routes, the guard, the log line of every request."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsum_runtime.runtime.errors import BusyError, VsumError
from vsum_runtime.runtime.serve import tracing
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.job_store import label
from vsum_runtime.runtime.serve.jobs import Jobs
from vsum_runtime.runtime.serve.metrics import Metrics
from vsum_runtime.runtime.serve.models import Models
from vsum_runtime.runtime.serve.rest import page
from vsum_runtime.runtime.serve.rest import v2 as rest
from vsum_runtime.runtime.serve.rest import videos as summarize
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
        self.bodies = rest.Bodies(config)
        self.regions = Regions(config)
        self.jobs = Jobs(config, self.metrics, broken=self._not_ready)

    async def __aenter__(self) -> None:
        try:
            await asyncio.to_thread(self.models.load_configured)
            await self.jobs.start()
        except BaseException:
            await self._close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def _not_ready(self) -> None:
        self.models.ready = False

    async def _close(self) -> None:
        await self.jobs.stop()
        await asyncio.to_thread(self.models.close)
        self.regions.close()
        if self._own_provider is not None:
            await asyncio.to_thread(self._own_provider.shutdown)


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
        exception_handlers={
            VsumError: _vsum_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
            Exception: _unexpected,
        },
    )
    app.add_middleware(Guard, api_key=service.config.api_key, hosts=service.config.allowed_hosts)
    app.add_middleware(AccessLog)
    if service.tracer_provider is not None:
        app.add_middleware(tracing.Trace, provider=service.tracer_provider)
    app.state.service = service
    return app


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _vsum_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, VsumError)
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.http_status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return error_response(error.http_status, str(error), headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 408:
        headers["Connection"] = "close"
    return error_response(error.status_code, error.detail, headers)


async def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # for the log; nobody reads it


async def _unexpected(_: Request, __: Exception) -> Response:
    return error_response(500, "internal error; the server's log says more")


class Guard:
    """Lets a request through if it carries the key, is addressed to this server, and comes from no foreign page.

    A foreign page may give its own name the address of this machine; the browser then takes it for the same site, but
    the request is still addressed to that name.
    """

    _OPEN = ("/v2/health/live", "/v2/health/ready", *page.PATHS)

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str]) -> None:
        self._app, self._key, self._hosts = app, api_key, {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        site = headers.get(b"sec-fetch-site", b"none")
        if self._hosts and (host := _host_name(headers.get(b"host", b""))) not in self._hosts:
            await error_response(421, f"{host[:60]!r} is none of allowed_hosts")(scope, receive, send)
        elif site not in (b"none", b"same-origin") and path not in self._OPEN:
            await error_response(403, "requests from pages of other sites are refused")(scope, receive, send)
        elif self._key is not None and path not in self._OPEN and not key_matches(self._key, headers):
            response = error_response(401, "expected the API key, as Bearer token or X-API-Key")
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _host_name(header: bytes) -> str:
    """The name of a Host header, without port and brackets."""
    return re.sub(r":\d*$", "", header.decode("latin-1")).strip("[]").lower()


def key_matches(key: str, headers: dict[bytes, bytes]) -> bool:
    given = headers.get(b"x-api-key", headers.get(b"authorization", b"").removeprefix(b"Bearer "))
    return hmac.compare_digest(given, key.encode())


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
