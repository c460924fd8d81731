"""Tensors in memory that clients on this machine share with the server: Triton's system shared memory extension.

A client makes POSIX shared memory, registers it under a name, and its requests say where in that region a tensor lies
instead of carrying it. The model reads features where the client wrote them, so a client can change them between check
and use, and gets scores of whatever was read; all else is copied before it is checked. Scores are written through the
file, which cannot fault.

Reading a mapped page that its file has lost kills the process (SIGBUS). Registering therefore reserves all pages, and
each request finds the file as long as it was; what remains is a client that cuts it while a request waits or runs.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsum_runtime.runtime.errors import BusyError, InputError, NotFoundError, TooLargeError, brief
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.protocol import DTYPES, Tensor, tensor_bytes

FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?(?!\.{1,2}$)[!-.0-~]{1,255}")
"""As shm_open takes it on Linux: the slash may be left out."""
_REGION, _OFFSET, _SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


@dataclass(frozen=True, eq=False)
class Region:
    """Registered memory. It is unmapped, and its file closed, when nothing refers to ``mapping`` any more."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: int
    mapping: mmap.mmap
    """From the beginning of the page that ``offset`` lies in; read-only."""

    def check_length(self) -> None:
        length, end = os.fstat(self.file).st_size, self.offset + self.byte_size
        if length < end:
            raise InputError(f"region {self.name!r}: was registered up to byte {end} of {self.key}, which has {length}")


@dataclass(frozen=True, eq=False)
class Output:
    """Where a request wants its scores."""

    region: Region
    offset: int

    def write(self, data: bytes) -> None:
        """Write them.

        Raises
        ------
        InputError
            the client has cut its memory
        """
        self.region.check_length()
        try:
            n_written = os.pwrite(self.region.file, data, self.region.offset + self.offset)
        except OSError as error:
            raise InputError(f"region {self.region.name!r}: cannot be written: {error.strerror}") from error
        if n_written < len(data):
            raise InputError(f"region {self.region.name!r}: took {n_written} of {len(data)} bytes")


