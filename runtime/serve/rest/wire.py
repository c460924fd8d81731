"""A connection as uvicorn speaks it, with limits on heads, without upgrades, and with bodies that go where they belong.

Where a request ends is for one parser to say (llhttp, in httptools); nothing here reads around it. What is added:

- An offer to upgrade is ignored, as RFC 9110 (7.8) allows: the head is parsed again without it. llhttp itself would
  take the body for bytes of the other protocol.
- A head has limits of size and time. What llhttp accepts beyond RFC 9112 is refused: a second Host or none, a transfer
  coding that is not ``chunked``, versions that are not 1.0 or 1.1. Trailers never count as headers.
- Bytes that are no request end the connection, once the requests before them are answered; they are refused with a
  status where none is under way.
- The application may name the memory that a body shall come to. Bodies asked for by plain ASGI, into one buffer, took
  a quarter more processor time of the whole server under ragged requests of 1.6 MB (default model, 64 clients).

uvicorn's classes are used beyond its public interface: the package bounds its version, and tests/attack holds it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vsum_runtime.runtime.serve.config import ServeConfig

RECEIVE_INTO = "vsum.receive_into"
"""Name in an ASGI scope's ``extensions`` of a `ReceiveInto`; absent behind other servers."""

ReceiveInto = Callable[[memoryview, Callable[[int], None], float], Awaitable[None]]
"""Fill memory with the whole body, whose length the client has stated, or raise.

The second argument is called with the size of each part as it comes, and may raise; the third is the time for all of
it, in seconds. A client that goes away raises ConnectionResetError, one that is too slow TimeoutError."""

PIECE = 1 << 18
"""Bytes read at once."""

MAX_HEAD_BYTES = 1 << 16
"""Of request line, headers and trailers."""
MAX_HEADERS = 100


class Wire(asyncio.BufferedProtocol):
    """One connection.

    ``piece`` is memory of `PIECE` bytes that all connections of one event loop share: what is read there is parsed
    before anything else is read.
    """

    def __init__(self, settings: ServeConfig, piece: memoryview, **of_uvicorn: Any) -> None:
        self._http = _Http(settings, **of_uvicorn)
        self._piece = piece

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        self._http.data_received(self._piece[:nbytes])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._http.connection_made(transport)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


