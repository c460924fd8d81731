"""What requests hold in memory, over all doors: one account, and HTTP bodies read and unpacked within it.

Bytes count as they come, what they are unpacked to as it appears, and JSON before it is parsed, at the most that its
objects can take. Requests that would exceed ``max_reading_mb`` together are refused.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from vsum_runtime.runtime.errors import BusyError, InputError, TooLargeError
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.rest.wire import RECEIVE_INTO

HEADER_LENGTH = "inference-header-content-length"
_UNPACKED_AT_ONCE = 1 << 20
_PACKED_AT_ONCE = 1 << 16
_PART_BYTES = 64  # of an object, beside its content
_MEMBERS = 10_000
_SLOW_BYTES = 1 << 16
"""Packed bodies above this are unpacked beside the event loop."""

_THREADS = 2

Result = TypeVar("Result")


class Held:
    """What one request holds of the server's memory; may be added to from any thread."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._n_bytes = 0
        self._is_over = False

    def add(self, n_bytes: int) -> None:
        """Count more.

        Raises
        ------
        BusyError
            the server holds as much as it may, or the request is over, which its thread learns here
        """
        with self._bodies.changing:
            if self._is_over:
                raise BusyError("the request is over")
            self._n_bytes += n_bytes
            self._bodies.n_bytes += n_bytes
            full = self._bodies.n_bytes > self._bodies.limit
        if full:
            raise BusyError("requests in memory reach the server's limit, max_reading_mb; try again, or send less")

    def release(self) -> None:
        with self._bodies.changing:
            self._is_over = True
            self._bodies.n_bytes -= self._n_bytes

    def add_json(self, text: memoryview) -> None:
        """Count what the objects of a JSON text take, at most, before they are made.

        Sizes are those of CPython 3.10 to 3.14 with what orjson needs meanwhile, announced by characters: a value
        follows each comma, and lists and objects, pairs and strings have their own. Text inside strings counts too.
        """
        if len(text) < 4096:
            self.add(64 * len(text))
            return
        n_bytes = len(text)
        for at in range(0, len(text), _UNPACKED_AT_ONCE):
            part = bytes(text[at : at + _UNPACKED_AT_ONCE])
            n_bytes += 56 * part.count(b",") + 120 * (part.count(b"[") + part.count(b"{"))
            n_bytes += 32 * part.count(b'"') + 200 * part.count(b":")
        self.add(n_bytes)


