"""Where results may be written: never over what they are made from, nor over a film, picture or data set of somebody.

Every command and `Summary.write_video` ask `check_target` before the work begins. What this project writes carries a
mark (`FILM`, `PLOT`, `STILL` or `DATA`), so that its own earlier results are replaced without a question.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.file_kinds import kind_of

FILM = "Summary film made by vsum-runtime"
PLOT = "Summary plot made by vsum-runtime"
STILL = "Still made by vsum-runtime"
DATA = "Features written by vsum-runtime"

_PIECE = 4 << 20  # bytes at either end of a file that are looked through for a mark


def check_target(
    target: str | os.PathLike[str],
    *,
    sources: Iterable[str | os.PathLike[str] | None] = (),
    mark: str | None = None,
    overwrite: bool = False,
) -> None:
    """Refuse a file to write where something would be lost, or where nothing can be written.

    Parameters
    ----------
    target
        file to write
    sources
        what is read; links to it count as itself
    mark
        a film, picture or data set that has it was made by the same writer and may be replaced
    overwrite
        any other film, picture or data set may be replaced too, but never a source

    Raises
    ------
    InputError
        a source; a film, picture or data set that this writer did not make; a directory or a device; the folder does
        not exist
    """
    path = Path(target)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: expected an existing folder, found no {folder}; make it first")
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a file, found a directory; add a file name")
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path}: expected the name of a file, found a device; choose another name")
    for source in sources:
        if source is not None and Path(source).exists() and path.samefile(source):
            link = "" if Path(source) == path else f" the same file as {os.fspath(source)}, which is"
            raise InputError(f"{path}: is{link} read, so it cannot be written too; choose another name")
    if overwrite:
        return
    kind = kind_of(path)
    if kind is not None and not (mark is not None and _has(path, mark.encode())):
        raise InputError(
            f"{path}: exists and is {kind}, not an earlier result of this kind; choose another name, or allow it to be "
            "overwritten (--overwrite, overwrite=True)"
        )


def _has(file: Path, mark: bytes) -> bool:
    with file.open("rb") as stream:
        if mark in stream.read(_PIECE):
            return True
        stream.seek(max(0, file.stat().st_size - _PIECE))
        return mark in stream.read()
