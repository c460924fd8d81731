"""Files and folders that appear whole or not at all, and the checksum that tells."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.errors import DiskError, InputError

_AT_FDCWD, _SWAP = -100, 2  # of <fcntl.h>; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS are the same number


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty temporary file beside the target; it takes the target's name if the block ends well, else it goes.

    Raises
    ------
    InputError
        the folder does not exist, or the target is a directory
    DiskError
        the disk refuses: full, read-only
    """
    folder = target.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{target}: expected an existing folder, found no {folder}; make it first")
    if target.is_dir():
        raise InputError(f"{target}: expected the name of a file, found a directory; add a file name")
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:200]}-", suffix=".tmp", dir=folder)
        temporary = Path(name)
        os.close(descriptor)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise DiskError(
            f"{target}: expected to write it, the disk refused: {error.strerror or error}; "
            "free space or choose another folder (nothing was changed)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside the target; it takes the target's name if the block ends well, else it goes.

    An older folder of that name is exchanged in one step, where the system can (Linux, macOS); then it goes. So do
    folders that writers of this target left when they were killed.

    Raises
    ------
    OSError
        the disk refuses
    """
    for leftover in target.parent.glob(f".{_escaped(target.name[:200])}-*.tmp"):
        with _held(leftover) as is_ours:
            if is_ours:
                shutil.rmtree(leftover, ignore_errors=True)
    with ExitStack() as holding:
        temporary = _held_folder(target, holding)
        try:
            yield temporary
            for part in (*temporary.iterdir(), temporary):
                _fsync(part)
            temporary.chmod(0o777 & ~_umask())
            if target.exists():
                _exchange(temporary, target)
            else:
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _held_folder(target: Path, holding: ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:200]}-", suffix=".tmp", dir=target.parent))
        if holding.enter_context(_held(folder)) and folder.exists():  # else another writer took it for a leftover
            return folder


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder for as long as this process lives; False where another process, or nobody, can have it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # on Windows nothing is locked, and no leftover taken away
        yield sys.platform == "win32" and not any(folder.iterdir())
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders of one disk in one step; in two where the system has no such step."""
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    names = os.fsencode(new), os.fsencode(old)
    if hasattr(libc, "renameat2"):  # Linux
        done = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _SWAP) == 0
    else:
        done = hasattr(libc, "renamex_np") and libc.renamex_np(*names, _SWAP) == 0  # macOS
    if not done:
        aside = new.with_name(f"{new.name}.old")
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove what processes that were killed left of a file; for those who know that nobody else writes it now."""
    for leftover in target.absolute().parent.glob(f".{_escaped(target.name[:200])}-*.tmp"):
        leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sha256(file: Path) -> str:
    """Checksum of a file's content, read piece by piece."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
