"""A video file -> pictures at a steady rate, and the presentation time of every frame.

Files are decoded forward once, never sought and never held: in a file with a key frame every 8 s, seeking to each
sample took ten times as long as decoding all of it. Frames are counted as they are decoded (0 .. N - 1), and sampled by
presentation time, so that variable frame rates and missing or odd time stamps do not shift the samples.
`runtime.media.film` reads through the same `decode`, so that both count alike.

A picture that is shown for longer than 2 s counts as several frames, each of a second at most: so a still of an hour is
an hour of film wherever frames are counted, sampled and chosen, and can be cut within.
"""

from __future__ import annotations

import logging
import math
import os
from array import array
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.machine import cpu_count
from vsum_runtime.runtime.media.clock import may_leap
from vsum_runtime.runtime.media.decode import (
    Container,
    Frame,
    Orientation,
    Stream,
    decode,
    find_audio,
    find_video,
    open_container,
    usual_duration,
)
from vsum_runtime.runtime.media.rational import frame_rate, time_base
from vsum_runtime.runtime.media.scene_changes import SceneChanges
from vsum_runtime.runtime.media.sparse import Irregular, decode_some
from vsum_runtime.runtime.recipe import Recipe

_log = logging.getLogger(__name__)

_MOST_PIXELS_PER_S = 9_000_000
_LONG_S = 2.0  # a picture shown for longer counts as several frames
_PIECE_S = 1.0  # ... of this length at most


def read_frames(
    path: str | os.PathLike[str],
    recipe: Recipe,
    *,
    block_size: int = 4,
    progress: Callable[[float], None] | None = None,
    sparse: bool = False,
    n_threads: int | None = None,
) -> FrameReader:
    """Open a video for one pass over its sampled frames.

    Parameters
    ----------
    path
        file of any container and codec that FFmpeg reads
    recipe : Recipe
        sampling (`rate_hz` or `stride`), size and fit of the pictures
    block_size : int
        most pictures per block
    progress : callable
        told the share of the video that is read, 0..1, at every sample
    sparse : bool
        leave out what no sampled frame needs, see `media.sparse`; the iteration raises `Irregular` where that cannot be
        told, and is to be repeated without
    n_threads : int
        of the decoder; None: all processors, or one where pictures are small and `sparse`

    Returns
    -------
    FrameReader
        a context manager; iterate it once

    Raises
    ------
    VideoError
        the file is absent, empty, a directory, unreadable, or holds no video that can be decoded; during iteration when
        not one frame can be decoded

    Notes
    -----
    With `rate_hz`, sample k is the first frame at or after k / rate_hz (half a tick of the file's clock is forgiven).
    A frame is taken once: below `rate_hz` frames per second every frame is a sample. Damaged parts are skipped with a
    warning in the log. The frames that a long picture counts as are sampled like others, but their picture comes once.
    """
    container = open_container(path)
    try:
        stream = find_video(container, path, n_threads)
        if sparse and n_threads is None and _is_small(stream):
            stream.codec_context.thread_count = 1
        return FrameReader(container, stream, Path(path), recipe, block_size, progress, sparse)
    except BaseException:
        container.close()
        raise


def _is_small(stream: Stream) -> bool:
    """Whether one thread decodes a video as fast as a feature network on the other processors takes its pictures.

    More threads take a fifth to a third more processor time; the bound is where both took the same on two processors.
    """
    context = stream.codec_context
    pixels_per_s = context.width * context.height * (frame_rate(stream) or 25)
    return bool(pixels_per_s * max(1, cpu_count() - 1) <= _MOST_PIXELS_PER_S)


