"""Jobs on disk: a folder each, in a folder of this server's own, which no second server may use.

::

    STATE_DIR/vsum-jobs/lock              held by the server that uses the folder
    STATE_DIR/vsum-jobs/ID/job.json       the record; a folder without it is not ours, and left alone
    STATE_DIR/vsum-jobs/ID/upload         the video
    STATE_DIR/vsum-jobs/ID/summary.npz    what was made of it, and films cut from it: RANGES.mp4
    STATE_DIR/vsum-jobs/ID/work-*         what a process is making

Without a state directory the folder is a temporary one. Those of servers that were killed are removed by the next.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import DiskError, InputError, VsumError

log = logging.getLogger(__name__)

FOLDER = "vsum-jobs"
_RECORD, _UPLOAD, _LOCK = "job.json", "upload", "lock"
_ID = re.compile(r"[0-9a-f]{32}")
_STATES = ("uploading", "queued", "running", "done", "failed")
_LONGEST_RECORD = 1 << 20
_STARTING_S = 60.0  # between the making of a temporary folder and its lock, at most


@dataclass
class Record:
    """What is kept of a job."""

    state: str = "uploading"
    name: str = "video"
    """What the client calls the file; shown, never opened."""
    model: str = ""
    bundle: str = ""
    budget: str = "15%"
    changed: float = field(default_factory=time.time)
    """When the state changed last, in seconds since 1970."""
    upload_bytes: int = 0
    error: str = ""
    status: int = 200
    """HTTP status of the error."""


class JobStore:
    """The folder of jobs of one server. Every method but `close` takes as long as the disk does.

    Raises
    ------
    VsumError
        another server uses the folder
    DiskError
        it cannot be made
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._is_temporary = state_dir is None
        try:
            if state_dir is None:
                _remove_left_behind(Path(tempfile.gettempdir()))
                self.root = Path(tempfile.mkdtemp(prefix=f"{FOLDER}-"))
            else:
                self.root = state_dir.absolute() / FOLDER
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(self.root)
        except OSError as error:
            raise DiskError(
                f"{state_dir or tempfile.gettempdir()}: expected a folder for jobs, the disk refused: "
                f"{error.strerror or error}; choose another --state-dir"
            ) from error
        if self._lock is None:
            raise VsumError(f"{self.root}: another server uses this folder; give each server its own --state-dir")

    def folder(self, job_id: str) -> Path:
        return self.root / job_id

    def upload(self, job_id: str) -> Path:
        return self.root / job_id / _UPLOAD

    def read(self) -> dict[str, Record]:
        """All jobs, oldest first. Uploads that a stop cut off are removed, and what a process was making.

        A record or an upload that was damaged on the disk is that of a failed job, so that whoever asks for it is told.
        """
        records = {}
        for folder in _job_folders(self.root):
            is_marked = (folder / _RECORD).exists()
            for path in folder.iterdir():
                if path.name.startswith(f".{_RECORD}-") or (is_marked and path.name.startswith("work-")):
                    _remove_path(path)
            if not is_marked:
                with suppress(OSError):  # it was made and not marked yet; a folder with anything in it stays
                    folder.rmdir()
                continue
            record = _record(folder)
            if record.state == "uploading":
                self.remove(folder.name)
            else:
                records[folder.name] = record
        return dict(sorted(records.items(), key=lambda item: item[1].changed))

    def make(self, job_id: str, record: Record) -> None:
        """A folder for a job, and an empty file for its upload.

        Raises
        ------
        DiskError
        """
        try:
            self.folder(job_id).mkdir(mode=0o700)
        except OSError as error:
            raise DiskError(f"the upload cannot be kept: {error.strerror}") from error
        try:
            self.write(job_id, record)
            self.upload(job_id).touch()
        except DiskError:
            self.remove(job_id)
            raise

    def write(self, job_id: str, record: Record) -> None:
        """Write a record, whole or not at all.

        Raises
        ------
        DiskError
        """
        kept = {each.name: getattr(record, each.name) for each in fields(Record)}
        try:
            with replacing(self.folder(job_id) / _RECORD) as temporary:
                temporary.write_text(json.dumps(kept), encoding="utf-8")
        except (InputError, DiskError) as error:
            cause = error.__cause__
            reason = cause.strerror if isinstance(cause, OSError) else "its folder is gone"
            raise DiskError(f"the job cannot be kept: {reason}") from error

    def remove(self, job_id: str) -> None:
        """Remove all of a job, its record last: what a stop leaves of it is still known to be ours."""
        _remove_job(self.folder(job_id))

    def close(self) -> None:
        if self._is_temporary:
            _remove_store(self.root)
        if self._lock is not None:
            self._lock.close()


def label(job_id: str) -> str:
    """What logs call a job: its id is a secret, from which this is made, and not the other way round."""
    return sha256(job_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _record(folder: Path) -> Record:
    """The record of a folder, or that of a failed job."""
    try:
        with (folder / _RECORD).open("rb") as file:
            record = _checked(json.loads(file.read(_LONGEST_RECORD)))
        if record.state in ("queued", "running") and (folder / _UPLOAD).stat().st_size != record.upload_bytes:
            raise ValueError("the upload is not as long as it was")
    except (OSError, ValueError, RecursionError) as error:
        log.warning("job %s was damaged on the disk: %s", label(folder.name), error)
        return Record("failed", error="the job was damaged on the server's disk; send the video again", status=500)
    return record


def _checked(found: Any) -> Record:
    kinds = {name: type(value) for name, value in asdict(Record()).items()}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise ValueError(f"expected the fields {', '.join(kinds)}")
    record = Record(**found)
    if record.state not in _STATES or not math.isfinite(record.changed) or not 100 <= record.status < 600:
        raise ValueError(f"no such state, time or status: {record.state[:20]!r}, {record.changed}, {record.status}")
    return record


def _job_folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _remove_job(folder: Path) -> None:
    try:
        for path in list(folder.iterdir()):
            if path.name != _RECORD:
                _remove_path(path)
        (folder / _RECORD).unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("job %s could not be removed: %s", label(folder.name), error.strerror or error)


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_store(root: Path) -> None:
    """Remove the jobs in a folder that is locked; it goes with them if nothing else is in it."""
    for folder in _job_folders(root):
        if (folder / _RECORD).exists():
            _remove_job(folder)
        else:
            with suppress(OSError):
                folder.rmdir()
    with suppress(OSError):
        (root / _LOCK).unlink()
        root.rmdir()


def _remove_left_behind(parent: Path) -> None:
    """Remove the temporary folders of servers that were killed: this user's, and locked by nobody."""
    for root in parent.glob(f"{FOLDER}-*"):
        with suppress(OSError):
            is_own = not hasattr(os, "getuid") or root.lstat().st_uid == os.getuid()
            is_old = time.time() - (root / _LOCK).lstat().st_mtime > _STARTING_S
            if not root.is_symlink() and is_own and is_old and (lock := _locked(root)) is not None:
                with lock:
                    _remove_store(root)


def _locked(root: Path) -> IO[bytes] | None:
    """The file that says the folder is in use, held until it is closed; None if another process holds it."""
    file = (root / _LOCK).open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    return file
