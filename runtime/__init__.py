"""A video in, a summary out: scores, shots, and a playable film. Needs numpy and one backend, never torch."""

from typing import TYPE_CHECKING, Any

from vsum_runtime import __version__

if TYPE_CHECKING:
    from vsum_runtime.runtime.pipeline import Summarizer
    from vsum_runtime.runtime.summary import Summary

if __name__ == "runtime":  # imported by its short name, as in a checkout
    from vsum_runtime.short_name import forward

    forward(__name__)

__all__ = ["Summarizer", "Summary", "__version__"]

_HOMES = {"Summarizer": "vsum_runtime.runtime.pipeline", "Summary": "vsum_runtime.runtime.summary"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
