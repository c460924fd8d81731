"""Where a video cuts, to the frame: hard cuts, and both ends of dissolves and fades, from small copies of its pictures.

A copy holds the means of 16 x 12 blocks of luma and 8 x 6 of each chroma, over some of their rows. The step from one
picture to the next is the mean difference of their copies, 0 to 255.

- A *cut* is a step of at least `_CUT`, at least `_TIMES_USUAL` times the median step around it (plus half a unit), with
  none half as large beside it. A flash is two such steps side by side, and no cut. A step over pictures that were left
  out is compared with what the same time changed before and behind it.
- In a *transition* the pictures of a third of a second, or of a second, lie on a straight line: its ends differ by at
  least `_AWAY` and by `_STRAIGHT` of the sum of all steps between, and no single step is half of it. A mixture of two
  pictures changes so; most of what moves comes and goes. A pan over plain areas changes each block once, but one block
  after another: as vectors (root of squares), its ends are closer than `_VECTOR_STRAIGHT` of the sum.

The pictures are those that are decoded (`media.sparse` leaves some out, but decodes all before an unusually large
packet, as cuts make such packets); a cut is at the first one after it.
"""

from __future__ import annotations

from array import array

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vsum_runtime.runtime.media.decode import Frame

_CUT = 12.0
_TIMES_USUAL = 4.0
_BESIDE = 3
_AROUND = 5
_AWAY = 10.0
_STRAIGHT = 0.8
_VECTOR_STRAIGHT = 0.6
_SPANS_S = (1 / 3, 1.0)
_SMOOTH, _OUTSIDE = 5, 12  # a transition ends where the mean of so many steps is halfway to the median of those outside
_PAUSE, _LEAST = 8, 4  # steps: a longer pause is between two transitions; a shorter run is none

_LUMA, _CHROMA = (12, 16), (6, 8)
_N_BYTES = _LUMA[0] * _LUMA[1] + 2 * _CHROMA[0] * _CHROMA[1]


