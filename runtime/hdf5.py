"""HDF5 files of strangers -> arrays: whatever cannot be read is an InputError that names the file and the field.

A field's type, shape and size are known, and may be refused, before a byte of it is read. Links into other files are
followed, and what they lead to keeps the name it is asked for by.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError, MissingPackageError
from vsum_runtime.runtime.file_kinds import kind_of

if TYPE_CHECKING:
    import h5py

_FILTERS = {
    4: "SZIP", 307: "bzip2", 32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP",
    32015: "Zstandard", 32017: "SZ", 32026: "Blosc2",
}  # fmt: skip
"""HDF5's registered numbers of filters -> their names."""
_ALWAYS_READ_BYTES = 16 << 20
_MOST_PACKED = 1100  # times smaller that a field may be stored: deflate reaches 1032, on zeros
_FAULTS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What h5py raises on damaged files, the last where a size in the file is nonsense."""


@dataclass(frozen=True)
class Field:
    """One array of a file, not yet read."""

    place: str
    """File, group and name, for messages."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_blank: bool
    """The file says that there is no value: a null space, or an empty array as MATLAB stores it."""
    _stored: Any

    def read(self) -> NDArray[Any]:
        """The whole array.

        Raises
        ------
        InputError
            damaged, compressed by a filter that is not installed, or far larger than what the file holds
        """
        if self.is_blank:
            return np.empty(self.shape, self.dtype)
        with _named(self.place):
            claimed = self.dtype.itemsize * int(np.prod([int(n) for n in self.shape], dtype=object))
            held = _bytes_held(self._stored)
            missing = _missing_filter(self._stored)
        if claimed > max(_ALWAYS_READ_BYTES, _MOST_PACKED * held):
            raise InputError(
                f"{self.place}: claims {claimed} bytes, of which the file holds {held}; it is damaged, or not finished"
            )
        try:
            return np.asarray(self._stored[()])
        except _FAULTS as error:
            if missing:
                raise InputError(
                    f"{self.place}: compressed by {missing}, which this HDF5 cannot read: pip install hdf5plugin, "
                    "or store the file anew: h5repack -f GZIP=1 IN.h5 OUT.h5"
                ) from None
            raise InputError(f"{self.place}: cannot be read, the file is damaged: {_told(error)}") from None


def library() -> Any:
    """The module h5py, imported where a file is opened: commands that only say what they take need none."""
    try:
        import h5py
    except ImportError:
        raise MissingPackageError.of("an HDF5 file", "h5py", "features") from None
    return h5py


@contextmanager
def open_file(path: Path, expected: str) -> Iterator[h5py.File]:
    """Open a file to read; ``expected`` says in a message what it should have been.

    Raises
    ------
    InputError
        not there, or not an HDF5 file
    """
    try:
        file = library().File(path, "r")
    except _FAULTS as error:
        kind = kind_of(path)
        told = _told(error) if kind in (None, "an HDF5 file") else f"it is {kind}"
        told = told if path.exists() else "there is no such file"
        raise InputError(f"{path}: expected {expected}, cannot open it: {told}") from None
    with file:
        yield file


def groups(file: h5py.File, path: Path) -> dict[str, h5py.Group]:
    """The groups at the root by the names that the file lists them by, wherever they lie."""
    with _named(str(path)):
        names = [name.decode(errors="backslashreplace") if isinstance(name, bytes) else name for name in file]
    members = {}
    for name in names:
        with _named(f"{path}: {name}"):
            members[name] = file[name]
    return {name: member for name, member in members.items() if isinstance(member, library().Group)}


def field(group: h5py.Group, name: str, place: str) -> Field | None:
    """What a group holds under a name; None where it holds nothing. ``place`` names the group in messages."""
    place = f"{place}/{name}"
    with _named(place):
        if group.get(name, getlink=True) is None:
            return None
        stored = group[name]
        if not isinstance(stored, library().Dataset):
            raise InputError(f"{place}: expected an array, found a {type(stored).__name__.lower()}")
        dtype, shape = stored.dtype, stored.shape
        is_blank = shape is None or bool(stored.attrs.get("MATLAB_empty", 0))
    return Field(place, dtype, (0,) if is_blank else shape, is_blank, stored)


def text(group: h5py.Group, name: str, place: str) -> str:
    """One string, stored as text, bytes or MATLAB's UTF-16 numbers; empty where there is none."""
    found = field(group, name, place)
    if found is None or found.is_blank or found.dtype.kind not in "SOUu":
        return ""
    values = found.read().reshape(-1)
    if found.dtype == np.uint16:
        return values.tobytes().decode("utf-16", "replace")
    value = values[0] if len(values) == 1 else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def copy(old: h5py.File, key: str, new: h5py.File, path: Path) -> None:
    """Copy a group, and what its links lead to, under the same key; ``path`` names the old file in messages.

    Raises
    ------
    InputError
        it cannot be read
    OSError
        the disk refuses
    """
    try:
        # Without a name, h5py would take that of what a link leads to.
        old.copy(key, new, name=key, expand_soft=True, expand_external=True)
    except _FAULTS as error:
        if "errno = " in str(error):
            raise
        raise InputError(f"{path}: {key} cannot be copied, the file is damaged: {_told(error)}") from None


def attributes(file: h5py.File, path: Path) -> dict[str, str]:
    """The file's own attributes, as text."""
    with _named(str(path)):
        return {name: str(value) for name, value in file.attrs.items()}


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(
            f"{place}: cannot be read, the file is damaged or a link leads nowhere: {_told(error)}"
        ) from None


def _bytes_held(stored: h5py.Dataset) -> int:
    """Bytes of a field in the file, compressed as they are; of a virtual one, all bytes of the files it is made of."""
    if not stored.is_virtual:
        return int(stored.id.get_storage_size())
    own = Path(stored.file.filename)
    sources = {own if part.file_name == "." else own.parent / part.file_name for part in stored.virtual_sources()}
    return sum(source.stat().st_size for source in sources if source.is_file())


def _missing_filter(stored: h5py.Dataset) -> str:
    """The first filter of a field that cannot be run here, though hdf5plugin was asked; empty where all can."""
    plan = stored.id.get_create_plist()
    for number, _, _, name in (plan.get_filter(index) for index in range(plan.get_nfilters())):
        if not library().h5z.filter_avail(number):
            with suppress(ImportError):
                importlib.import_module("hdf5plugin")  # brings most filters
        if not library().h5z.filter_avail(number):
            return f"{_FILTERS.get(number) or name.decode(errors='replace') or 'a filter'} (HDF5 filter {number})"
    return ""


def _told(error: BaseException) -> str:
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
