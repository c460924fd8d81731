"""Sockets, signals and the order of starting and stopping: ``with Server() as server``, or a process of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import uvicorn

from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.runtime.machine import keep_freed_memory
from vsum_runtime.runtime.serve.config import LOOPBACK, ServeConfig
from vsum_runtime.runtime.serve.rest.app import create_app
from vsum_runtime.runtime.serve.rest.wire import PIECE, Wire

log = logging.getLogger(__name__)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us: uvicorn raises them again at its end, and a drained server must exit with 0."""
        yield


class Server:
    """A server in a thread of this process, listening when the block begins, drained when it ends.

    >>> with Server(port=0) as server:  # doctest: +SKIP
    ...     requests.get(server.url + "/v2/health/ready")

    Parameters
    ----------
    config : ServeConfig
        or its fields as keywords
    tracer_provider
        of OpenTelemetry; None: what the environment says

    Raises
    ------
    InputError
        certificates or keys that cannot be used
    VsumError
        a model cannot be loaded, or a port is taken
    """

    def __init__(
        self, config: ServeConfig | None = None, *, tracer_provider: Any | None = None, **settings: Any
    ) -> None:
        config = config or ServeConfig(**settings)
        if config.host in LOOPBACK and not config.allowed_hosts:
            config = replace(config, allowed_hosts=LOOPBACK)
        self.config = config
        _check_tls(config)
        self.app = create_app(self.config, tracer_provider=tracer_provider)
        self.port = 0
        self.grpc_port: int | None = None
        self._socket: socket.socket | None = None
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._last_resort: threading.Timer | None = None

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'https' if self.config.tls_cert else 'http'}://{host}:{self.port}"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._in_thread, name="vsum-server", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def run(self) -> None:
        """Serve in this thread until SIGTERM or SIGINT, then finish what is running, at most the grace time.

        What does not end by then is ended with the process, whose exit code is then 1.
        """
        keep_freed_memory()
        try:
            _run(self._serve(signals=(signal.SIGTERM, signal.SIGINT)))
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()

    def _in_thread(self) -> None:
        try:
            _run(self._serve(signals=()))
        except BaseException as error:
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self, signals: tuple[signal.Signals, ...]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for number in signals:
            self._loop.add_signal_handler(number, self._stop.set)
        service, config = self.app.state.service, self.config
        self._socket = _bound(config.host, config.port)
        self.port = self._socket.getsockname()[1]
        web = _Uvicorn(self._uvicorn_config())
        serving = asyncio.create_task(web.serve([self._socket]))
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(service.__aenter__())
        rpc = None
        try:
            await asyncio.wait({serving, starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                if config.grpc_port is not None:
                    from vsum_runtime.runtime.serve.rpc import start

                    rpc, self.grpc_port = await start(service)
                log.info("listening on %s%s", self.url, f", gRPC on {self.grpc_port}" if rpc else "")
                self._up.set()
                if signals:
                    # In a process of its own: what is loaded stays, so the collector of garbage need not look at it
                    # again and again. It took a third of the event loop's time under load.
                    gc.collect()
                    gc.freeze()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
                raise VsumError("the web server ended by itself; its log says more")
        finally:
            # One grace time for the whole stop, of which a part is for closing what did not end in it.
            until = time.monotonic() + config.grace_s - min(5.0, config.grace_s / 4)

            def left_s() -> float:
                return max(0.0, until - time.monotonic())

            log.info("stopping: finishing what is running, at most %g s", config.grace_s)
            if signals:
                self._last_resort = threading.Timer(config.grace_s, _end_by_force)
                self._last_resort.daemon = True
                self._last_resort.start()
            service.models.ready = False
            if not serving.done():
                await service.jobs.drain(left_s())  # whoever waits for a job can still ask for it
            web.config.timeout_graceful_shutdown = left_s()  # type: ignore[assignment]  # it is only waited for
            web.should_exit = True
            if rpc is not None:
                await rpc.stop(left_s())
            await asyncio.wait({serving})
            stopping.cancel()
            if not starting.done():
                await asyncio.wait({starting})
            if starting.exception() is None:
                await service.close(left_s())
            self._socket.close()

    def _uvicorn_config(self) -> uvicorn.Config:
        config = self.config
        return uvicorn.Config(
            self.app,
            http=partial(Wire, config, memoryview(bytearray(PIECE))),  # type: ignore[arg-type]  # a class is meant, but it is only called
            ws="none",
            lifespan="off",  # this class starts and stops the service itself
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            ssl_ca_certs=None if config.tls_client_ca is None else str(config.tls_client_ca),
            ssl_cert_reqs=ssl.CERT_NONE if config.tls_client_ca is None else ssl.CERT_REQUIRED,
        )


def _check_tls(config: ServeConfig) -> None:
    """Refuse certificates that cannot be used before anything is started.

    Raises
    ------
    InputError
    """
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        path = getattr(config, name)
        try:
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise InputError(f"{name}: {path} cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if config.tls_cert is not None and config.tls_key is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: b"")  # it would ask the terminal
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            f"tls_cert, tls_key: expected a certificate and its key without a passphrase, as PEM: {error}"
        ) from error
    try:
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
    except (ssl.SSLError, ValueError) as error:
        raise InputError(f"tls_client_ca: expected certificates as PEM: {error}") from error


def _end_by_force() -> None:
    """The grace time is over, and something hangs that cannot be cancelled: a call of a library, a disk."""
    log.error("not everything ended within the grace time; ending all the same")
    os._exit(1)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise VsumError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
    return found
