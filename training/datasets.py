"""HDF5 data sets and split files -> checked arrays in our conventions.

The layout is the field's own (``eccv16_dataset_*_google_pool5.h5`` and its relatives): one group per video with
``features [T, D]``, ``gtscore [T]``, ``picks [T]``, ``n_frames`` and, where known, ``change_points [S, 2]``,
``user_summary [U, N]``, ``user_scores [U, N]``. Files store shots with inclusive ends; here they become half-open as
they are read, and nobody after this file thinks about it. Datasets of other names are ignored.

``vsum-datasets prepare IN.h5 OUT.h5`` writes a copy that also has shots and user summaries, which
evaluation needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels import knapsack
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.runtime.shots import find_shots

BUDGET_PERCENT = 15
"""Length of a summary in percent of the video: the field's one convention."""


@dataclass(frozen=True)
class Video:
    """One video's features and labels. What the file does not have is None."""

    key: str
    """Name of the group: ``video_3``."""
    n_frames: int
    """N, frames of the source video."""
    picks: NDArray[np.int64]
    """[T] source frame of each step, strictly increasing from 0."""
    features: NDArray[np.float32] | None = None
    """[T, D] as stored, not normalised."""
    gtscore: NDArray[np.float32] | None = None
    """[T] importance per step, the regression target."""
    shots: NDArray[np.int64] | None = None
    """[S, 2] half-open frame ranges that tile 0 .. N."""
    user_summary: NDArray[np.bool_] | None = None
    """[U, N] the frames each annotator would keep."""
    user_scores: NDArray[Any] | None = None
    """[U, N] importance each annotator gave to each frame, in the file's own type."""

    @property
    def capacity(self) -> int:
        """Frames that a summary may hold."""
        return BUDGET_PERCENT * self.n_frames // 100


_ADVICE = {
    "shots": "run: vsum-datasets prepare IN.h5 OUT.h5",
    "user_summary": "run: vsum-datasets prepare IN.h5 OUT.h5",
    "user_scores": "run: vsum-datasets prepare IN.h5 OUT.h5 --annotations ydata-anno.tsv",
}
_ELSE = "choose a file that has it"


@dataclass(frozen=True)
class Dataset:
    """All videos of one file, in the order of their numbers."""

    name: str
    """File name without its suffix."""
    sha256: str
    """Of the file's bytes."""
    source_sha256: str
    """Of the file that ``prepare`` copied; empty for other files."""
    recipe: str
    """How the features were made, in the file's own words; empty where it does not say."""
    videos: dict[str, Video]
    repairs: tuple[str, ...] = ()
    """What ``repair=True`` changed, one line per change."""

    def select(self, keys: Sequence[str], *, need: Sequence[str] = ()) -> list[Video]:
        """Videos by key; ``need`` names the fields that the caller cannot do without."""
        absent = [key for key in keys if key not in self.videos]
        if absent:
            raise InputError(f"{self.name}: no video {', '.join(absent)}; it has {_shortened(list(self.videos))}")
        videos = [self.videos[key] for key in keys]
        for video in videos:
            for name in need:
                if getattr(video, name) is None:
                    stored = "change_points" if name == "shots" else name
                    raise InputError(f"{self.name}: {video.key}/{stored} is missing; {_ADVICE.get(name, _ELSE)}")
        return videos


@dataclass(frozen=True)
class Split:
    """One division of a data set into training and test videos."""

    number: int
    """Position in the file, from 1."""
    train_keys: tuple[str, ...]
    test_keys: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """A split file."""

    name: str
    """File name."""
    sha256: str
    """Of the file's bytes."""
    splits: tuple[Split, ...] = field(repr=False)

    def select(self, numbers: Sequence[str]) -> list[Split]:
        """Splits by number, ``["1", "3"]`` or ``["1,3"]``, or all of them, ``["all"]``."""
        numbers = [number.strip() for text in numbers for number in text.split(",")]
        if numbers == ["all"]:
            return list(self.splits)
        chosen = []
        for number in numbers:
            if not number.isdecimal() or not 1 <= int(number) <= len(self.splits):
                raise InputError(f"split: expected 1 .. {len(self.splits)} or 'all' for {self.name}, got {number!r}")
            chosen.append(self.splits[int(number) - 1])
        return chosen


