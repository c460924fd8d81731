"""A stranger's npy or npz file -> arguments of ``summarize_features``, in memory that is known before it is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from vsum_runtime.runtime.errors import InputError, TooLargeError, VsumError

KEYS = ("features", "picks", "n_frames", "shots", "fps")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes; zipfile unpacks the others without bound
_DIRECTORY_BYTES = 1 << 16  # of a zip file; each of its entries of 46 bytes takes ten times as much when read
_SHOWN = 200  # characters of what came, in an error


def unpacked_bytes(stream: IO[bytes]) -> int:
    """Memory that `read_features` takes for arrays, at most.

    Raises
    ------
    InputError
        neither format, or a key that is not an argument
    """
    if _is_npy(stream):
        return stream.seek(0, 2)
    size: int = _from_zip(stream, lambda archive: sum(member.file_size for member in archive.infolist()))
    return size


def read_features(stream: IO[bytes], limit: int) -> dict[str, Any]:
    """Arguments of ``summarize_features`` from an npy (features) or npz file, at most ``limit`` bytes unpacked.

    Raises
    ------
    InputError
        neither format, an array of objects, cut off, or a key that is not an argument
    TooLargeError
        an array says it is larger than the limit
    """
    if _is_npy(stream):
        return {"features": _read_array(stream, "features", limit)}
    arguments: dict[str, Any] = _from_zip(stream, lambda archive: _read_arrays(archive, limit))
    if "n_frames" in arguments:
        arguments["n_frames"] = _number(arguments["n_frames"], "n_frames", is_whole=True)
    if "fps" in arguments:
        arguments["fps"] = _number(arguments["fps"], "fps", is_whole=False)
    return arguments


def check_size(arguments: dict[str, Any], *, max_steps: int, max_frames: int) -> int:
    """How many frames the video has that features are said to be of.

    Raises
    ------
    TooLargeError
        more frames, steps or shots than allowed
    """
    for name in ("features", "picks", "shots"):
        n_rows = len(np.atleast_1d(arguments.get(name, ())))
        if n_rows > max_steps:
            raise TooLargeError(f"{name}: expected at most {max_steps} steps or shots, got {n_rows}")
    last_pick = np.max(arguments.get("picks", 0), initial=0)
    n_frames = max(arguments.get("n_frames", 0), last_pick if np.isfinite(last_pick) else 0)
    if n_frames > max_frames:
        raise TooLargeError(f"n_frames: expected at most {max_frames}, got {n_frames}")
    return int(n_frames)


def _is_npy(stream: IO[bytes]) -> bool:
    stream.seek(0)
    magic = stream.read(6)
    stream.seek(0)
    return magic == b"\x93NUMPY"


def _from_zip(stream: IO[bytes], use: Callable[[zipfile.ZipFile], Any]) -> Any:
    try:
        directory = _Directory(stream)
        with zipfile.ZipFile(directory) as archive:
            directory.is_read = True
            _check_members(archive)
            return use(archive)
    except VsumError:
        raise
    except Exception as error:  # whatever zipfile and zlib raise on foreign bytes, and that is much
        raise InputError(f"features: expected an npy or npz file: {str(error)[:_SHOWN]}") from error


def _check_members(archive: zipfile.ZipFile) -> None:
    names = [member.filename.removesuffix(".npy") for member in archive.infolist()]
    if set(names) - set(KEYS) or "features" not in names or len(set(names)) < len(names):
        shown = str(names[:8])[:_SHOWN]
        raise InputError(f"npz: expected features and at most {', '.join(KEYS[1:])}, once each, got {shown}")
    for member in archive.infolist():
        if member.compress_type not in _METHODS:
            raise InputError(f"npz: expected arrays stored or deflated, got {member.filename} of another method")


def _read_arrays(archive: zipfile.ZipFile, limit: int) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as part:
            arrays[name] = _read_array(part, name, limit)
        limit -= arrays[name].nbytes
    return arrays


class _Directory:
    """A file that gives no large pieces before the directory of the zip file in it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.is_read = False
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY_BYTES and not self.is_read:
            raise InputError(f"npz: expected at most {', '.join(KEYS)}, got a directory of {size} bytes")
        return self._stream.read(size)


def _read_array(stream: IO[bytes], name: str, limit: int) -> np.ndarray[Any, Any]:
    """One array of npy format; what its header claims is checked before memory is taken, nothing is unpickled."""
    try:
        version = np.lib.format.read_magic(stream)
        reader: Callable[[IO[bytes]], Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(stream)
    except Exception as error:  # a header is an expression of Python, which fails in many ways
        raise InputError(f"{name}: expected an array in npy format: {str(error)[:_SHOWN]}") from error
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers, got {str(dtype)[:_SHOWN]}")
    if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 3:
        raise InputError(f"{name}: expected a shape of at most 3 sizes, got {str(shape)[:_SHOWN]}")
    size = math.prod(shape) * dtype.itemsize
    if size > limit:
        raise TooLargeError(f"{name}: expected at most {limit} bytes, its header claims {str(size)[:_SHOWN]}")
    data = stream.read(size + 1)
    if len(data) != size:
        raise InputError(f"{name}: the header claims {size} bytes, {len(data)} came")
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # no bytes, in a shape whose other sizes are beyond any array
        raise InputError(f"{name}: expected the shape of an array, got {str(shape)[:_SHOWN]}") from error


def _number(array: np.ndarray[Any, Any], name: str, *, is_whole: bool) -> int | float:
    """The one number in an array."""
    kind = "a whole number" if is_whole else "a number"
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected {kind}, got {array.dtype} {array.shape}")
    number = array.reshape(-1)[0]
    if not np.isfinite(number) or (is_whole and number != np.floor(number)):
        raise InputError(f"{name}: expected {kind}, got {number}")
    return int(number) if is_whole else float(number)
