"""A video in, a summary out: scores, shots, and a playable film. Needs numpy and one backend, never torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.pipeline import Summarizer
    from runtime.summary import Summary

__all__ = ["Summarizer", "Summary"]

_HOMES = {"Summarizer": "runtime.pipeline", "Summary": "runtime.summary"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