def find_file(path: str | Path) -> Path:
    """The path itself, or the same path inside the folder that VSUM_DATA names."""
    path = Path(path)
    folder = os.environ.get("VSUM_DATA")
    if path.exists() or folder is None:
        return path
    return Path(folder) / path


def read_dataset(path: str | Path, *, features: str = "features", repair: bool = False) -> Dataset:
    """Read and check a data set file.

    Parameters
    ----------
    path : HDF5 file in the standard layout
    features : name of the stored feature set; files with several exist
    repair : recompute ``n_frame_per_seg``, end the last shot at the last frame, and list each change in
        ``Dataset.repairs``, instead of refusing the file

    Raises
    ------
    InputError : not an HDF5 file, or a video whose fields contradict each other (the message names video and field)

    Notes
    -----
    Any integer type is accepted, and floats that hold integers. ``n_frames`` may be a scalar or have one element.
    A last pick equal to N occurs in the wild; it covers no frame.
    """
    path = Path(path)
    repairs: list[str] = []
    with _open(path) as file:
        groups = {key: item for key, item in file.items() if isinstance(item, h5py.Group)}
        if not groups:
            raise InputError(f"{path}: expected one HDF5 group per video, found none")
        videos = {key: _read_video(groups[key], features, repairs if repair else None) for key in _ordered(groups)}
        attributes = {name: str(value) for name, value in file.attrs.items()}
    recipe = attributes.get("feature_recipe", attributes.get("backbone", ""))
    return Dataset(path.stem, _sha256(path), attributes.get("source_sha256", ""), recipe, videos, tuple(repairs))


