"""A data set in memory: videos with features and labels, in our conventions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError

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
    title: str = ""
    """What the file calls the video, ``video_name``: by it tables of annotations are joined."""

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
            raise InputError(f"{self.name}: no video {', '.join(absent)}; it has {shortened(list(self.videos))}")
        videos = [self.videos[key] for key in keys]
        for video in videos:
            for name in need:
                if getattr(video, name) is None:
                    stored = "change_points" if name == "shots" else name
                    raise InputError(f"{self.name}: {video.key}/{stored} is missing; {_ADVICE.get(name, _ELSE)}")
        return videos


def find_file(path: str | Path) -> Path:
    """The path itself, or the same path inside the folder that VSUM_DATA names."""
    path = Path(path)
    folder = os.environ.get("VSUM_DATA")
    if path.exists() or folder is None:
        return path
    return Path(folder) / path


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


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys with video_2 before video_10."""
    return sorted(keys, key=lambda key: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)])


def shortened(keys: list[str]) -> str:
    return ", ".join(keys) if len(keys) <= 4 else f"{keys[0]}, {keys[1]}, ... {keys[-1]} ({len(keys)} videos)"