class Regions:
    """The registered regions of one server. Where its settings do not allow them, each use is an InputError.

    Raises
    ------
    InputError
        the settings allow them, and this machine has none
    """

    def __init__(self, config: ServeConfig) -> None:
        if config.shared_memory and not FOLDER.is_dir():
            raise InputError(f"shared_memory: needs POSIX shared memory in {FOLDER}, which this machine does not have")
        self._config = config
        self._changing = threading.Lock()
        self._regions: dict[str, Region] = {}
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        """Registered, or unregistered and still in use by a request."""

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """What is registered, or the one region of that name."""
        self._check_on()
        found = [self._find(name)] if name else list(self._regions.values())
        return [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.byte_size} for r in found]

    def register(self, name: str, key: Any, offset: Any, byte_size: Any) -> None:
        """Map a part of shared memory under a name. Large memory takes its time: call this from a thread.

        Raises
        ------
        InputError
            the name is taken, or there is no such part of such memory
        BusyError
            the server has as many regions, or maps as much, as it may
        """
        self._check_on()
        if not 0 < len(name) <= 255:
            raise InputError(f"region: expected a name of 1 to 255 characters, got {len(name)}")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InputError(f"key: expected /NAME, of ASCII characters without a further slash, got {brief(key)}")
        for what, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
            if type(value) is not int or not least <= value < 1 << 62:
                raise InputError(f"{what}: expected an integer of {least} or more, got {brief(value)}")
        with self._changing:
            if name in self._regions:
                raise InputError(f"region {name!r} is registered already; unregister it first")
            limit = int(self._config.max_reading_mb * 1e6)
            if byte_size + sum(map(len, self._mapped)) > limit or len(self._mapped) >= self._config.max_queue:
                raise BusyError(
                    f"region {name!r}: the server maps at most {limit} bytes (max_reading_mb) in "
                    f"{self._config.max_queue} regions (max_queue); unregister others"
                )
            region = _mapped(name, key, offset, byte_size)
            self._mapped.add(region.mapping)
            self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; a name that is not there is no error. Requests that use it keep its memory."""
        self._check_on()
        with self._changing:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def input(self, name: str, datatype: str, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Tensor | None:
        """An input of a request; None where its parameters do not name a region.

        Raises
        ------
        InputError
            the part is not inside the region, or not of the tensor's size
        NotFoundError
            there is no such region
        TooLargeError
            it is larger than a request may be that carries it
        """
        part = self._part(name, parameters)
        if part is None:
            return None
        region, offset, size = part
        expected, limit = tensor_bytes(shape, datatype), int(self._config.max_body_mb * 1e6)
        if size != expected:
            raise InputError(f"{name}: shape {list(shape)} takes {expected} bytes, {_SIZE} says {size}")
        if size > limit:
            raise TooLargeError(f"{name}: expected at most {limit} bytes, got {size}")
        region.check_length()
        at = region.offset % mmap.ALLOCATIONGRANULARITY + offset
        values = np.frombuffer(region.mapping, DTYPES[datatype], math.prod(shape), at)
        if name != "features":
            values = values.copy()
        elif not values.flags.aligned:
            raise InputError(f"{name}: expected {_OFFSET} to be a multiple of {values.itemsize}, got {offset}")
        return Tensor(name, datatype, shape, values)

    def output(self, n_bytes: int, parameters: Mapping[str, Any]) -> Output | None:
        """Where an output of that size shall go; None where its parameters do not name a region.

        Raises
        ------
        InputError
            the part is not inside the region, or too small
        NotFoundError
            there is no such region
        """
        part = self._part("output", parameters)
        if part is None:
            return None
        region, offset, size = part
        if size < n_bytes:
            raise InputError(f"output: the scores take {n_bytes} bytes, {_SIZE} gives them {size}")
        region.check_length()
        return Output(region, offset)

    def close(self) -> None:
        self._regions.clear()

    def _part(self, tensor: str, parameters: Mapping[str, Any]) -> tuple[Region, int, int] | None:
        """Region, offset in it and size."""
        given = {key: value for key, value in parameters.items() if key.startswith("shared_memory")}
        if not given:
            return None
        self._check_on()
        name, offset, size = given.get(_REGION), given.get(_OFFSET, 0), given.get(_SIZE, 0)
        if not isinstance(name, str) or type(offset) is not int or offset < 0 or type(size) is not int or size < 1:
            raise InputError(
                f"{tensor}: expected {_REGION}, a name, {_SIZE}, above 0, and {_OFFSET}, which may be left out for 0, "
                f"got {brief(given)}"
            )
        region = self._find(name)
        if offset + size > region.byte_size:
            raise InputError(
                f"{tensor}: {size} bytes from {offset} are not inside region {name!r}, which has {region.byte_size}"
            )
        return region, offset, size

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(
                f"unknown region {name[:80]!r}; GET /v2/systemsharedmemory/status lists what is registered"
            )
        return region

    def _check_on(self) -> None:
        if not self._config.shared_memory:
            raise InputError("shared memory is off; start the server with --shared-memory, or send the tensor")


def _mapped(name: str, key: str, offset: int, byte_size: int) -> Region:
    try:
        with ExitStack() as opened:
            file = os.open(FOLDER / key.lstrip("/"), os.O_RDWR | os.O_NOFOLLOW)
            opened.callback(os.close, file)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"key: {key} is not shared memory")
            if offset + byte_size > status.st_size:
                raise InputError(
                    f"region {name!r}: offset and byte_size end at byte {offset + byte_size} of {key}, "
                    f"which has {status.st_size}"
                )
            os.posix_fallocate(file, offset, byte_size)
            start = offset - offset % mmap.ALLOCATIONGRANULARITY
            end = offset + byte_size
            mapping = mmap.mmap(file, end - start, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
            weakref.finalize(mapping, opened.pop_all().close)
    except OSError as error:
        raise InputError(f"key: {key} cannot be shared to read and write: {error.strerror}") from error
    return Region(name, key, offset, byte_size, file, mapping)
