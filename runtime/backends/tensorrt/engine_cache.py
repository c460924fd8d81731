"""Engines on disk: where they lie, how one is known to be whole, ours and made for this machine.

An engine is native code, so it is never part of a bundle and never taken from anywhere: it is read only from a folder
that belongs to this user and that nobody else may write, with the checksum its builder wrote beside it. The layout::

    <cache>/<sha256 of the ONNX file, 16 digits>/<sha256 of all that shaped it, 16 digits>/engine.plan
                                                                                         /engine.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends.tensorrt.profiles import Profile
from vsum_runtime.runtime.errors import BackendError

PLAN = "engine.plan"
RECORD = "engine.json"


@dataclass(frozen=True)
class Target:
    """What an engine must have been built for to run here."""

    library: str
    """``tensorrt`` or ``tensorrt_rtx``"""
    library_version: str
    gpu: str
    """Name of the card; "any" where the library builds for compute capabilities."""
    compute_capability: str
    """Such as "9.0"."""
    driver: int
    """CUDA version the driver supports, as CUDA counts: 13000."""


@dataclass(frozen=True)
class Engine:
    """An engine whose bytes have been checked."""

    plan: bytes
    profiles: tuple[Profile, ...]
    record: dict[str, Any]


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/vsum/engines``, or the same below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsum" / "engines"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key(onnx_sha256: str, target: Target, precision: str, profiles: tuple[Profile, ...], flags: dict[str, Any]) -> str:
    """Names an engine by everything that shapes it."""
    shaped_by = [onnx_sha256, asdict(target), precision, [asdict(profile) for profile in profiles], flags]
    return sha256(json.dumps(shaped_by, sort_keys=True).encode())


def write(folder: Path, onnx_sha256: str, name: str, plan: bytes, record: dict[str, Any]) -> Path:
    """Put an engine in its place: whole or not at all.

    ``record`` holds ``target``, ``profiles`` and what was measured; the checksum is added here.
    """
    place = folder / onnx_sha256[:16] / name[:16]
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = Path(tempfile.mkdtemp(prefix=".engine-", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise BackendError(f"{place}: cannot be written: {error.strerror}; choose another --engine-cache") from error
    whole = {**record, "onnx_sha256": onnx_sha256, "key": name, "sha256": sha256(plan), "bytes": len(plan)}
    try:
        for part, data in ((PLAN, plan), (RECORD, json.dumps(whole, indent=1, sort_keys=True).encode())):
            with (temporary / part).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if place.exists():
            shutil.rmtree(place)
        temporary.rename(place)
    except OSError as error:
        raise BackendError(f"{place}: could not be written: {error.strerror}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def find(folder: Path, onnx_sha256: str, target: Target, rebuild: str) -> Engine:
    """The newest engine of a graph that was built for this machine.

    Parameters
    ----------
    rebuild
        the command that builds it, told in every error

    Raises
    ------
    BackendError
        there is none, it is for another machine, or it was altered
    """
    unfit = []
    records = (folder / onnx_sha256[:16]).glob(f"*/{RECORD}")
    for file in sorted(records, key=lambda file: file.stat().st_mtime, reverse=True):
        record = _record(file, rebuild)
        if record["onnx_sha256"] != onnx_sha256:
            continue
        if differs := _differences(record, target):
            unfit.append(differs)
        else:
            return read(file.parent, rebuild)
    if unfit:
        raise BackendError(f"the engine of this model was built for another machine ({unfit[0]}); build one: {rebuild}")
    raise BackendError(f"no engine of this model has been built here, in {folder}; build one: {rebuild}")


def read(place: Path, rebuild: str) -> Engine:
    """One engine by its place, checked.

    Raises
    ------
    BackendError
        a part is missing, altered, writable by others, or the engine never passed the gate
    """
    record = _record(place / RECORD, rebuild)
    plan = (place / PLAN).read_bytes()
    if len(plan) != record["bytes"] or sha256(plan) != record["sha256"]:
        raise BackendError(
            f"{place / PLAN}: expected {record['bytes']} bytes of sha256 {str(record['sha256'])[:16]}.., got "
            f"{len(plan)} of {sha256(plan)[:16]}..; it was cut or altered and is not loaded; build it again: {rebuild}"
        )
    if not record["parity"].get("passed"):
        raise BackendError(f"{place}: this engine has not passed the parity gate; build it again: {rebuild}")
    profiles = tuple(Profile(tuple(p["best"]), tuple(p["most"])) for p in record["profiles"])
    return Engine(plan, profiles, record)


@contextmanager
def building(folder: Path, onnx_sha256: str, name: str) -> Iterator[None]:
    """Hold the lock of one engine; a second process waits here until the first has built it."""
    place = folder / onnx_sha256[:16]
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (place / f"{name[:16]}.lock").open("wb")
    except OSError as error:
        raise BackendError(f"{place}: cannot be written: {error.strerror}; choose another --engine-cache") from error
    with lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
        yield


@contextmanager
def sealed(folder: Path, onnx_sha256: str) -> Iterator[Path]:
    """A folder where a library keeps engines of one graph by itself; one process at a time.

    What is there on entry must be what was there when the folder was last left, and nobody else may write it.

    Raises
    ------
    BackendError
        a file was altered, added or taken away; which folder to delete
    """
    with building(folder, onnx_sha256, "sealed"):
        place = folder / onnx_sha256[:16]
        seal, rebuild = place / "seal.json", f"delete {place}, and it is built again"
        if os.name == "posix" and (
            place.is_symlink() or place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o022
        ):
            raise BackendError(f"{place}: others may have written it, and an engine is code; {rebuild}")
        try:
            expected = json.loads(seal.read_text(encoding="utf-8")) if seal.exists() else {}
        except ValueError:
            expected = None
        if expected != _checksums(place):
            raise BackendError(f"{place}: engines there are not those that were built here; {rebuild}")
        try:
            yield place
        finally:
            found = json.dumps(_checksums(place))
            with replacing(seal) as temporary:
                temporary.write_text(found, encoding="utf-8")


def _checksums(place: Path) -> dict[str, str]:
    ours = {"seal.json", "sealed.lock"}
    files = sorted(path for path in place.iterdir() if path.name not in ours)
    return {path.name: "a link" if path.is_symlink() else sha256(path.read_bytes()) for path in files}


def _record(file: Path, rebuild: str) -> dict[str, Any]:
    for path in (file, file.with_name(PLAN), file.parent):
        if path.is_symlink() or not path.exists():
            raise BackendError(f"{path}: a part of the engine is missing; build it again: {rebuild}")
        if os.name == "posix" and (path.stat().st_uid != os.getuid() or path.stat().st_mode & 0o022):
            raise BackendError(f"{path}: others may have written it, and an engine is code; build your own: {rebuild}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        Target(**record["target"])
        if {"sha256", "bytes", "onnx_sha256", "profiles", "hardware_compatible", "parity"} - record.keys():
            raise ValueError("entries are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{file}: expected the record of an engine ({error}); build it again: {rebuild}") from error
    found: dict[str, Any] = record
    return found


def _differences(record: dict[str, Any], target: Target) -> str:
    built, here = dict(record["target"]), asdict(target)
    ampere = record["hardware_compatible"] and min(float(built["compute_capability"]), _capability(target)) >= 8.0
    ignored = {"gpu", "compute_capability"} if ampere else set()
    return ", ".join(
        f"{entry} {built[entry]}, here {here[entry]}"
        for entry in here
        if entry not in ignored and built[entry] != here[entry]
    )


def _capability(target: Target) -> float:
    return float(target.compute_capability)
