"""The bundle: one directory that holds everything one model needs to summarize videos. This file is its specification.

A bundle of format version 2 is a directory with these files and no others that matter:

``manifest.json``
    UTF-8 JSON, at most 1 MiB, one object:

    ================= ===============================================================================================
    ``format``        the string ``"vsum-bundle"``
    ``version``       the integer 2; a reader refuses versions it does not know
    ``model``         ``architecture`` (name in the model table), ``options`` (what rebuilds it), ``feature_dim`` (D),
                      ``output`` (``"scores"``: one value >= 0 per step; ``"proposals"``: segments with a confidence)
    ``decoder``       only with proposals: what turns them into scores, the fields of ``runtime.proposals.Decoder``
    ``graph``         ``file``, ``precision`` (``"fp32"``, or ``"int8"``: for CPUs only), ``opset``, ``inputs`` and
                      ``outputs``: name -> axes, where a string is a free axis and an integer a fixed one. Inputs are
                      ``features`` [batch, time, D] float32 and ``lengths`` [batch] int64. The output is ``scores``
                      [batch, time] float32, or in this order ``cls``, ``loc`` and, without anchors, ``ctr``
                      (``runtime.proposals``); 0 in padded steps
                      ``memory_bytes`` (optional): bytes that one video of T steps takes on a CPU beside its features,
                      measured by the export, as coefficients of 1, T and T squared
                      ``batch_tokens`` (optional): padded steps worth scoring in one call even on a CPU
                      ``long`` (optional): the same graph with memory that grows more slowly with T, for CPUs: ``file``,
                      ``above_steps`` (longer videos are scored by it), its own ``memory_bytes`` and ``parity``
    ``half``          optional, the same graph in mixed precision for GPUs: ``file``, ``precision`` (``"fp16"``),
                      ``islands`` (the parts left in float32), ``parity`` (measured against the float32 graph)
    ``features``      the recipe that turns frames into features (see ``runtime.recipe.Recipe``), whose ``network``
                      names a file of the bundle; or null: the bundle then scores given features only
    ``example``       ``lengths`` and ``scores`` (a list per video) of the self-test whose features are made by
                      ``example_features``
    ``parity``        what the exporter measured against the original model
    ``training``      data, split, seed, how the epoch was chosen; null where unknown
    ``versions``      package versions of the export
    ``files``         name -> ``{"sha256": hex, "bytes": int}`` for every other file
    ================= ===============================================================================================

``*.onnx``
    The graphs, weights inside.

Version 1 knew no proposals, and is otherwise the same; it is still read.

Readers check sizes and checksums before a byte is interpreted, follow no path out of the directory and unpickle
nothing. ``runtime/manifest.py`` checks the entries. Writers build the directory under a temporary name and exchange it
with an older one in one step, so that a reader finds a whole bundle at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import replacing_folder, sha256
from vsum_runtime.runtime.errors import BundleError
from vsum_runtime.runtime.manifest import check, check_recipe
from vsum_runtime.runtime.proposals import Decoder

FORMAT = "vsum-bundle"
VERSION = 2
_READABLE = (1, 2)
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read and checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["architecture"])

    @property
    def feature_dim(self) -> int:
        return int(self.manifest["model"]["feature_dim"])

    @property
    def graph(self) -> Path:
        return self.path / str(self.manifest["graph"]["file"])

    @property
    def precision(self) -> str:
        """Of the graph: ``"fp32"``, or ``"int8"``."""
        return str(self.manifest["graph"].get("precision", "fp32"))

    @property
    def half(self) -> Path | None:
        """The graph in half precision, where the bundle has one."""
        entry = self.manifest.get("half")
        return None if entry is None else self.path / str(entry["file"])

    @property
    def long(self) -> tuple[Path, int] | None:
        """The graph for long videos and the number of steps above which it is used, where the bundle has one."""
        entry = self.manifest["graph"].get("long")
        return None if entry is None else (self.path / str(entry["file"]), int(entry["above_steps"]))

    @property
    def batch_tokens(self) -> int:
        """Padded steps worth scoring in one call even on a CPU; 1 where one video per call is best."""
        return int(self.manifest["graph"].get("batch_tokens", 1))

    @property
    def memory_polynomial(self) -> list[float] | None:
        """Bytes that a video of T steps takes on a CPU beside its features: coefficients of 1, T, T^2, if measured."""
        polynomial: list[float] | None = self.manifest["graph"].get("memory_bytes")
        return polynomial

    @property
    def long_memory_polynomial(self) -> list[float] | None:
        """The same for the graph for long videos."""
        polynomial: list[float] | None = self.manifest["graph"]["long"].get("memory_bytes")
        return polynomial

    @property
    def recipe(self) -> dict[str, Any] | None:
        recipe: dict[str, Any] | None = self.manifest["features"]
        return recipe

    @property
    def decoder(self) -> Decoder | None:
        """What turns the graph's proposals into scores; None where it gives scores."""
        entry = self.manifest.get("decoder")
        return None if entry is None else Decoder.from_dict(entry)

    @property
    def example_lengths(self) -> list[int]:
        return [int(n) for n in self.manifest["example"]["lengths"]]

    @property
    def example_scores(self) -> list[NDArray[np.float64]]:
        """Scores [T] of each video of the example, in float32 on a CPU."""
        return [np.asarray(row, dtype=np.float64) for row in self.manifest["example"]["scores"]]