def read_splits(path: str | Path, dataset: Dataset) -> Splits:
    """Read a split file, checked against the data set it divides.

    Three forms are known: a JSON list of ``{"train_keys": [...], "test_keys": [...]}``; the same with keys such as
    ``eccv16_dataset_tvsum_google_pool5/video_3``, where the last path element is the video; and text lines
    ``TVSum/split0/train keys/test keys`` with keys joined by commas, of which the lines of this data set are used.

    Raises
    ------
    InputError : another form, an unknown or repeated key, or a video in both parts of a split
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a split file (JSON or text), cannot read it: {error}") from None
    entries = (
        _entries_from_json(path, content)
        if content.lstrip()[:1] in ("[", "{")
        else _entries_from_text(content, dataset)
    )
    if not entries:
        raise InputError(f"{path}: no splits for the data set {dataset.name}")
    splits = []
    for number, entry in enumerate(entries, start=1):
        train, test = (tuple(_video_key(key, dataset, path) for key in keys) for keys in entry)
        for part, keys in (("train_keys", train), ("test_keys", test)):
            if len(set(keys)) != len(keys):
                raise InputError(f"{path}: split {number}: {part} repeats a video")
        if both := set(train) & set(test):
            raise InputError(f"{path}: split {number}: {', '.join(_ordered(both))} in both train_keys and test_keys")
        splits.append(Split(number, train, test))
    return Splits(path.name, _sha256(path), tuple(splits))


def prepare(
    source: str | Path, target: str | Path, *, annotations: str | Path | None = None, repair: bool = False
) -> list[str]:
    """Write a copy of a data set that has shots and user summaries, and return what was added, one line per field.

    Fields that the source has are kept as they are. Shots are found by KTS on the features, each row divided by its L2
    norm. A user summary is the knapsack at 15 % over the means of that annotator's ``user_scores`` in each shot. The
    recipes go into attributes, and so does the source's checksum. The same source gives the same bytes.

    Parameters
    ----------
    annotations : TVSum's own table, ``ydata-anno.tsv``, from which ``user_scores`` are added where they are missing
    repair : as for ``read_dataset``; the repaired shots are written

    Raises
    ------
    InputError : an invalid source, annotations of other videos, or a target that is the source itself
    """
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"prepare: the target {target} is the source itself; name another file")
    dataset = read_dataset(source, repair=repair)
    table = None if annotations is None else _read_annotations(Path(annotations))
    added = list(dataset.repairs)
    with replacing(target) as temporary, h5py.File(source, "r") as old, h5py.File(temporary, "w") as new:
        new.attrs.update(old.attrs)
        new.attrs["source_sha256"] = dataset.source_sha256 or dataset.sha256
        for key, video in dataset.videos.items():
            old.copy(key, new)
            shots, scores = video.shots, video.user_scores
            if shots is None and video.features is not None:
                shots = find_shots(video.features, video.picks, video.n_frames)
                _write_shots(new[key], shots)
                new[key].attrs["shots_recipe"] = SHOTS_RECIPE
                added.append(f"{key}/change_points: {len(shots)} shots")
            elif shots is not None and repair:
                _write_shots(new[key], shots)
            if scores is None and table is not None:
                scores = _annotations_of(video, table)
                new[key].create_dataset("user_scores", data=scores, compression="gzip")
                added.append(f"{key}/user_scores: {len(scores)} annotators")
            if video.user_summary is None and scores is not None and shots is not None:
                summaries = user_summaries_from_scores(scores, shots, capacity=video.capacity)
                new[key].create_dataset("user_summary", data=summaries.astype(np.uint8), compression="gzip")
                new[key].attrs["user_summary_recipe"] = USER_SUMMARY_RECIPE
                added.append(f"{key}/user_summary: {len(summaries)} annotators")
    return added


SHOTS_RECIPE = "KTS, penalty 1, on rows divided by their L2 norm; frame bounds at the picks"
USER_SUMMARY_RECIPE = (
    "0/1 knapsack at 15 % of the frames; the value of a shot is the annotator's mean user_scores in it"
)


def user_summaries_from_scores(scores: NDArray[Any], shots: NDArray[np.int64], *, capacity: int) -> NDArray[np.bool_]:
    """Key-shot summaries [U, N] of annotators who scored every frame [U, N]."""
    lengths = shots[:, 1] - shots[:, 0]
    values = np.add.reduceat(scores.astype(np.float64), shots[:, 0], axis=1) / lengths
    summaries = np.zeros(scores.shape, dtype=np.bool_)
    for summary, value in zip(summaries, values, strict=True):
        for start, end in shots[knapsack.pack(value, lengths, capacity)]:
            summary[start:end] = True
    return summaries


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by max(their L2 norm, 1e-12): what ``feature_norm = "l2"`` means everywhere."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, 1e-12), dtype=np.float32)


def importance_at_picks(video: Video) -> NDArray[np.float64]:
    """What scores are ranked against: every annotator's importance at the picks [U, T], or else gtscore [1, T]."""
    if video.user_scores is None:
        assert video.gtscore is not None
        return video.gtscore[None].astype(np.float64)
    return video.user_scores[:, np.minimum(video.picks, video.n_frames - 1)].astype(np.float64)


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        told = error if path.exists() else "there is no such file; give its path, or its folder in VSUM_DATA"
        raise InputError(f"{path}: expected an HDF5 data set file, cannot open it: {told}") from None


def _read_video(group: h5py.Group, features_name: str, repairs: list[str] | None) -> Video:
    key = group.name.rsplit("/", 1)[-1]
    n_frames = _integers(group, "n_frames")
    if n_frames is None or n_frames.size != 1 or n_frames.reshape(-1)[0] < 1:
        raise _invalid(group, "n_frames", "one positive integer", n_frames)
    n = int(n_frames.reshape(-1)[0])
    picks = _integers(group, "picks")
    if picks is None or picks.ndim != 1 or len(picks) == 0:
        raise _invalid(group, "picks", "integers [T], T >= 1", picks)
    if picks[0] != 0 or np.any(np.diff(picks) <= 0) or picks[-1] > n:
        raise _invalid(group, "picks", f"strictly increasing frames from 0 to at most {n - 1}", picks)
    steps = _integers(group, "n_steps")
    if steps is not None and (steps.size != 1 or int(steps.reshape(-1)[0]) != len(picks)):
        raise _invalid(group, "n_steps", f"the number of picks, {len(picks)}", steps)

    features = _floats(group, features_name, ndim=2, length=len(picks))
    gtscore = _floats(group, "gtscore", ndim=1, length=len(picks))
    user_summary = _per_frame(group, "user_summary", n)
    user_scores = _per_frame(group, "user_scores", n)
    if user_summary is not None and user_scores is not None and len(user_summary) != len(user_scores):
        raise _invalid(group, "user_scores", f"{len(user_summary)} annotators as in user_summary", user_scores)
    return Video(
        key=key,
        n_frames=n,
        picks=picks,
        features=features,
        gtscore=gtscore,
        shots=_read_shots(group, n, repairs),
        user_summary=None if user_summary is None else user_summary > 0,
        user_scores=user_scores,
    )