class Bodies:
    """The account of one server, and its way to read HTTP bodies."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.changing = threading.Lock()
        self.limit = int(config.max_reading_mb * 1e6)
        self.n_bytes = 0
        """What all requests hold."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bodies")

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def beside(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Unpack or parse beside the event loop, in few threads: each keeps what it once freed."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))

    @contextmanager
    def hold(self, n_bytes: int = 0) -> Iterator[Held]:
        """Count memory until the block ends.

        Raises
        ------
        BusyError
            the server holds as much as it may
        """
        held = Held(self)
        try:
            held.add(n_bytes)
            yield held
        finally:
            held.release()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[tuple[memoryview, Held]]:
        """The whole body, unpacked; it counts until the block ends.

        Raises
        ------
        TooLargeError
            it says it is, or is, larger than allowed, as sent or unpacked
        BusyError
            the server holds as much as it may
        HTTPException
            408, the client was too slow; 415, an encoding that is not read
        """
        limit = int(self._config.max_body_mb * 1e6)
        claimed = request.headers.get("content-length", "")
        if claimed.isdecimal() and int(claimed) > limit:
            raise TooLargeError(f"body: expected at most {limit} bytes, got Content-Length {claimed[:40]}")
        encoding = _encoding(request)
        with self.hold() as held:
            size = 0

            def came(n_bytes: int) -> None:
                nonlocal size
                size += n_bytes
                if size > limit:
                    raise TooLargeError(f"body: expected at most {limit} bytes, got more")
                held.add(n_bytes)

            try:
                body = await _received(request, came, self._config.body_timeout_s)
            except TimeoutError:
                raise HTTPException(408, f"the body was not here after {self._config.body_timeout_s:g} s") from None
            except ConnectionResetError:
                raise ClientDisconnect from None
            if encoding != "identity" and len(body) > _SLOW_BYTES:
                body = await self.beside(_unpacked, body, encoding, limit, held)
            elif encoding != "identity":
                body = _unpacked(body, encoding, limit, held)
            yield body, held


def _encoding(request: Request) -> str:
    """``identity``, ``gzip`` or ``deflate``."""
    text = ",".join(request.headers.getlist("content-encoding"))
    codings = [name for name in (part.strip().lower() for part in text.split(",")) if name not in ("", "identity")]
    known = {"": "identity", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
    name = ", ".join(codings)
    if name not in known:
        raise HTTPException(415, f"Content-Encoding: expected gzip, deflate or none, got {name[:80]!r}")
    return known[name]


async def _received(request: Request, came: Callable[[int], None], timeout_s: float) -> memoryview:
    """The body as it was sent. Memory is handed on only when this request has filled it."""
    claimed = request.headers.get("content-length", "")
    head = request.headers.get(HEADER_LENGTH, "")
    receive_into = request.scope.get("extensions", {}).get(RECEIVE_INTO)
    if receive_into is not None and claimed.isdecimal():
        body = _memory(int(claimed), int(head) if head.isdecimal() and len(head) < 20 else 0)
        await receive_into(body, came, timeout_s)
        return body
    whole = bytearray()
    with anyio.fail_after(timeout_s):
        async for part in request.stream():
            came(len(part))
            whole += part
    return memoryview(whole)


def _memory(size: int, head: int) -> memoryview:
    """Memory for a body, what follows its head aligned for the model, so that it is not copied again."""
    memory = np.empty(size + 64, dtype=np.uint8)
    start = -(memory.ctypes.data + head) % 64
    return memory.data[start : start + size]


def _unpacked(body: memoryview, encoding: str, limit: int, held: Held) -> memoryview:
    """What a body of one or more gzip members, or of one zlib or raw deflate stream, holds."""
    parts: list[bytes] = []
    packed, at, size = b"", 0, 0
    for _ in range(_MEMBERS):
        unpacker = zlib.decompressobj(_window_bits(body, encoding))
        while not unpacker.eof:
            if not packed:
                packed = bytes(body[at : at + _PACKED_AT_ONCE])
                at += len(packed)
            try:
                part = unpacker.decompress(packed, _UNPACKED_AT_ONCE)
            except zlib.error as error:
                raise InputError(f"body: expected {encoding}: {error}") from error
            if not packed and not part and not unpacker.eof:
                raise InputError(f"body: the {encoding} data is cut off")
            packed = unpacker.unused_data or unpacker.unconsumed_tail
            size += len(part)
            if size > limit:
                raise TooLargeError(f"body: expected at most {limit} bytes unpacked, got more")
            held.add(2 * len(part) + _PART_BYTES)  # twice: the parts, and the whole that they are joined to
            parts.append(part)
        if (not packed and at == len(body)) or (encoding == "gzip" and _is_padding(packed, body[at:])):
            return memoryview(b"".join(parts))
        if encoding != "gzip":
            break
    raise InputError(f"body: expected the end of the {encoding} data, {len(packed) + len(body) - at} bytes follow")


def _is_padding(packed: bytes, body: memoryview) -> bool:
    """Whether a gzip member is followed by zeros alone, as tapes and block devices leave them; gzip skips them, too."""
    starts_with_0 = (packed or bytes(body[:1])).startswith(b"\0")
    return starts_with_0 and not packed.strip(b"\0") and not bytes(body).strip(b"\0")


def _window_bits(body: memoryview, encoding: str) -> int:
    """Of zlib's formats the one that is there; ``deflate`` means zlib's, and many send it raw."""
    if encoding == "gzip":
        return zlib.MAX_WBITS | 16
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await work for a request whose body has been read; cancel it when the client goes away."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(request.receive())  # nothing but a disconnection can come
    at_work, left = True, False

    def leave(_: object) -> None:
        nonlocal left
        if at_work:
            left = task.cancel()

    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        at_work = False
        gone.cancel()