class SceneChanges:
    """Sees the pictures of a video one after the other, and says where they change; about 300 bytes for each."""

    def __init__(self) -> None:
        self._pts = array("q")
        self._copies = bytearray()
        self._reformatter: VideoReformatter | None = None

    def see(self, frame: Frame, pts: int) -> None:
        """The next picture in order of presentation."""
        self._pts.append(pts)
        self._copies += self._copy(frame)

    def cuts(self) -> NDArray[np.int64]:
        """[C] presentation times of the first pictures after a cut, in ticks."""
        copies = self._all()
        pts = np.array(self._pts, dtype=np.int64)
        return pts[_cuts(copies, pts)]

    def transitions(self, tick_s: float) -> NDArray[np.int64]:
        """[G, 2] presentation times of the first picture of each transition, and of the first behind it, in ticks."""
        copies, pts = self._all(), np.array(self._pts, dtype=np.int64)
        if len(pts) < 2:
            return np.empty((0, 2), dtype=np.int64)
        usual_s = max(1e-6, float(np.median(np.diff(pts))) * tick_s)
        return pts[_transitions(copies, pts, [max(4, round(span_s / usual_s)) for span_s in _SPANS_S])].reshape(-1, 2)

    def _all(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._copies, dtype=np.uint8).reshape(-1, _N_BYTES)

    def _copy(self, frame: Frame) -> bytes:
        form = frame.format
        bits = form.components[0].bits
        if len(frame.planes) != 3 or form.is_rgb or form.is_big_endian or bits not in (8, 10, 12):
            self._reformatter = self._reformatter or VideoReformatter()
            frame = self._reformatter.reformat(frame, format="yuv420p")
            bits = 8
        n_bytes, parts = 1 if bits == 8 else 2, []
        for plane, (n_rows, n_columns) in zip(frame.planes, (_LUMA, _CHROMA, _CHROMA), strict=True):
            samples = np.frombuffer(plane, dtype=f"<u{n_bytes}").reshape(-1, plane.line_size // n_bytes)
            parts.append(_block_means(samples[: plane.height, : plane.width], n_rows, n_columns))
        copy: NDArray[np.uint8] = (np.concatenate(parts) / (1 << (bits - 8))).astype(np.uint8)
        return bytes(copy)


def _block_means(samples: NDArray[np.uint8], n_rows: int, n_columns: int) -> NDArray[np.float64]:
    """[n_rows * n_columns] of one plane, over one row in each block; small pictures give some blocks twice."""
    height, width = samples.shape
    rows = samples[(np.arange(n_rows) * 2 + 1) * height // (2 * n_rows)]
    if width < n_columns:
        rows = rows[:, np.arange(n_columns) * width // n_columns]
    block = rows.shape[1] // n_columns
    means: NDArray[np.float64] = rows[:, : block * n_columns].reshape(n_rows * n_columns, block).mean(axis=1)
    return means


def _apart(copies: NDArray[np.uint8], distance: int, *, squared: bool = False) -> NDArray[np.float64]:
    """[n - distance] how different pictures so many apart are: the mean of differences, or the root of squared ones."""
    n = max(0, len(copies) - distance)
    apart = np.empty(n)
    for start in range(0, n, 4096):  # so that hours of video take little memory
        end = min(n, start + 4096)
        differences = np.abs(copies[start + distance : end + distance].astype(np.int16) - copies[start:end])
        if squared:
            apart[start:end] = np.sqrt((differences.astype(np.float32) ** 2).mean(axis=1))
        else:
            apart[start:end] = differences.mean(axis=1)
    return apart


def _cuts(copies: NDArray[np.uint8], pts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which pictures are the first after a cut."""
    steps, ticks = _apart(copies, 1), np.diff(pts)
    cuts = []
    for k in np.flatnonzero(steps >= _CUT).tolist():
        beside = np.concatenate([steps[max(0, k - _BESIDE) : k], steps[k + 1 : k + 1 + _BESIDE]])
        if (beside > steps[k] / 2).any():
            continue
        around = slice(max(0, k - _AROUND), k + 1 + _AROUND)
        rates = np.delete(steps[around] / ticks[around], k - around.start)
        usual = float(np.median(rates)) * ticks[k] if len(rates) else 0.0
        is_cut = steps[k] >= _TIMES_USUAL * (usual + 0.5)
        if not is_cut and ticks[k] > 1.5 * ticks[around].min():
            # Pictures were left out between, and motion does not add up so far: what did the same time change?
            earlier = max(0, int(np.searchsorted(pts, pts[k] - ticks[k], "right")) - 1)
            later = min(int(np.searchsorted(pts, pts[k + 1] + ticks[k])), len(pts) - 1)
            usual = max(_difference(copies, earlier, k), _difference(copies, k + 1, later))
            is_cut = steps[k] >= _TIMES_USUAL / 2 * (usual + 0.5)
        if is_cut:
            cuts.append(k + 1)
    return np.array(cuts, dtype=np.int64)


def _difference(copies: NDArray[np.uint8], one: int, other: int) -> float:
    return float(np.abs(copies[one].astype(np.int16) - copies[other]).mean())


def _transitions(copies: NDArray[np.uint8], pts: NDArray[np.int64], spans: list[int]) -> NDArray[np.int64]:
    """[G, 2] first picture, and the first behind it, of what changes in a straight line for so many steps or more."""
    steps, vector_steps = _apart(copies, 1), _apart(copies, 1, squared=True)
    joined = np.zeros(len(copies), dtype=np.bool_)  # pictures after a step of a straight line
    for span in spans:
        for start in np.flatnonzero(_is_straight(copies, steps, vector_steps, span)).tolist():
            joined[start + 1 : start + span + 1] = True
    rates = np.convolve(steps / np.diff(pts), np.ones(_SMOOTH) / _SMOOTH, "same")
    ranges = []
    for start, end in _runs(joined[1:], 1):  # steps
        inside, outside = rates[start:end], np.append(rates[max(0, start - _OUTSIDE) : start], rates[end:][:_OUTSIDE])
        usual = float(np.median(outside)) if len(outside) else 0.0
        moving = inside >= (usual + np.quantile(inside, 0.8)) / 2
        ranges += [(start + first + 1, start + last) for first, last in _runs(moving, _PAUSE) if last - first >= _LEAST]
    return np.array(ranges, dtype=np.int64).reshape(-1, 2)


def _runs(mask: NDArray[np.bool_], pause: int) -> list[tuple[int, int]]:
    """Half-open ranges where a mask holds, those joined that lie less than `pause` apart."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]))).reshape(-1, 2).tolist()
    runs: list[tuple[int, int]] = []
    for start, end in edges:
        if runs and start - runs[-1][1] < pause:
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


def _is_straight(
    copies: NDArray[np.uint8], steps: NDArray[np.float64], vector_steps: NDArray[np.float64], span: int
) -> NDArray[np.bool_]:
    """[n - span] whether the pictures from each on for so many steps lie on a straight line."""
    if len(copies) <= span:
        return np.empty(0, dtype=np.bool_)
    ones, away = np.ones(span), _apart(copies, span)
    along = np.convolve(steps, ones, "valid")
    vector_along = np.convolve(vector_steps, ones, "valid")
    largest = np.lib.stride_tricks.sliding_window_view(steps, span).max(axis=1)
    is_straight: NDArray[np.bool_] = (
        (away >= _AWAY)
        & (away >= _STRAIGHT * along)
        & (_apart(copies, span, squared=True) >= _VECTOR_STRAIGHT * vector_along)
        & (largest < away / 2)
    )
    return is_straight