class _Refusal(Exception):
    """This head is answered by the connection itself."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Http(HttpToolsProtocol):
    """uvicorn's side of one connection."""

    def __init__(self, settings: ServeConfig, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.parser = httptools.HttpRequestParser(self)  # uvicorn's own is lenient
        self._header_timeout_s = settings.header_timeout_s
        self._header_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._n_head_bytes = 0
        self._n_events = self._n_silent_bytes = 0
        self._offer = False
        self._refusal: _Refusal | None = None
        self._closing = False
        self._cycles: list[RequestResponseCycle] = []
        """Requests that are not answered yet."""
        self._body: _Body | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_head = False
        self._limit_head()
        if self._body is not None:
            self._body.fail(ConnectionResetError("the client went away in mid-body"))
        super().connection_lost(exc)

    def data_received(self, data: bytes | memoryview) -> None:
        if self._closing:
            return
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        n_events = self._n_events
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as offer:
                    self._parse_without_offer()
                    rest = rest[offer.args[0] :]
            self._n_silent_bytes = self._n_silent_bytes + len(data) if self._n_events == n_events else 0
            if self._n_silent_bytes > MAX_HEAD_BYTES:  # of a line that the parser collects
                self._refuse(_Refusal(431, f"expected at most {MAX_HEAD_BYTES} bytes of headers"))
        except httptools.HttpParserError:
            self._refuse(self._refusal or _Refusal(400, "expected a request of HTTP/1.1"))
        self._limit_head()

    def _parse_without_offer(self) -> None:
        """Parse the head that has come once more, as if it offered no other protocol."""
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            if name != b"upgrade":
                head.append(b"%s: %s" % (name, value))
        self._offer = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join([*head, b"", b""]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._n_events += 1
        self._in_head = True
        self._n_head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._in_head:  # else it is a trailer
            super().on_header(name, value)
            if len(self.headers) > MAX_HEADERS:
                raise self._refused(431, f"expected at most {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        self._offer = self.parser.should_upgrade()
        if self.parser.get_method() == b"CONNECT":
            raise self._refused(405, "this server is no proxy")
        if self._offer:
            return
        self._check_head(self.parser.get_http_version())
        self._in_head = False
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]
        self.scope["extensions"] = {RECEIVE_INTO: partial(self._receive_into, self.cycle)}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._n_events += 1
        if self._body is None:
            super().on_body(body)
        else:
            self._body.add(body)

    def on_message_complete(self) -> None:
        if self._offer:
            return
        if self._body is None:
            super().on_message_complete()
        else:
            self.cycle.more_body = False
            self._body.end()
            self._body = None  # the next request may follow in the same piece

    def _check_head(self, version: str) -> None:
        values: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            values.setdefault(name, []).append(value)
        codings = values.get(b"transfer-encoding", [])
        if version not in ("1.0", "1.1"):
            raise self._refused(505, f"expected HTTP/1.1, got HTTP/{version}")
        if len(values.get(b"host", [])) > 1 or (version == "1.1" and b"host" not in values):
            raise self._refused(400, "expected one Host header")
        if codings and version == "1.0":
            raise self._refused(400, "HTTP/1.0 knows no Transfer-Encoding")
        if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
            raise self._refused(501, "expected the Transfer-Encoding chunked, or none")

    def _count(self, n_bytes: int) -> None:
        self._n_events += 1
        self._n_head_bytes += n_bytes
        if self._n_head_bytes > MAX_HEAD_BYTES:
            raise self._refused(431, f"expected at most {MAX_HEAD_BYTES} bytes of headers")

    def _refused(self, status: int, message: str) -> _Refusal:
        self._refusal = _Refusal(status, message)
        return self._refusal

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer what is no request, after the answers to those before it, and close."""
        self._closing = True
        waiting = [cycle for cycle in self._cycles if not cycle.response_complete]
        broken = waiting.pop() if waiting and waiting[-1].more_body else None
        if broken is not None:
            broken.disconnected = True
            broken.message_event.set()
            self.pipeline = deque(entry for entry in self.pipeline if entry[0] is not broken)
            if self._body is not None:
                self._body.fail(ConnectionResetError(str(refusal)))
        if waiting:
            waiting[-1].keep_alive = False
            return
        if broken is None or not broken.response_started:
            self._write(refusal)
        self.transport.close()

    def _write(self, refusal: _Refusal) -> None:
        body = json.dumps({"error": str(refusal)}).encode()
        head = (
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)

    def _limit_head(self) -> None:
        """The time for a head runs while one is due: the first, and each that has begun."""
        if self._in_head and self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_timeout_s, self._too_slow)
        elif not self._in_head and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._refuse(_Refusal(408, "the headers of the request took too long"))

    async def _receive_into(
        self, cycle: RequestResponseCycle, memory: memoryview, came: Callable[[int], None], timeout_s: float
    ) -> None:
        if cycle.waiting_for_100_continue:
            cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if cycle.disconnected:
            raise ConnectionResetError("the client went away in mid-body")
        body = _Body(memory, came)
        body.add(cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        if cycle.more_body:
            self._body = body
            timer = self.loop.call_later(timeout_s, body.fail, TimeoutError())
            self.flow.resume_reading()
            try:
                await body.whole
            finally:
                timer.cancel()
                if self._body is body:
                    self._body = None
        else:
            body.end()
            await body.whole


class _Body:
    """One body, as it comes into memory of its stated size."""

    def __init__(self, memory: memoryview, came: Callable[[int], None]) -> None:
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when every byte of the memory has come."""
        self._memory, self._came = memory, came
        self._n_bytes = 0

    def add(self, part: bytes | bytearray) -> None:
        if self.whole.done():
            return  # nobody wants it
        end = self._n_bytes + len(part)
        try:
            self._came(len(part))
            self._memory[self._n_bytes : end] = part  # raises ValueError where more came than was stated
        except Exception as error:
            self.fail(error)
        self._n_bytes = end

    def end(self) -> None:
        if self._n_bytes < len(self._memory):
            self.fail(ConnectionResetError("the body ended early"))
        elif not self.whole.done():
            self.whole.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)
