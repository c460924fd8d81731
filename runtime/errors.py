"""The error tree. Everything this project raises on purpose is a VsumError.

A message says what was expected, what came, and what to do. ``http_status`` is what a server answers with.
Kernels raise ``ValueError`` as numpy does; the rooms above translate. Exit codes of commands: ``runtime.cli.door``.
"""

from __future__ import annotations

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlong = 40


def brief(value: Any) -> str:
    """What came, for a message: its repr, cut to about a line however large it is."""
    return _SHORT.repr(value)[:200]


class VsumError(Exception):
    """Anything this project raises on purpose."""

    http_status = 500


class InputError(VsumError, ValueError):
    """What the caller gave is wrong: shape, dtype, range or option."""

    http_status = 400


class TooLargeError(InputError):
    """What the caller gave is larger than this service allows."""

    http_status = 413


class NotFoundError(VsumError):
    """No model, version, job, region or path of that name."""

    http_status = 404


class VideoError(VsumError):
    """A video that cannot be opened, decoded or written."""

    http_status = 422


class BundleError(VsumError):
    """Not a bundle, a version this code does not read, a wrong checksum or a missing part."""


class BackendError(VsumError):
    """The backend or precision asked for is not to be had here."""


class MissingPackageError(VsumError):
    """A package is not installed; the message names the extra that brings it."""

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> MissingPackageError:
        return cls(f'{what} needs {package}, which is not installed: pip install "vsum-runtime[{extra}]"')


class BusyError(VsumError):
    """The request cannot be served in time: the queue is full, or its deadline too near; try again later."""

    http_status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DiskError(VsumError):
    """A disk that refuses what is to be written: full, read-only, gone."""

    http_status = 507


class ExportError(VsumError):
    """A step of export failed, or parity was not reached."""
