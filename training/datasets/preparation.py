"""A data set file in, a copy that has all that evaluation needs out: shots, user summaries, people's scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.shots import find_shots
from vsum_runtime.runtime.targets import DATA, check_target
from vsum_runtime.training.datasets.annotations import annotations_of, read_annotations
from vsum_runtime.training.datasets.reader import read_dataset
from vsum_runtime.training.datasets.videos import Video

if TYPE_CHECKING:
    import h5py

SHOTS_RECIPE = "KTS, penalty 1, on rows divided by their L2 norm; frame bounds at the picks"
USER_SUMMARY_RECIPE = (
    "0/1 knapsack at 15 % of the frames; the value of a shot is the annotator's mean user_scores in it"
)


def prepare(
    source: str | Path,
    target: str | Path,
    *,
    annotations: str | Path | None = None,
    repair: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write a copy of a data set that has shots and user summaries, and return what was added, one line per field.

    Fields that the source has are kept as they are; what it links to is copied in. Shots are found by KTS on the
    features, each row divided by its L2 norm. A user summary is the knapsack at 15 % over the means of that annotator's
    ``user_scores`` in each shot. The recipes go into attributes, and so does the source's checksum. The same source
    gives the same bytes.

    Parameters
    ----------
    annotations
        TVSum's own table, ``ydata-anno.tsv``, from which ``user_scores`` are added where they are missing
    repair
        as for ``read_dataset``; the repaired shots are written
    overwrite
        replace an HDF5 file that was not written here; never the source or the annotations

    Raises
    ------
    InputError
        an invalid source, annotations of other videos, or a target that is not to be overwritten
    """
    source, target = Path(source), Path(target)
    check_target(target, sources=[source, annotations], mark=DATA, overwrite=overwrite)
    dataset = read_dataset(source, repair=repair)
    table = None if annotations is None else read_annotations(Path(annotations))
    added = list(dataset.repairs)
    with (
        replacing(target) as temporary,
        hdf5.open_file(source, "an HDF5 data set file") as old,
        hdf5.library().File(temporary, "w") as new,
    ):
        new.attrs["written_by"] = DATA
        new.attrs.update(old.attrs)
        new.attrs["source_sha256"] = dataset.source_sha256 or dataset.sha256
        for key, video in dataset.videos.items():
            hdf5.copy(old, key, new, source)
            added += _add_steps(new[key], video)
            shots, scores = video.shots, video.user_scores
            if shots is None and video.features is not None:
                shots = find_shots(video.features, video.picks, video.n_frames)
                _write_shots(new[key], shots)
                new[key].attrs["shots_recipe"] = SHOTS_RECIPE
                added.append(f"{key}/change_points: {len(shots)} shots")
            elif shots is not None and repair:
                _write_shots(new[key], shots)
            if scores is None and table is not None:
                scores = annotations_of(video, table)
                _write(new[key], "user_scores", scores)
                added.append(f"{key}/user_scores: {len(scores)} annotators")
            if video.user_summary is None and scores is not None and shots is not None:
                summaries = user_summaries_from_scores(scores, shots, capacity=video.capacity)
                _write(new[key], "user_summary", summaries.astype(np.uint8))
                new[key].attrs["user_summary_recipe"] = USER_SUMMARY_RECIPE
                added.append(f"{key}/user_summary: {len(summaries)} annotators")
    return added


def user_summaries_from_scores(scores: NDArray[Any], shots: NDArray[np.int64], *, capacity: int) -> NDArray[np.bool_]:
    """Key-shot summaries [U, N] of annotators who scored every frame [U, N]."""
    from vsum_runtime.kernels import knapsack  # numba, which reading alone need not wait for

    lengths = shots[:, 1] - shots[:, 0]
    values = np.add.reduceat(scores.astype(np.float64), shots[:, 0], axis=1) / lengths
    summaries = np.zeros(scores.shape, dtype=np.bool_)
    for summary, value in zip(summaries, values, strict=True):
        for start, end in shots[knapsack.pack(value, lengths, capacity)]:
            summary[start:end] = True
    return summaries


def _add_steps(group: h5py.Group, video: Video) -> list[str]:
    """Write down where the steps lie, as reading understood it, where the source leaves that out."""
    missing = {"n_frames": np.int64(video.n_frames), "picks": video.picks}
    missing = {name: values for name, values in missing.items() if _is_blank(group, name)}
    for name, values in missing.items():
        group.pop(name, None)
        group[name] = values
    return [f"{video.key}/{name}: of {len(video.picks)} steps of {video.n_frames} frames" for name in missing]


def _write_shots(group: h5py.Group, shots: NDArray[np.int64]) -> None:
    for name, values in (("change_points", shots - np.array([0, 1])), ("n_frame_per_seg", shots[:, 1] - shots[:, 0])):
        group.pop(name, None)
        group[name] = values


def _write(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    group.pop(name, None)  # it may be there and blank
    group.create_dataset(name, data=values, compression="gzip")


def _is_blank(group: h5py.Group, name: str) -> bool:
    field = hdf5.field(group, name, group.name)
    return field is None or field.is_blank
