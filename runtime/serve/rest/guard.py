"""Who may ask: requests with the key, addressed to this server, that no foreign page made."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsum_runtime.runtime.errors import brief
from vsum_runtime.runtime.serve.rest import page
from vsum_runtime.runtime.serve.rest.answers import error_response

_ALWAYS = {b"x-content-type-options": b"nosniff", b"cache-control": b"no-store"}
"""Headers of every answer that does not set its own."""


class Guard:
    """Lets a request through if it carries the key, is addressed to this server, and comes from no foreign page.

    A foreign page may give its own name the address of this machine; the browser then takes it for the same site, but
    the request is still addressed to that name. Browsers tell where a request comes from in ``Sec-Fetch-Site``, but not
    to plain HTTP on other machines, and older ones never; then ``Origin`` must be the host.
    """

    _OPEN = ("/v2/health/live", "/v2/health/ready", *page.PATHS)

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str]) -> None:
        self._app, self._key, self._hosts = app, api_key, {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                names = {name.lower() for name, _ in headers}
                message["headers"] = [*headers, *(each for each in _ALWAYS.items() if each[0] not in names)]
            await send(message)

        await self._judged(scope)(scope, receive, send_safely)

    def _judged(self, scope: Scope) -> ASGIApp:
        """The application, or the refusal."""
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        host = headers.get(b"host", b"")
        sites = {value for name, value in scope["headers"] if name == b"sec-fetch-site"}
        origins = {value for name, value in scope["headers"] if name == b"origin"}
        if self._hosts and _name(host) not in self._hosts:
            return error_response(421, f"{brief(_name(host))} is none of allowed_hosts")
        foreign = path not in self._OPEN and not sites <= {b"none", b"same-origin"}
        if foreign or (not sites and not all(_is_origin(origin, host) for origin in origins)):
            return error_response(403, "requests from pages of other sites are refused")
        if self._key is not None and path not in self._OPEN and not key_matches(self._key, headers):
            response = error_response(401, "expected the API key, as Bearer token or X-API-Key")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return self._app


def key_matches(key: str, headers: dict[bytes, bytes]) -> bool:
    """Whether the key is there, in either header; the name of the scheme may be written in any case."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    by_scheme = scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), key.encode())
    return by_scheme or hmac.compare_digest(headers.get(b"x-api-key", b""), key.encode())


def _name(host: bytes) -> str:
    """The name of a Host header, without port and brackets."""
    return re.sub(r":\d*$", "", host.decode("latin-1")).strip("[]").lower()


def _is_origin(origin: bytes, host: bytes) -> bool:
    """Whether a page of that origin is of this host; which of HTTP and HTTPS it came by a proxy may have changed."""
    try:
        parts = urlsplit(origin.decode("latin-1"))
        port = parts.port
    except ValueError:
        return False
    default = {"http": 80, "https": 443}.get(parts.scheme)
    found = re.search(r":(\d+)$", host.decode("latin-1"))
    ports = {port or default}, {int(found[1])} if found else {80, 443}
    return parts.hostname is not None and parts.hostname == _name(host) and bool(ports[0] & ports[1])