def _read_shots(group: h5py.Group, n_frames: int, repairs: list[str] | None) -> NDArray[np.int64] | None:
    inclusive = _integers(group, "change_points")
    if inclusive is None:
        return None
    if inclusive.ndim != 2 or inclusive.shape[1] != 2 or len(inclusive) == 0:
        raise _invalid(group, "change_points", "integers [S, 2], S >= 1", inclusive)
    shots = inclusive + np.array([0, 1])
    if repairs is not None and shots[-1, 1] != n_frames and shots[-1, 0] < n_frames:
        repairs.append(f"{group.name[1:]}/change_points: last shot ended at {shots[-1, 1] - 1}, now {n_frames - 1}")
        shots[-1, 1] = n_frames
    if shots[0, 0] != 0 or shots[-1, 1] != n_frames or np.any(shots[1:, 0] != shots[:-1, 1]):
        raise _invalid(group, "change_points", f"inclusive shots that tile 0 .. {n_frames - 1} without gaps", inclusive)
    if np.any(shots[:, 1] <= shots[:, 0]):
        raise _invalid(group, "change_points", "shots of at least one frame", inclusive)
    lengths = shots[:, 1] - shots[:, 0]
    stored = _integers(group, "n_frame_per_seg")
    if stored is not None and not np.array_equal(stored, lengths):
        if repairs is None:
            raise _invalid(group, "n_frame_per_seg", f"the lengths of the shots, summing to {n_frames}", stored)
        repairs.append(f"{group.name[1:]}/n_frame_per_seg: recomputed from the shots")
    return shots


def _integers(group: h5py.Group, name: str) -> NDArray[np.int64] | None:
    if name not in group:
        return None
    values = np.asarray(group[name][()])
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and not np.array_equal(values, np.trunc(values))):
        raise _invalid(group, name, "integers", values)
    return values.astype(np.int64)


def _floats(group: h5py.Group, name: str, *, ndim: int, length: int) -> NDArray[np.float32] | None:
    if name not in group:
        return None
    values = np.asarray(group[name][()])
    if values.dtype.kind not in "iuf" or values.ndim != ndim or len(values) != length:
        raise _invalid(group, name, f"numbers [{length}{', D' if ndim == 2 else ''}], one row per pick", values)
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise _invalid(group, name, "finite numbers", values)
    return values


