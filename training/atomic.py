"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import InputError, VsumError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside the target; move it over the target when the block ends well, else remove it.

    Raises
    ------
    InputError   the folder does not exist
    VsumError    the disk refuses: full, read-only
    """
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
    temporary = target.with_name(f".{target.name}-{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise VsumError(f"{target}: could not be written: {error.strerror or error}; it is as it was before") from error
    finally:
        temporary.unlink(missing_ok=True)
