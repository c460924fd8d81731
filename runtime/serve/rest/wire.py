"""A connection as uvicorn speaks it, with two additions: bodies are not copied, and heads have a time limit.

uvicorn hands a body to the application in pieces, each copied four times on its way into one array. Here the
application may name the memory that a body shall come to: the kernel then writes it there, and nothing else touches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vsum_runtime.runtime.serve.config import ServeConfig

RECEIVE_INTO = "vsum.receive_into"
"""Name in an ASGI scope's ``extensions`` of a `ReceiveInto`; absent behind other servers."""

ReceiveInto = Callable[[memoryview, Callable[[int], None], float], Awaitable[bool]]
"""Receive the whole body, whose length the client has told, into memory of that length.

The second argument is told the size of each part as it comes, and may raise; the third is the time for all of it.
False, and nothing done, where the body has to be asked for as usual. A client that goes away raises
ConnectionResetError, one that is too slow TimeoutError."""

PIECE = 1 << 16
"""Bytes read at once where they go to the parser, which copies them."""

_SLOW = b'{"error": "the headers of the request took too long"}'
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SLOW), _SLOW)
)


class Wire(asyncio.BufferedProtocol):
    """One connection: what comes goes to uvicorn's parser, but for the bodies whose memory the application names.

    ``piece`` is memory of `PIECE` bytes, which all connections of one event loop may share: what is read there is
    parsed before anything else is read.
    """

    def __init__(self, settings: ServeConfig, piece: memoryview, **of_uvicorn: Any) -> None:
        self._http = _Http(settings, self, **of_uvicorn)
        self._piece = piece
        self._rest: _Rest | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._piece if self._rest is None else self._rest.memory

    def buffer_updated(self, nbytes: int) -> None:
        if self._rest is None:
            self._http.feed(self._piece[:nbytes])
        elif self._rest.came(nbytes):
            self._rest = None
            self._http.body_came()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._http.connection_made(transport)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest is not None:
            self._rest.fail(ConnectionResetError("the client went away in mid-body"))
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    async def read_rest(self, memory: memoryview, came: Callable[[int], None], timeout_s: float) -> None:
        """The next bytes that come go to this memory, all of it, and no byte more."""
        self._rest = rest = _Rest(memory, came)
        timer = rest.done.get_loop().call_later(timeout_s, rest.fail, TimeoutError())
        self._http.flow.resume_reading()
        try:
            await rest.done
        finally:
            timer.cancel()
            rest.discard()


class _Http(HttpToolsProtocol):
    """uvicorn's side of one connection."""

    def __init__(self, settings: ServeConfig, wire: Wire, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._wire = wire
        self._header_timeout_s = settings.header_timeout_s
        self._header_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._n_requests = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_head = False
        self._limit_head()
        super().connection_lost(exc)

    def feed(self, data: memoryview) -> None:
        n_before = self._n_requests
        self.data_received(data)  # type: ignore[arg-type]  # the parser takes any buffer
        self._limit_head()
        if self._n_requests > n_before and self.cycle.more_body:
            self.flow.pause_reading()  # until the application says where the rest goes

    def body_came(self) -> None:
        """The body is complete, and the parser has not seen it: the next request gets a new one."""
        self.parser = httptools.HttpRequestParser(self)
        self.cycle.more_body = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._n_requests += 1
        super().on_headers_complete()
        extension: dict[str, Any] = {RECEIVE_INTO: partial(self._receive_into, self._n_requests)}
        self.scope["extensions"] = extension

    def _limit_head(self) -> None:
        """The time for a head runs while one is due: the first, and each that has begun."""
        if self._in_head and self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_timeout_s, self._too_slow)
        elif not self._in_head and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self.transport.write(_TOO_SLOW)
        self.transport.close()

    async def _receive_into(
        self, number: int, memory: memoryview, came: Callable[[int], None], timeout_s: float
    ) -> bool:
        cycle = self.cycle
        if number != self._n_requests or cycle.waiting_for_100_continue:
            return False
        n_there = len(cycle.body)
        memory[:n_there] = cycle.body
        cycle.body = bytearray()
        cycle.message_event.clear()
        came(n_there)
        if cycle.more_body:
            await self._wire.read_rest(memory[n_there:], came, timeout_s)
        return True


class _Rest:
    """The rest of one body, as it comes."""

    def __init__(self, memory: memoryview, came: Callable[[int], None]) -> None:
        self.memory = memory
        """What is still empty."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._n_left = len(memory)
        self._came = came

    def came(self, n_bytes: int) -> bool:
        """Whether this was the last of it."""
        self._n_left -= n_bytes
        if self.done.done():  # nobody wants it
            self.memory = self.memory[: self._n_left]
            return not self._n_left
        self.memory = self.memory[n_bytes:]
        try:
            self._came(n_bytes)
        except Exception as error:
            self.fail(error)
        if not self._n_left and not self.done.done():
            self.done.set_result(None)
        return not self._n_left

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def discard(self) -> None:
        """Nobody wants what is still to come: it goes to memory that is thrown away, and the next request is read."""
        self.done.cancel()
        if self._n_left:
            self.memory = memoryview(bytearray(min(self._n_left, PIECE)))
