"""How errors are answered: ``{"error": message}`` with the status of the error's class, whatever went wrong."""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from vsum_runtime.runtime.errors import BusyError, VsumError

_MESSAGE = 1000  # characters


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message[:_MESSAGE]}, status, headers)


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


HANDLERS: dict[Any, Any] = {
    VsumError: _vsum_error,
    HTTPException: _http_error,
    ClientDisconnect: _client_gone,
    Exception: _unexpected,
}