def _per_frame(group: h5py.Group, name: str, n_frames: int) -> NDArray[Any] | None:
    if name not in group:
        return None
    values = np.asarray(group[name][()])
    if values.dtype.kind not in "biuf" or values.ndim != 2 or len(values) == 0 or values.shape[1] != n_frames:
        raise _invalid(group, name, f"numbers [U, {n_frames}], U >= 1", values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _invalid(group, name, "finite numbers", values)
    return values


def _invalid(group: h5py.Group, name: str, expected: str, got: NDArray[Any] | None) -> InputError:
    place = f"{Path(group.file.filename).name}: {group.name[1:]}/{name}"
    if got is None:
        return InputError(f"{place}: expected {expected}, but it is missing")
    values = np.array2string(got, threshold=6, edgeitems=3).replace("\n", "")
    return InputError(f"{place}: expected {expected}, got {got.dtype} {list(got.shape)} {values}")


def _entries_from_json(path: Path, content: str) -> list[tuple[Sequence[str], Sequence[str]]]:
    try:
        entries = json.loads(content)
        pairs = [(entry["train_keys"], entry["test_keys"]) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a JSON list of {{train_keys, test_keys}}, got: {error!r}") from None
    if not all(isinstance(key, str) for pair in pairs for keys in pair for key in keys):
        raise InputError(f"{path}: expected keys that are strings such as 'video_3'")
    return pairs


def _entries_from_text(content: str, dataset: Dataset) -> list[tuple[Sequence[str], Sequence[str]]]:
    entries: list[tuple[Sequence[str], Sequence[str]]] = []
    for line in content.splitlines():
        parts = [part.strip() for part in line.split("/")]
        if len(parts) == 4 and parts[0].lower() in dataset.name.lower():
            entries.append((parts[2].split(","), parts[3].split(",")))
    return entries


def _video_key(key: str, dataset: Dataset, path: Path) -> str:
    """The video of a split's key: its last path element, provided that what stands before names this data set."""
    *before, video = key.strip().split("/")
    named = re.search("summe|tvsum|ovp|youtube", "/".join(before).lower())
    if named and named.group() not in dataset.name.lower():
        raise InputError(
            f"{path}: {key} belongs to another data set than {dataset.name}; use the canonical split file of one set"
        )
    if video not in dataset.videos:
        raise InputError(f"{path}: {key} is not in {dataset.name}, which has {_shortened(list(dataset.videos))}")
    return video


def _write_shots(group: h5py.Group, shots: NDArray[np.int64]) -> None:
    for name, values in (("change_points", shots - np.array([0, 1])), ("n_frame_per_seg", shots[:, 1] - shots[:, 0])):
        group.pop(name, None)
        group[name] = values


def _read_annotations(path: Path) -> dict[str, NDArray[np.uint8]]:
    """TVSum's table: a line per annotator with title, category and the importance of each frame; videos in order."""
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            title, _, importance = line.split("\t")
            rows.setdefault(title, []).append(np.array(importance.split(","), dtype=np.uint8))
        return {f"video_{number}": np.stack(users) for number, users in enumerate(rows.values(), start=1)}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected lines of title, category and importance per frame, got: {error}") from None


def _annotations_of(video: Video, table: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    scores = table.get(video.key, np.empty((0, 0), dtype=np.uint8))
    n_users = len(scores) if video.user_summary is None else len(video.user_summary)
    if scores.shape != (n_users, video.n_frames) or n_users == 0:
        raise InputError(
            f"annotations: expected {n_users or 'some'} annotators of {video.n_frames} frames for {video.key}, got "
            f"{list(scores.shape)}; give the table of the same data set"
        )
    return scores


def _ordered(keys: Sequence[str] | set[str] | dict[str, Any]) -> list[str]:
    """Keys with video_2 before video_10."""
    return sorted(keys, key=lambda key: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)])


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys) if len(keys) <= 4 else f"{keys[0]}, {keys[1]}, ... {keys[-1]} ({len(keys)} videos)"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The door of ``vsum-datasets``."""
    parser = argparse.ArgumentParser(prog="vsum-datasets", description="Data set files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "prepare",
        help="write a copy with shots and user summaries",
        description="Write a copy of a data set that also has change_points and user_summary.",
        epilog="example: vsum-datasets prepare tvsum_efflite0.h5 tvsum_efflite0_kts.h5",
    )
    command.add_argument("source", metavar="IN.h5", type=find_file)
    command.add_argument("target", metavar="OUT.h5", type=Path)
    command.add_argument(
        "--annotations", metavar="TSV", type=find_file, help="ydata-anno.tsv of TVSum: adds user_scores"
    )
    command.add_argument("--repair", action="store_true", help="mend shots that do not reach the last frame")
    arguments = parser.parse_args(argv)
    try:
        added = prepare(arguments.source, arguments.target, annotations=arguments.annotations, repair=arguments.repair)
    except VsumError as error:
        print(f"vsum-datasets: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print("\n".join([*added, f"wrote {arguments.target}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
