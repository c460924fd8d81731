"""Files that appear whole or not at all, and the checksum that tells."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vsum_runtime.runtime.errors import DiskError, InputError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty temporary file beside the target; it takes the target's name if the block ends well, else it goes.

    Raises
    ------
    InputError   the folder does not exist, or the target is a directory
    DiskError    the disk refuses: full, read-only
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