def read(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check every part of it.

    Raises
    ------
    BundleError
        not a bundle, a version this code does not read, a missing part, a wrong size or checksum
    """
    root = Path(path)
    while True:
        before = _identity(root)
        try:
            bundle = _read(root)
        except BundleError:
            if _identity(root) == before:
                raise
        else:
            if _identity(root) == before:
                return bundle


def _read(root: Path) -> Bundle:
    manifest = _read_manifest(root)
    for name, entry in manifest["files"].items():
        _check_file(root, name, entry)
    referenced = [manifest["graph"]["file"]]
    parts = (manifest["features"], "network"), (manifest.get("half"), "file"), (manifest["graph"].get("long"), "file")
    referenced += [part[key] for part, key in parts if part is not None]
    for name in referenced:
        if name not in manifest["files"]:
            raise BundleError(f"{root / MANIFEST}: names the part {name!r} without a checksum; export the bundle again")
    check_recipe(manifest, str(root / MANIFEST))
    return Bundle(root, manifest)


def _identity(root: Path) -> tuple[int, ...]:
    """Of the directory that is now at a path: another one once it has been replaced."""
    try:
        status = root.stat()
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def write(path: str | os.PathLike[str], manifest: Mapping[str, Any], files: Mapping[str, Path]) -> Bundle:
    """Write a bundle: whole or not at all; an older bundle at ``path`` is replaced in one step.

    Parameters
    ----------
    path
        directory to make; its parent is made too
    manifest
        everything but ``format``, ``version`` and ``files``, which are filled in here
    files
        name inside the bundle -> file to copy

    Raises
    ------
    BundleError
        ``path`` exists and is not a bundle, or the disk refuses
    """
    target = Path(path).resolve()
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target}: exists and is not a bundle, so it is not replaced; choose another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(target) as temporary:
            entries = {}
            for name, source in files.items():
                shutil.copyfile(source, temporary / name)
                entries[name] = {"sha256": sha256(temporary / name), "bytes": (temporary / name).stat().st_size}
            whole = {"format": FORMAT, "version": VERSION, **manifest, "files": entries}
            (temporary / MANIFEST).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{target}: could not be written: {error.strerror}; nothing was left behind") from error
    return read(target)


def example_features(feature_dim: int, lengths: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The features every bundle's self-test runs on: unit-norm rows of a fixed formula, zero in the padding.

    Returns
    -------
    float32 [B, T, D], int64 [B]
    """
    b, t, d = np.ogrid[: len(lengths), : max(lengths), :feature_dim]
    rows = 1.0 + np.cos(0.37 * (t // 3 + 1) * (d + 1) + b + 0.11 * t)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    rows *= t < np.reshape(lengths, (-1, 1, 1))
    return rows.astype(np.float32), np.asarray(lengths, dtype=np.int64)


def _read_manifest(root: Path) -> dict[str, Any]:
    file = root / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{root}: expected a bundle directory with a {MANIFEST}, found none; make one with vsum-export"
        )
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file}: expected at most {MAX_MANIFEST_BYTES} bytes, got {file.stat().st_size}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(f"{file}: expected JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{file}: expected format {FORMAT!r}; this is not a bundle of this project")
    if manifest.get("version") not in _READABLE:
        readable = " or ".join(map(str, _READABLE))
        raise BundleError(f"{file}: expected version {readable}, got {manifest.get('version')!r}; upgrade vsum-runtime")
    check(manifest, str(file))
    return manifest


def _check_file(root: Path, name: str, entry: Any) -> None:
    if name in ("", ".", "..", MANIFEST) or Path(name).name != name or "\\" in name or not name.isprintable():
        raise BundleError(f"{root}: the manifest names the part {name!r}; a part is a plain file name")
    file = root / name
    if len(os.fsencode(name)) > 255 or not file.is_file() or file.is_symlink():
        raise BundleError(f"{root}: the part {name!r} is missing; export the bundle again")
    if not isinstance(entry, dict) or file.stat().st_size != entry.get("bytes"):
        raise BundleError(f"{file}: expected {entry!r}, got {file.stat().st_size} bytes; the file was cut or altered")
    try:
        digest = sha256(file)
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
    if digest != entry.get("sha256"):
        raise BundleError(f"{file}: expected sha256 {entry.get('sha256')}, got {digest}; the file was altered")
