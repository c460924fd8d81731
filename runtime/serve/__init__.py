"""The server: the Open Inference Protocol (V2) over REST and gRPC, whole videos, and a page for people.

Read in this order: ``config`` (every setting), ``models`` (what is loaded), ``protocol`` (tensors in, tensors out),
``shared_memory`` (tensors that are not sent), ``rest`` and ``rpc`` (the two doors of V2), ``jobs`` and ``video_worker``
(videos), ``app`` (all routes, and the service behind them), ``server`` (sockets and signals).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsum_runtime.runtime.serve.config import ServeConfig
    from vsum_runtime.runtime.serve.rest.app import create_app
    from vsum_runtime.runtime.serve.server import Server

__all__ = ["ServeConfig", "Server", "create_app"]

_HOMES = {
    "ServeConfig": "vsum_runtime.runtime.serve.config",
    "Server": "vsum_runtime.runtime.serve.server",
    "create_app": "vsum_runtime.runtime.serve.rest.app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vsum_runtime.runtime.serve' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
