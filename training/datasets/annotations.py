"""TVSum's table of annotations, ``ydata-anno.tsv`` -> each annotator's importance of every frame, by title.

A line is from one annotator: title, category and an integer per frame, with commas between. No data set file has the
order of the lines; the lines of a video are those whose title is its ``video_name`` (with or without a suffix) or key.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError, brief
from vsum_runtime.training.datasets.videos import Video

Table = dict[str, list[NDArray[np.uint8]]]
"""Title -> each annotator's importance [frames]."""


def read_annotations(path: Path) -> Table:
    """Read a table.

    Raises
    ------
    InputError
        lines of another form
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a table of annotations, cannot read it: {error}") from None
    table: Table = {}
    for number, line in enumerate(lines, start=1):
        *columns, last = line.split("\t")
        if not line.strip() or (number == 1 and columns and not re.search(r"\d", last)):  # a heading
            continue
        try:
            title, _ = columns
            importance = np.array(last.split(","), dtype=np.uint8)
        except (ValueError, OverflowError):
            raise InputError(
                f"{path}: line {number}: expected title, category and, joined by commas, whole numbers from 0 to 255, "
                f"with tabs between, got {brief(line)}"
            ) from None
        table.setdefault(title.strip(), []).append(importance)
    return table


def annotations_of(video: Video, table: Table) -> NDArray[np.uint8]:
    """Importance [U, N] that annotators gave to one video; a row of one frame more than the video is cut.

    Raises
    ------
    InputError
        no rows of that title, or rows of another length or number
    """
    titles = [title for title in (video.title, video.title.rpartition(".")[0], video.key) if title]
    if not any(title in table for title in titles):  # the table may have suffixes where the data set has none
        stems = [title for title in table if title.rpartition(".")[0] in titles]
        titles = stems if len(stems) == 1 else titles
    rows = next((table[title] for title in titles if title in table), None)
    if rows is None:
        advice = (
            "give the table of the same data set"
            if video.title
            else "annotations are joined by title: store the video's title in the file, as video_name"
        )
        raise InputError(f"annotations: no rows are titled {' or '.join(titles)} ({video.key}); {advice}")
    n_users = len(rows) if video.user_summary is None else len(video.user_summary)
    lengths = sorted({len(row) for row in rows})
    if len(rows) != n_users or not set(lengths) <= {video.n_frames, video.n_frames + 1}:
        raise InputError(
            f"annotations: expected {n_users} annotators of {video.n_frames} frames (or one more) for {video.key}, got "
            f"{len(rows)} of {', '.join(map(str, lengths))}; give the table of the same data set"
        )
    return np.stack([row[: video.n_frames] for row in rows])
