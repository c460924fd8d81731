"""A connection as uvicorn speaks it, with two additions: large bodies are not copied, and headers have a time limit.

uvicorn hands a body to the application in pieces, each copied four times on its way into one array. Here the
application may name the memory that the rest of a body shall come to: the kernel then writes it there, and nothing else
touches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from runtime.serve.config import ServeConfig

RECEIVE_INTO = "vsum.receive_into"
"""Name in an ASGI scope's ``extensions`` of a `ReceiveInto`; absent behind other servers."""

ReceiveInto = Callable[[memoryview, Callable[[int], None]], Awaitable[bool]]
"""Receive the whole body, whose length the client has told, into memory of that length.

The second argument is told the size of each part as it comes, and may raise. False, and nothing done, where the body
has to be asked for as usual. A client that goes away raises ConnectionResetError."""

_SLOW = b'{"error": "the headers of the request took too long"}'
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SLOW), _SLOW)
)


class Wire(HttpToolsProtocol):
    """One connection."""

    def __init__(self, settings: ServeConfig, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._header_timeout_s = settings.header_timeout_s
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        self._headers_came()
        super().on_headers_complete()
        extension: dict[str, Any] = {RECEIVE_INTO: partial(self._receive_into, self.cycle)}
        self.scope["extensions"] = extension

    def _await_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_timeout_s, self._too_slow)

    def _headers_came(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self.transport.write(_TOO_SLOW)
        self.transport.close()

    async def _receive_into(self, cycle: RequestResponseCycle, memory: memoryview, came: Callable[[int], None]) -> bool:
        if cycle is not self.cycle or cycle.waiting_for_100_continue:
            return False
        n_there = len(cycle.body)
        memory[:n_there] = cycle.body
        cycle.body.clear()
        cycle.message_event.clear()
        came(n_there)
        if not cycle.more_body:
            return True
        rest = _Rest(self, memory[n_there:], came)
        self._read_by(rest)
        try:
            await rest.done
        finally:
            rest.discard()
        return True

    def _read_by(self, protocol: asyncio.BaseProtocol) -> None:
        self.flow.pause_reading()  # a transport looks at the kind of its protocol when reading begins
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()

    def rest_came(self) -> None:
        """The body is complete, and the parser has not seen it: the next request gets a new one."""
        self.parser = httptools.HttpRequestParser(self)
        self.cycle.more_body = False
        self._read_by(self)


class _Rest(asyncio.BufferedProtocol):
    """Reads the rest of one body, and no byte more."""

    def __init__(self, wire: Wire, memory: memoryview, came: Callable[[int], None]) -> None:
        self.done: asyncio.Future[None] = wire.loop.create_future()
        self._wire, self._memory, self._came = wire, memory, came
        self._left = len(memory)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._memory[-self._left :] if not self.done.done() else self._memory[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if not self.done.done():
            try:
                self._came(nbytes)
            except Exception as error:
                self.done.set_exception(error)
        if not self._left:
            self._wire.rest_came()
            if not self.done.done():
                self.done.set_result(None)

    def discard(self) -> None:
        """Nobody wants what is still to come: it goes to memory that is thrown away, and the next request is read."""
        self.done.cancel()
        if self._left:
            self._memory = memoryview(bytearray(min(self._left, 1 << 16)))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionResetError("the client went away in mid-body"))
        self._wire.connection_lost(exc)

    def eof_received(self) -> None:
        self._wire.eof_received()

    def pause_writing(self) -> None:
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        self._wire.resume_writing()