class FrameReader:
    """One pass over the sampled pictures of a video: iterate for blocks uint8 [b, H, W, 3], red, green, blue.

    `picks`, `rows`, `n_frames` and `frame_times_s` grow while the blocks are read and are complete when it ends.
    """

    width: int
    height: int
    """Size as stored, pixels: before rotation."""
    average_rate_hz: float | None
    """Frames per second as the file states or FFmpeg guesses, or None."""
    duration_s: float | None
    """Duration as the file says, or None; what is decoded may be shorter."""
    has_audio: bool
    warnings: list[str]
    """What is wrong with the file, complete when the iteration ends."""

    def __init__(
        self,
        container: Container,
        stream: Stream,
        path: Path,
        recipe: Recipe,
        block_size: int,
        progress: Callable[[float], None] | None,
        sparse: bool,
    ) -> None:
        self._container, self._stream, self._path, self._recipe = container, stream, path, recipe
        self._block_size = block_size
        self.warnings = []
        self._progress = progress
        self._sparse = sparse
        self._times_s, self._picks, self._rows = array("d"), array("q"), array("q")
        self._changes = SceneChanges()
        self._end_s = 0.0
        self._first_pts = self._next_sample = 0
        # Whole numbers: fractions, frame by frame, took as long as scaling the pictures.
        tick_s = time_base(stream)
        self._tick_s = tick_s.as_integer_ratio()
        self._due = None if recipe.rate_hz is None else _due(tick_s, Fraction(recipe.rate_hz))
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        average_rate = frame_rate(stream)
        self.average_rate_hz = None if average_rate is None else float(average_rate)
        self.duration_s = _duration_s(container, stream)
        self.has_audio = find_audio(container) is not None

    @property
    def n_frames(self) -> int:
        """N, frames decoded; a long picture counts as several."""
        return len(self._times_s)

    @property
    def picks(self) -> NDArray[np.int64]:
        """[T] source frame of each sampled picture, strictly increasing from 0."""
        return np.array(self._picks, dtype=np.int64)

    @property
    def rows(self) -> NDArray[np.int64]:
        """[T] number of the picture, among those of all blocks, that shows each sampled frame."""
        return np.array(self._rows, dtype=np.int64)

    @property
    def frame_times_s(self) -> NDArray[np.float64]:
        """[N + 1] presentation time of each frame from 0, strictly increasing, and the end of the last one."""
        return np.append(np.array(self._times_s), self._end_s)

    def cuts(self) -> NDArray[np.int64]:
        """[C] frames that are the first after a hard cut, ascending; see `media.scene_changes`."""
        return self._frames_at(self._changes.cuts())

    def transitions(self) -> NDArray[np.int64]:
        """[G, 2] half-open ranges of frames in which one scene turns into another, ascending."""
        return self._frames_at(self._changes.transitions(self._tick_s[0] / self._tick_s[1]))

    def _frames_at(self, pts: NDArray[np.int64]) -> NDArray[np.int64]:
        times_s = (pts - self._first_pts) * (self._tick_s[0] / self._tick_s[1])
        return np.searchsorted(np.array(self._times_s), times_s - 1e-9).astype(np.int64)

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        size = (self._recipe.height, self._recipe.width, 3)
        fitter = _Fitter(self._recipe)
        block, filled = np.empty((self._block_size, *size), dtype=np.uint8), 0
        for frame in self._sampled():
            block[filled] = fitter.picture(frame)
            filled += 1
            if filled == self._block_size:
                yield block
                block, filled = np.empty((self._block_size, *size), dtype=np.uint8), 0
        if filled:
            yield block[:filled]

    def _sampled(self) -> Iterator[Frame]:
        """Note the times of all frames, and pass on those that are sampled."""
        if self._times_s:
            raise InputError("frames: expected one pass over a FrameReader, got a second; call read_frames again")
        for frame in self._some_sampled() if self._sparse else self._all_sampled():
            yield frame
            if self._progress is not None and self.duration_s:
                self._progress(min(1.0, self._end_s / self.duration_s))
        if not self._times_s:
            raise VideoError(
                f"{self._path}: expected frames, none could be decoded; the file is damaged or cut off "
                "before its first picture, get it again"
            )
        stated_s = 0.0 if self.duration_s is None or may_leap(self._container) else self.duration_s
        if self._end_s < 0.9 * stated_s - 1:
            self.warnings.append(f"decoded {self._end_s:.1f} s of {self.duration_s:.1f} s, it is cut off or damaged")
            _log.warning("%s: %s", self._path, self.warnings[-1])

    def _some_sampled(self) -> Iterator[Frame]:
        """What the packets promise: where a picture turns out to have been a long one, all are to be decoded."""
        usual, long = usual_duration(self._stream), _LONG_S / float(time_base(self._stream))
        last_pts = 0
        end_pts: int | None = None

        def wants(pts: int, duration: int) -> bool:
            nonlocal last_pts, end_pts
            if end_pts is not None and max(pts, end_pts) - last_pts > long and pts != end_pts:
                raise Irregular(f"a picture at {last_pts} until {pts}, not {end_pts}")
            last_pts, end_pts = pts, pts + (duration or usual)
            return self._note(pts, end_pts)

        yield from decode_some(self._container, self._stream, wants, self._changes.see)

    def _all_sampled(self) -> Iterator[Frame]:
        waiting: tuple[Frame, int] | None = None
        end_pts = 0
        for frame, pts, duration in decode(self._container, self._stream):
            self._changes.see(frame, pts)
            if waiting is not None and self._note(waiting[1], pts):
                yield waiting[0]
            waiting, end_pts = (frame, pts), pts + duration
        if waiting is not None and self._note(waiting[1], end_pts):
            yield waiting[0]

    def _note(self, pts: int, end_pts: int) -> bool:
        """Note the frames of the next picture; whether it is sampled."""
        if not self._times_s:
            self._first_pts = pts
        ticks, n_ticks = pts - self._first_pts, end_pts - pts
        numerator, denominator = self._tick_s
        n_pieces = 1
        if n_ticks * numerator > _LONG_S * denominator:
            n_pieces = math.ceil(n_ticks * numerator / (_PIECE_S * denominator))
        n_sampled = len(self._picks)
        for piece in range(n_pieces):
            self._note_frame(ticks + n_ticks * piece // n_pieces)
        self._end_s = (ticks + n_ticks) * numerator / denominator
        if len(self._picks) == n_sampled:
            return False
        row = self._rows[-1] + 1 if self._rows else 0
        self._rows.extend([row] * (len(self._picks) - n_sampled))
        return True

    def _note_frame(self, ticks: int) -> None:
        index = len(self._times_s)
        self._times_s.append(ticks * self._tick_s[0] / self._tick_s[1])
        if self._due is not None:
            due = (ticks * self._due[0] + self._due[1]) // self._due[2]
        else:
            assert self._recipe.stride is not None
            due = index // self._recipe.stride
        if due >= self._next_sample:
            self._next_sample = due + 1
            self._picks.append(index)


def _due(tick_s: Fraction, rate_hz: Fraction) -> tuple[int, int, int]:
    """Factor, summand and divisor that make the number of the sample due at a time in ticks."""
    forgiven_s = min(tick_s, Fraction(1, 1000)) / 2  # a clock in milliseconds rounds; a coarser one is exact
    step, start = tick_s * rate_hz, forgiven_s * rate_hz
    divisor = math.lcm(step.denominator, start.denominator)
    return int(step * divisor), int(start * divisor), divisor


class _Fitter:
    """Frames as decoded -> pictures of the recipe's size, upright, in one pass of swscale."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame
        self._orientation = Orientation()

    def picture(self, frame: Frame) -> NDArray[np.uint8]:
        transpose, flip_rows, flip_columns = self._orientation(frame)
        width, height = self._scaled(*((frame.height, frame.width) if transpose else (frame.width, frame.height)))
        coded_size = (height, width) if transpose else (width, height)
        scaled = self._reformatter.reformat(frame, *coded_size, format="rgb24", interpolation="BILINEAR")
        rgb: NDArray[np.uint8] = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        if transpose:
            rgb = rgb.transpose(1, 0, 2)
        rgb = rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        top, left = round((height - self._recipe.height) / 2), round((width - self._recipe.width) / 2)
        return rgb[top : top + self._recipe.height, left : left + self._recipe.width]

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        side = self._recipe.shorter_side
        if side is None:
            return self._recipe.width, self._recipe.height
        return (side, side * height // width) if width <= height else (side * width // height, side)


def _duration_s(container: Container, stream: Stream) -> float | None:
    """What the file states. Matroska counts from time 0, also where the first picture comes later."""
    if stream.duration:
        return float(stream.duration * time_base(stream))
    if not container.duration:
        return None
    starts_late = "matroska" in container.format.name and container.start_time is not None
    ticks = container.duration - max(0, container.start_time if starts_late else 0)
    return float(ticks / av.time_base) if ticks > 0 else None
