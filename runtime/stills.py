"""Stills of a summary: the best frame of the video, and a storyboard with a frame of every shot or every few seconds.

The best frame is chosen among the highest-scoring sampled frames of the kept shots, at least a second apart and away
from the borders of shots, where scenes may mix: the one whose score, weighed by how sharp it is beside the sharpest, is
highest. One that is nearly black, white or of one colour does not count as sharp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.targets import STILL, check_target

if TYPE_CHECKING:
    from vsum_runtime.runtime.summary import Summary

_CANDIDATES = 12
_APART_S = 1.0
_BORDER_S = 0.25
_TILE = (160, 90)
_COLUMNS = 10
_MOST_TILES = 1800


def best_frame(summary: Summary) -> int:
    """The frame that shows a video best."""
    from vsum_runtime.runtime.media.stills import read_stills

    source, times_s = _source_of(summary)
    candidates = _candidates(summary, times_s)
    seen = {number: _sharpness(picture) for number, picture in read_stills(source, candidates, times_s)}
    sharpest = max(seen.values()) or 1.0
    scores = dict(zip(summary.picks.tolist(), summary.scores.tolist(), strict=True))
    return max(seen, key=lambda number: (scores[number] * (0.25 + 0.75 * seen[number] / sharpest), -number))


def write_thumbnail(summary: Summary, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the best frame at full size."""
    from vsum_runtime.runtime.media.stills import read_stills, suffix_of, write_picture

    source, times_s = _source_of(summary)
    suffix_of(path)
    check_target(path, sources=[source], mark=STILL, overwrite=overwrite)
    _, picture = next(read_stills(source, [best_frame(summary)], times_s))
    return write_picture(picture, path)


def write_storyboard(
    summary: Summary,
    path: str | os.PathLike[str],
    *,
    every_s: float | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write a sheet of small frames, and beside it a WebVTT file that says which part of it stands for which time.

    Parameters
    ----------
    path
        picture to write; the WebVTT file has its name and the suffix .vtt
    every_s
        seconds from one frame to the next; None: one frame for every shot, its best one

    Returns
    -------
    Path, Path
        the picture and the WebVTT file
    """
    from vsum_runtime.runtime.media.stills import read_stills, scaled, suffix_of, write_picture

    source, times_s = _source_of(summary)
    suffix_of(path)
    cues = Path(path).with_suffix(".vtt")
    for target in (path, cues):
        check_target(target, sources=[source], mark=STILL, overwrite=overwrite)
    numbers, starts_s = _of_shots(summary, times_s) if every_s is None else _at_intervals(every_s, times_s)
    if len(numbers) > _MOST_TILES:
        raise InputError(
            f"storyboard: expected at most {_MOST_TILES} frames, got {len(numbers)}; take longer intervals"
        )
    width, height = _TILE
    n_columns = min(_COLUMNS, len(numbers))
    sheet = np.zeros((math.ceil(len(numbers) / n_columns) * height, n_columns * width, 3), dtype=np.uint8)
    pictures = {number: scaled(picture, width, height) for number, picture in read_stills(source, numbers, times_s)}
    lines = ["WEBVTT", ""]
    ends_s = [*starts_s[1:], float(times_s[-1])]
    for k, number in enumerate(numbers):
        row, column = divmod(k, n_columns)
        top, left = row * height, column * width
        sheet[top : top + height, left : left + width] = pictures[number]
        lines += [f"{vtt_time(starts_s[k])} --> {vtt_time(ends_s[k])}"]
        lines += [f"{Path(path).name}#xywh={left},{top},{width},{height}", ""]
    write_picture(sheet, path)
    with replacing(cues) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return Path(path), cues


def vtt_time(seconds: float) -> str:
    """A time as WebVTT writes it."""
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"


def _source_of(summary: Summary) -> tuple[Path, NDArray[np.float64]]:
    if summary.source is None or summary.frame_times_s is None:
        raise InputError("stills: this summary was made from features; use Summarizer.summarize(video)")
    return summary.source, summary.frame_times_s


def _candidates(summary: Summary, times_s: NDArray[np.float64]) -> list[int]:
    """Sampled frames of the kept shots, of the highest scores, apart from each other and from borders."""
    picks = summary.picks
    inside = np.zeros(len(picks), dtype=np.bool_)
    for start, end in summary.ranges.tolist():
        room_s = min(_BORDER_S, float(times_s[end] - times_s[start]) / 4)
        inside |= (times_s[picks] >= times_s[start] + room_s) & (times_s[picks] <= times_s[end] - room_s)
    if not inside.any():
        inside[:] = True
    order = np.flatnonzero(inside)[np.argsort(-summary.scores[inside], kind="stable")]
    taken: list[int] = []
    for step in order.tolist():
        if all(abs(times_s[picks[step]] - times_s[number]) >= _APART_S for number in taken):
            taken.append(int(picks[step]))
        if len(taken) == _CANDIDATES:
            break
    return taken


def _sharpness(picture: NDArray[np.uint8]) -> float:
    """Mean size of the second differences of luma at about 320 pixels across; 0 where there is nothing to see."""
    from vsum_runtime.runtime.media.stills import scaled

    height, width = picture.shape[:2]
    small = scaled(picture, 320, max(2, round(320 * height / width)))
    luma = small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if not 16 < luma.mean() < 240 or luma.std() < 8:
        return 0.0
    edges = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return float(np.abs(edges).mean())


def _of_shots(summary: Summary, times_s: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """The best-scoring sampled frame of every shot, else its middle; and when the shots start."""
    numbers = []
    for start, end in summary.shots.tolist():
        within = np.flatnonzero((summary.picks >= start) & (summary.picks < end))
        best = int(summary.picks[within[summary.scores[within].argmax()]]) if len(within) else (start + end) // 2
        numbers.append(best)
    return numbers, [float(times_s[start]) for start in summary.shots[:, 0]]


def _at_intervals(every_s: float, times_s: NDArray[np.float64]) -> tuple[list[int], Sequence[float]]:
    if not (math.isfinite(every_s) and every_s > 0):
        raise InputError(f"storyboard: expected an interval above zero, got {every_s} s")
    starts_s = np.arange(0.0, float(times_s[-1]), every_s)
    numbers = np.searchsorted(times_s[:-1], starts_s + 1e-6, "right") - 1
    return numbers.tolist(), starts_s.tolist()
