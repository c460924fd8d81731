"""Features on disk: the field's standard HDF5 file, written from videos, and a cache that saves decoding twice.

The standard file has a group ``video_1``, ``video_2``, ... for each video with ``features`` [T, D], ``picks`` [T],
``n_frames``, ``n_steps``, ``change_points`` [S, 2] (first and last frame, both inclusive), ``n_frame_per_seg`` [S] and
``video_name``. Attributes of the group, which other tools ignore, say how the features were made: ``recipe`` (JSON),
``recipe_sha256`` (features compare when these agree), ``source_sha256`` and ``fps``; the file's ``feature_recipe``
names it for training. People's annotations are not in it.

The cache is a folder with one HDF5 file for each video and recipe, named by the checksums of both; a checksum inside
tells a damaged one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.extractor import Extracted
from vsum_runtime.runtime.recipe import Recipe
from vsum_runtime.runtime.targets import DATA

_FIELDS = ("features", "picks", "frame_times_s", "cuts", "transitions")


def write_standard(
    out: Path, videos: Iterable[tuple[Path, str, Extracted, NDArray[np.int64]]], recipe: Recipe
) -> list[str]:
    """Write a standard file, whole or not at all.

    Parameters
    ----------
    out
        file to write
    videos
        for each its path, the sha256 of its content, its features and its shots, half-open int64 [S, 2]

    Returns
    -------
    list of str
        names of the groups
    """
    names: list[str] = []
    with replacing(out) as temporary, hdf5.library().File(temporary, "w") as file:
        file.attrs["written_by"] = DATA
        file.attrs["feature_recipe"] = f"{recipe.name} {recipe.digest}"
        for path, digest, extracted, shots in videos:
            names.append(f"video_{len(names) + 1}")
            group = file.create_group(names[-1])
            group.create_dataset("features", data=extracted.features, compression="gzip", compression_opts=1)
            group["picks"] = extracted.picks
            group["n_steps"] = len(extracted.picks)
            group["n_frames"] = extracted.n_frames
            group["change_points"] = shots - [0, 1]
            group["n_frame_per_seg"] = shots[:, 1] - shots[:, 0]
            group["video_name"] = path.name.encode("utf-8", "surrogateescape")
            group.attrs["recipe"] = json.dumps(recipe.to_dict(), sort_keys=True)
            group.attrs["recipe_sha256"] = recipe.digest
            group.attrs["source_sha256"] = digest
            group.attrs["fps"] = extracted.n_frames / float(extracted.frame_times_s[-1])
    return names


class Cache:
    """A folder of features that were extracted before."""

    def __init__(self, folder: Path) -> None:
        hdf5.library()
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: expected a folder for the cache: {error.strerror}; name another") from error

    def get(self, video_sha256: str, recipe: Recipe) -> Extracted | None:
        """What was put there; None where nothing was, or where the file is damaged or of another form."""
        file = self._file(video_sha256, recipe)
        if not file.exists():
            return None
        try:
            with hdf5.open_file(file, "cached features") as stored:
                fields = {name: hdf5.field(stored, name, file.name) for name in _FIELDS}
                arrays = {name: field.read() for name, field in fields.items() if field is not None}
                attributes = hdf5.attributes(stored, file)
            if attributes.get("content_sha256") != _digest(arrays, attributes["warnings"]):
                return None
            warnings = tuple(json.loads(attributes["warnings"]))
            features, picks, times, cuts, transitions = (arrays[name] for name in _FIELDS)
        except (InputError, KeyError, ValueError):
            return None
        if features.shape != (len(picks), recipe.feature_dim) or features.dtype != np.float32 or len(times) < 2:
            return None
        return Extracted(features, picks, len(times) - 1, times, warnings, cuts, transitions)

    def put(self, video_sha256: str, recipe: Recipe, extracted: Extracted) -> None:
        arrays = {name: getattr(extracted, name) for name in _FIELDS}
        warnings = json.dumps(extracted.warnings)
        with replacing(self._file(video_sha256, recipe)) as temporary, hdf5.library().File(temporary, "w") as file:
            for name, values in arrays.items():
                file[name] = values
            file.attrs["warnings"] = warnings
            file.attrs["content_sha256"] = _digest(arrays, warnings)

    def _file(self, video_sha256: str, recipe: Recipe) -> Path:
        return self.folder / f"{video_sha256[:32]}-{recipe.digest[:32]}.h5"


def _digest(arrays: Mapping[str, NDArray[Any]], warnings: str) -> str:
    """Checksum of what a cached file says: a damaged one may well be read without an error, as other numbers."""
    digest = hashlib.sha256(warnings.encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()
