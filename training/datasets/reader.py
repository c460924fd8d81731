"""HDF5 data set files -> checked arrays in our conventions.

The layout is the field's own (``eccv16_dataset_*_google_pool5.h5`` and its relatives): one group per video with
``features [T, D]``, ``gtscore [T]``, ``picks [T]``, ``n_frames`` and, where known, ``change_points [S, 2]``,
``user_summary [U, N]``, ``user_scores [U, N]``, ``video_name``. Most files store shots with inclusive ends, some with
half-open ones; they become half-open here, as everywhere else. Fields of other names are ignored; one that is stored as
empty, as MATLAB does, counts as absent.

Files of OVP, YouTube and Mr.HiSum leave out ``n_frames`` or ``picks``. N is then the length of the fields per frame
(``user_summary``, ``user_scores``, Mr.HiSum's ``gt_summary [N]``), else the end of the last shot, else one frame less
than T steps of 15; the picks are every frame where N = T, else every 15th.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.atomic import sha256
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets.videos import Dataset, Video, ordered

if TYPE_CHECKING:
    import h5py

_STRIDE = 15  # frames from pick to pick in all files of the field but Mr.HiSum's
_MOST_FRAMES = 1 << 28  # a hundred days of film; what claims more is damaged


def read_dataset(path: str | Path, *, features: str = "features", repair: bool = False) -> Dataset:
    """Read and check a data set file.

    Parameters
    ----------
    path
        HDF5 file in the standard layout
    features
        name of the stored feature set; files with several exist
    repair
        recompute ``n_frame_per_seg``, end the last shot at the last frame, and list each change in ``Dataset.repairs``,
        instead of refusing the file

    Raises
    ------
    InputError
        not an HDF5 file, a damaged one, or a video whose fields contradict each other (the message names video and
        field)

    Notes
    -----
    Any integer type is accepted, and floats that hold integers. ``n_frames`` may be a scalar or have one element.
    A last pick equal to N occurs in the wild; it covers no frame. Links into other files are followed.
    """
    path = Path(path)
    repairs: list[str] = []
    with hdf5.open_file(path, "an HDF5 data set file (also looked for in the folder VSUM_DATA)") as file:
        groups = hdf5.groups(file, path)
        if not groups:
            raise InputError(f"{path}: expected one HDF5 group per video, found none")
        videos = {
            key: _Group(groups[key], key, path.name).video(features, repairs if repair else None)
            for key in ordered(groups)
        }
        attributes = hdf5.attributes(file, path)
    recipe = attributes.get("feature_recipe", attributes.get("backbone", ""))
    return Dataset(path.stem, sha256(path), attributes.get("source_sha256", ""), recipe, videos, tuple(repairs))


class _Group:
    """One video as it is stored; lengths are compared before anything long is read."""

    def __init__(self, group: h5py.Group, key: str, file_name: str) -> None:
        self._group, self._key, self._place = group, key, f"{file_name}: {key}"

    def video(self, features_name: str, repairs: list[str] | None) -> Video:
        stored_shots = self._integers("change_points", (None, 2), "integers [S, 2], S >= 1")
        stored_picks = self._picks()
        n_steps = next((shape[0] for shape in map(self._shape, (features_name, "gtscore")) if shape), None)
        n_frames = self._n_frames(stored_shots, stored_picks, n_steps)
        picks = self._default_picks(n_frames, n_steps) if stored_picks is None else stored_picks
        if picks[-1] > n_frames:
            raise self._invalid("picks", f"strictly increasing frames from 0 to at most {n_frames - 1}", picks)
        counted = self._integers("n_steps", ())
        if counted is not None and int(counted) != len(picks):
            raise self._invalid("n_steps", f"the number of picks, {len(picks)}", counted)
        user_summary = self._per_frame("user_summary", n_frames)
        if user_summary is None and self._shape("gt_summary") == (n_frames,):
            user_summary = self._per_frame("gt_summary", n_frames)
        user_scores = self._per_frame("user_scores", n_frames)
        if user_summary is not None and user_scores is not None and len(user_summary) != len(user_scores):
            raise self._invalid("user_scores", f"{len(user_summary)} annotators as in user_summary", user_scores)
        return Video(
            key=self._key,
            n_frames=n_frames,
            picks=picks,
            features=self._floats(features_name, (len(picks), None), f"numbers [{len(picks)}, D]"),
            gtscore=self._floats("gtscore", (len(picks),), f"numbers [{len(picks)}]"),
            shots=None if stored_shots is None else self._tiled(stored_shots, n_frames, repairs),
            user_summary=None if user_summary is None else user_summary > 0,
            user_scores=user_scores,
            title=hdf5.text(self._group, "video_name", self._place),
        )

    def _n_frames(self, shots: NDArray[np.int64] | None, picks: NDArray[np.int64] | None, n_steps: int | None) -> int:
        stored = self._integers("n_frames", (), "one positive integer")
        if stored is not None:
            if not 1 <= stored <= _MOST_FRAMES:
                raise self._invalid("n_frames", f"one positive integer up to {_MOST_FRAMES}", stored)
            return int(stored)
        per_frame = [self._shape(name)[-1:] for name in ("user_summary", "user_scores", "gt_summary")]
        from_shots = () if shots is None else (int(_half_open(shots)[-1, 1]),)
        for n_frames in (n for lengths in (*per_frame, from_shots) for n in lengths):
            if 1 <= n_frames <= _MOST_FRAMES:
                return n_frames
        if picks is not None and picks[-1] < _MOST_FRAMES:
            return int(picks[-1]) + 1
        if n_steps is None:
            raise self._invalid("n_frames", "one positive integer", None)
        return _STRIDE * n_steps - 1

    def _picks(self) -> NDArray[np.int64] | None:
        picks = self._integers("picks", (None,), "integers [T], T >= 1")
        if picks is not None and (picks[0] != 0 or (picks[1:] <= picks[:-1]).any()):
            raise self._invalid("picks", "strictly increasing frames from 0", picks)
        return picks

    def _default_picks(self, n_frames: int, n_steps: int | None) -> NDArray[np.int64]:
        for stride in (1, _STRIDE):
            if n_steps == -(-n_frames // stride):
                return np.arange(0, n_frames, stride, dtype=np.int64)
        raise self._invalid(
            "picks",
            f"the frame of each step: {n_steps} steps are not every, nor every 15th, of {n_frames} frames",
            None,
        )

    def _tiled(self, stored: NDArray[np.int64], n_frames: int, repairs: list[str] | None) -> NDArray[np.int64]:
        shots = _half_open(stored, n_frames)
        place = f"{self._key}/change_points"
        if repairs is not None and shots[-1, 1] != n_frames and shots[-1, 0] < n_frames:
            repairs.append(f"{place}: last shot ended at {shots[-1, 1] - 1}, now {n_frames - 1}")
            shots[-1, 1] = n_frames
        if shots[0, 0] != 0 or shots[-1, 1] != n_frames or np.any(shots[1:, 0] != shots[:-1, 1]):
            raise self._invalid("change_points", f"inclusive shots that tile 0 .. {n_frames - 1} without gaps", stored)
        if np.any(shots[:, 1] <= shots[:, 0]):
            raise self._invalid("change_points", "shots of at least one frame", stored)
        lengths = shots[:, 1] - shots[:, 0]
        counted = self._integers("n_frame_per_seg", (None,), "integers [S]")
        if counted is not None and not np.array_equal(counted, lengths):
            if repairs is None:
                raise self._invalid("n_frame_per_seg", f"the lengths of the shots, summing to {n_frames}", counted)
            repairs.append(f"{self._key}/n_frame_per_seg: recomputed from the shots")
        return shots

    def _integers(
        self, name: str, shape: tuple[int | None, ...], expected: str = "one integer"
    ) -> NDArray[np.int64] | None:
        """Integers of any width, or floats that hold integers."""
        values = self._numbers(name, shape, expected)
        if values is None:
            return None
        with np.errstate(invalid="ignore"):
            if (values != np.trunc(values)).any() or not (np.abs(values.astype(np.float64)) < 2.0**63).all():
                raise self._invalid(name, expected, values)
        return values.astype(np.int64)

    def _floats(self, name: str, shape: tuple[int | None, ...], expected: str) -> NDArray[np.float32] | None:
        values = self._numbers(name, shape, f"{expected}, one row per pick")
        if values is None:
            return None
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise self._invalid(name, "finite numbers", values)
        return values

    def _per_frame(self, name: str, n_frames: int) -> NDArray[Any] | None:
        """[U, N]; one annotator may be stored as [N]."""
        shape = (n_frames,) if len(self._shape(name)) == 1 else (None, n_frames)
        values = self._numbers(name, shape, f"numbers [U, {n_frames}], U >= 1", kinds="biuf")
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._invalid(name, "finite numbers", values)
        return values if values is None else np.atleast_2d(values)

    def _numbers(
        self, name: str, shape: tuple[int | None, ...], expected: str, kinds: str = "iuf"
    ) -> NDArray[Any] | None:
        """A field of numbers, read once its type and shape are known to be right.

        None as a length stands for any but 0; a scalar may have axes of one element.
        """
        stored = self._field(name)
        if stored is None:
            return None
        lengths = () if shape == () and set(stored.shape) <= {1} else stored.shape
        fits = len(lengths) == len(shape) and all(
            have > 0 if wanted is None else have == wanted for have, wanted in zip(lengths, shape, strict=True)
        )
        if not fits or stored.dtype.kind not in kinds:
            raise self._invalid(name, expected, stored)
        return stored.read().reshape(lengths)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a field, or () where there is none."""
        stored = self._field(name)
        return () if stored is None else stored.shape

    def _field(self, name: str) -> hdf5.Field | None:
        stored = hdf5.field(self._group, name, self._place)
        return None if stored is None or stored.is_blank else stored

    def _invalid(self, name: str, expected: str, got: hdf5.Field | NDArray[Any] | None) -> InputError:
        place = f"{self._place}/{name}"
        if got is None:
            return InputError(f"{place}: expected {expected}, but it is missing")
        values = ""
        if isinstance(got, np.ndarray):
            values = " " + np.array2string(got, threshold=6, edgeitems=3).replace("\n", "")
        return InputError(f"{place}: expected {expected}, got {got.dtype} {list(got.shape)}{values}")


def _half_open(stored: NDArray[np.int64], n_frames: int | None = None) -> NDArray[np.int64]:
    """Shots with ends one past the last frame: as they are if each begins where the one before ends, or the only one
    ends at N; else, and as a rule, the stored end is the last frame itself."""
    touching = bool((stored[1:, 0] == stored[:-1, 1]).all()) and (len(stored) > 1 or stored[-1, 1] == n_frames)
    return stored.copy() if touching else stored + np.array([0, 1])
