"""The page at ``/``, three files that ask for nothing from elsewhere, and the description of ``/v1`` for programs."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "static"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/v1/openapi.json": ("openapi.json", "application/json"),
}
PATHS = tuple(_FILES)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    def route(path: str, name: str, kind: str) -> Route:
        async def send(_: Request) -> Response:
            return Response((_FOLDER / name).read_bytes(), media_type=kind, headers=_HEADERS)

        return Route(path, send)

    return [route(path, name, kind) for path, (name, kind) in _FILES.items()]
