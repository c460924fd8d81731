"""A video and frame ranges -> a film of exactly those frames, with their sound.

The film is encoded anew (H.264 and AAC), so that ranges start and end at any frame, not only at key frames. Pictures
and sound are decoded forward side by side, the sound just as far as the pictures: memory does not grow with the length
of either, however the file interleaves them.

Times are whole ticks of the source's clock. Every kept frame lasts as long as in the source (up to the next source
frame), and the sound of a frame is the samples between its first and its last tick, placed by the film's running time
and not by adding up rounded lengths: sound stays within half a sample of its place after any number of cuts.
"""

from __future__ import annotations

import logging
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.ahead import ahead
from vsum_runtime.runtime.media.decode import (
    Container,
    Frame,
    Stream,
    decode,
    find_sounds,
    find_video,
    open_container,
)
from vsum_runtime.runtime.media.picture import Fitter, hdr_parameters
from vsum_runtime.runtime.media.rational import frame_rate, time_base
from vsum_runtime.runtime.media.sound import Sound
from vsum_runtime.runtime.media.sparse import Irregular, decode_some
from vsum_runtime.runtime.targets import FILM

_log = logging.getLogger(__name__)

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix of the film -> FFmpeg's name of its container."""

_HDR_ENCODERS = ("libx265", "libx264")  # HDR10 is HEVC nearly everywhere that it can be played
_H264_ENCODERS = ("libx264", "libopenh264")  # the first that this build of FFmpeg has, else its own MPEG-4 part 2
_AUDIO_BIT_RATE_PER_CHANNEL = 96_000
_FADE_S = 0.005  # long enough against clicks at joins, too short to be heard as a fade


def write_summary(
    source: str | os.PathLike[str],
    ranges: ArrayLike,
    out: str | os.PathLike[str],
    *,
    frame_times_s: ArrayLike | None = None,
    crf: int = 20,
    audio: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the frames of some ranges of a video, and their sound, as a film.

    Parameters
    ----------
    source
        video file
    ranges : int [K, 2]
        half-open ranges of frames, counted as `media.frames.read_frames` does; ascending, K >= 1
    out : file to write
        .mp4, .m4v, .mov or .mkv
    frame_times_s : float [N + 1]
        as `media.frames.FrameReader` gives them: frames are then told by their times, so that one which cannot be
        decoded does not shift those after it, and only what the film needs is decoded where the file allows it
        (`runtime.media.sparse`). Default: all are decoded and counted
    crf : int
        quality of libx264, 0 (lossless) .. 51; 20 is hard to tell from the source
    audio : None, "all", a number from 1, or a language
        which sound tracks, see `media.decode.find_sounds`
    progress : callable
        told the share of the work that is done, 0..1

    Returns
    -------
    Path
        `out`

    Raises
    ------
    InputError
        on ranges or a file name that cannot be
    VideoError
        the source cannot be decoded, has fewer frames than the ranges, or the film cannot be written; nothing
        half-written is left and an older `out` stays as it was

    Notes
    -----
    Pictures become what `media.picture` says: upright, and of even size, so that an odd last column or row is cut off.
    Without sound in the source the film has none; where sound starts late or ends early there is silence.
    """
    target = Path(out)
    joined = checked_ranges(ranges)
    times = None if frame_times_s is None else np.asarray(frame_times_s, dtype=np.float64)
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"out: expected a name ending in {', '.join(CONTAINERS)}, got {target.name}")
    if not 0 <= crf <= 51:
        raise InputError(f"crf: expected 0 (lossless) to 51 (worst), got {crf}")
    if times is not None:
        try:
            return _written(
                source, target, partial(_needed_frames, ranges=joined, times=times, progress=progress), crf, audio
            )
        except Irregular as irregular:
            _log.info("%s: decoding all of it, %s", source, irregular)
    kept = partial(_kept_frames, ranges=joined, times=times, progress=progress)
    return _written(source, target, kept, crf, audio)


def _written(source: str | os.PathLike[str], target: Path, kept_frames: _Decode, crf: int, audio: str | None) -> Path:
    with ExitStack() as opened, replacing(target) as temporary:
        pictures = opened.enter_context(open_container(source))
        video = find_video(pictures, source)
        sounds = []
        for number in range(len(find_sounds(pictures, audio))):  # each track is read on its own, as far as the pictures
            container = opened.enter_context(open_container(source))
            sounds.append(Sound(container, find_sounds(container, audio)[number]))
        try:
            with (
                _Film(temporary, CONTAINERS[target.suffix.lower()], video, sounds, crf) as film,
                ahead(kept_frames(pictures, video), n_waiting=4) as frames,
            ):
                for kept in frames:
                    film.add(kept)
        except FFmpegError as error:
            raise VideoError(
                f"{target}: expected to write the film, it failed: {error.strerror or error}; "
                "is the disk full? (nothing was changed)"
            ) from error
    return target


def checked_ranges(ranges: ArrayLike) -> list[tuple[int, int]]:
    """Validate, and join ranges that touch."""
    array = np.asarray(ranges)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or array.dtype.kind not in "iu":
        raise InputError(f"ranges: expected integers [K, 2] with K >= 1, got {array.dtype} {array.shape}")
    if array[0, 0] < 0 or (array[:, 0] >= array[:, 1]).any() or (array[1:, 0] < array[:-1, 1]).any():
        raise InputError(f"ranges: expected 0 <= start < end, ascending, without overlap, got {array.tolist()}")
    joined: list[tuple[int, int]] = []
    for start, end in array.tolist():
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


class _Kept(NamedTuple):
    """One frame of the film: its picture, and where it lies in the source, in ticks of the source's clock."""

    picture: Frame
    start: int
    end: int
    first_of_range: bool
    last_of_range: bool


_Decode: TypeAlias = Callable[[Container, Stream], Iterator[_Kept]]


def _needed_frames(
    container: Container,
    stream: Stream,
    ranges: list[tuple[int, int]],
    times: NDArray[np.float64],
    progress: Callable[[float], None] | None,
) -> Iterator[_Kept]:
    """The frames inside, by decoding only what they need; `Irregular` where packets do not come at these times."""
    last_end = ranges[-1][1]
    ticks: list[int] = np.rint(times / float(time_base(stream))).astype(np.int64).tolist()
    if last_end >= len(ticks):
        raise Irregular(f"no times for {last_end} frames")
    starts, ends = {start for start, _ in ranges}, {end for _, end in ranges}
    inside = [number for start, end in ranges for number in range(start, end)]
    wanted = set(inside)
    first = n_frames = 0

    def wants(pts: int, _: int) -> bool:
        nonlocal first, n_frames
        number, n_frames = n_frames, n_frames + 1
        if number == 0:
            first = pts
        if number >= last_end:
            return False
        if pts - first != ticks[number]:
            raise Irregular(f"frame {number} at {pts}, it was at {first + ticks[number]}")
        return number in wanted

    for number, picture in zip(inside, decode_some(container, stream, wants), strict=False):
        yield _Kept(picture, picture.pts, first + ticks[number + 1], number in starts, number + 1 in ends)
        if progress is not None:
            progress((number + 1) / last_end)
        if number + 1 == last_end:
            return
    raise Irregular(f"{n_frames} frames came, there were {last_end}")


def _kept_frames(
    container: Container,
    stream: Stream,
    ranges: list[tuple[int, int]],
    times: NDArray[np.float64] | None,
    progress: Callable[[float], None] | None,
) -> Iterator[_Kept]:
    """Decode up to the end of the last range and pass on the pictures inside; each lasts until the next one.

    A picture that counts as several frames is kept for as many of them as the ranges hold.
    """
    last_end = ranges[-1][1]
    numbering = _ByCount() if times is None else _ByTime(times, time_base(stream))
    begun: set[int] = set()  # ranges of which something was kept

    def parts(picture: Frame, first: int, end: int, pts: int, end_pts: int) -> Iterator[_Kept]:
        for start, stop in ranges:
            inside = max(start, first), min(stop, end)
            if inside[0] < inside[1]:
                start_pts = pts if inside[0] == first else numbering.pts(inside[0])
                stop_pts = end_pts if inside[1] == end else numbering.pts(inside[1])
                if start_pts < stop_pts:
                    yield _Kept(picture, start_pts, stop_pts, start not in begun, inside[1] == stop)
                    begun.add(start)

    waiting: tuple[Frame, int, int] | None = None
    end = end_pts = 0
    for picture, pts, duration in decode(container, stream):
        number = numbering.number(pts)
        if waiting is not None:
            yield from parts(waiting[0], waiting[1], max(number, waiting[1] + 1), waiting[2], pts)
        if progress is not None:
            progress(min(1.0, (number + 1) / last_end))
        if number >= last_end:
            return
        waiting = picture, number, pts
        end_pts = pts + duration
    if waiting is not None:
        end = max(numbering.number(end_pts), waiting[1] + 1)
        yield from parts(waiting[0], waiting[1], end, waiting[2], end_pts)
    if end < last_end:
        raise VideoError(
            f"ranges: expected a video of at least {last_end} frames, decoded {end}; "
            "has the file changed since it was summarized?"
        )


class _ByCount:
    """Frames are numbered as they come."""

    def __init__(self) -> None:
        self._next = -1

    def number(self, pts: int) -> int:
        self._next += 1
        return self._next

    def pts(self, number: int) -> int:
        raise AssertionError("a picture that comes once is not divided")


class _ByTime:
    """Frames are numbered by the times at which they start."""

    def __init__(self, times: NDArray[np.float64], tick_s: Fraction) -> None:
        self._tick_s = float(tick_s)
        self._starts_s: list[float] = times.tolist()
        self._first: int | None = None

    def number(self, pts: int) -> int:
        self._first = pts if self._first is None else self._first
        at_s = (pts - self._first + 0.5) * self._tick_s
        number: int = bisect_right(self._starts_s, at_s) - 1
        return number

    def pts(self, number: int) -> int:
        assert self._first is not None
        return self._first + round(self._starts_s[number] / self._tick_s)


class _Film:
    """The film being written: encoders, container and running time."""

    def __init__(self, path: Path, container: str, source: Stream, sounds: list[Sound], crf: int) -> None:
        options = {"movflags": "+faststart"} if container != "matroska" else {}  # the index first: plays while it loads
        self._container = av.open(str(path), "w", format=container, options=options)
        self._container.metadata["comment"] = FILM
        self._source, self._tracks, self._crf = source, [_Track(sound) for sound in sounds], crf
        self._fit = Fitter(source)
        self._tick_s = time_base(source)
        self._clock_s = self._tick_s  # ticks of the film's own clock
        self._elapsed = 0  # source ticks of film so far
        self._durations: dict[int, int] = {}
        self._video: Stream = None
        self._aside = ThreadPoolExecutor(1, "vsum-sound")  # encodes the sound of a frame while its picture is encoded

    def __enter__(self) -> _Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.shutdown()
        if error is not None:
            with suppress(FFmpegError, OSError):  # the file is thrown away; what matters is the first error
                self._container.close()
            return
        try:
            self._mux_video(None)
            for track in self._tracks:
                if track.stream is not None:
                    self._container.mux(track.stream.encode(None))
        finally:
            self._container.close()

    def add(self, kept: _Kept) -> None:
        picture = self._fit(kept.picture)
        if self._video is None:
            self._open_streams(picture, kept.picture)
        start, self._elapsed = self._elapsed, self._elapsed + kept.end - kept.start
        # Decoded frames remember how their source was coded; the encoder would repeat it.
        picture.pict_type = PictureType.I if kept.first_of_range else PictureType.NONE
        picture.pts, picture.time_base = self._on_clock(start), self._clock_s
        self._durations[picture.pts] = self._on_clock(self._elapsed) - picture.pts
        if not self._tracks:
            self._mux_video(picture)
            return
        first, *others = self._seconds(kept, start)
        sounds = [self._aside.submit(track.encode, *first) for track in self._tracks]
        self._mux_video(picture)
        for packets in sounds:
            self._container.mux(packets.result())
        for other in others:
            for track in self._tracks:
                self._container.mux(track.encode(*other))

    def _seconds(self, kept: _Kept, start: int) -> Iterator[tuple[_Kept, Fraction, Fraction, Fraction]]:
        """A picture a second at a time, for its sound: it may be shown for hours.

        Each part with where it starts in the source, and where it starts and ends in the film, in seconds.
        """
        n_parts = max(1, math.ceil((kept.end - kept.start) * self._tick_s))
        bounds = [kept.start + (kept.end - kept.start) * n // n_parts for n in range(n_parts + 1)]
        for first, end in pairwise(bounds):
            part = kept._replace(
                first_of_range=kept.first_of_range and first == kept.start,
                last_of_range=kept.last_of_range and end == kept.end,
            )
            in_film = first - kept.start + start, end - kept.start + start
            yield part, first * self._tick_s, in_film[0] * self._tick_s, in_film[1] * self._tick_s

    def _open_streams(self, picture: Frame, decoded: Frame) -> None:
        source, fit = self._source.codec_context, self._fit
        encoder = next(filter(_has_encoder, _HDR_ENCODERS if fit.is_hdr else _H264_ENCODERS), "mpeg4")
        rate = frame_rate(self._source) or Fraction(25)
        video: Stream = self._container.add_stream(encoder, rate=rate)
        video.width, video.height, video.pix_fmt = picture.width, picture.height, picture.format.name
        context = video.codec_context
        if fit.pixel_shape is not None:
            context.sample_aspect_ratio = fit.pixel_shape
        context.color_range, context.colorspace = fit.color_range, fit.colorspace
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        if encoder == "libx265":
            parameters = {"log-level": "error", **hdr_parameters(decoded)}
            joined = ":".join(f"{key}={value}" for key, value in parameters.items())
            video.options = {"crf": str(self._crf), "preset": "veryfast", "x265-params": joined}
            context.codec_tag = "hvc1"
        elif encoder == "libx264":
            interlaced = {"flags": "+ildct+ilme"} if fit.is_interlaced else {}
            video.options = {"crf": str(self._crf), "preset": "veryfast", **interlaced}
        else:
            _log.warning("this FFmpeg has no libx264: encoding with %s at a fixed bit rate, crf is ignored", encoder)
            context.bit_rate = int(picture.width * picture.height * rate * 0.15)
            if self._tick_s.denominator > 65535:  # finer than MPEG-4 part 2 can count
                self._clock_s = Fraction(1, 60000)
        context.time_base = self._clock_s
        for track in self._tracks:
            track.open(self._container)
        self._video = video

    def _on_clock(self, ticks: int) -> int:
        return round(ticks * self._tick_s / self._clock_s)

    def _mux_video(self, picture: Frame) -> None:
        for packet in self._video.encode(picture):
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)


class _Track:
    """One sound track of the film."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self.stream: Stream = None
        self._range_sample = self._range_source_sample = 0  # where the current range began, in film and source

    def open(self, film: Container) -> None:
        sound = self._sound
        self.stream = film.add_stream("aac", rate=sound.rate_hz, layout=sound.layout)
        self.stream.codec_context.bit_rate = sound.n_channels * min(_AUDIO_BIT_RATE_PER_CHANNEL, 6 * sound.rate_hz)
        if sound.language:
            self.stream.metadata["language"] = sound.language

    def encode(self, kept: _Kept, source_s: Fraction, film_s: Fraction, end_s: Fraction) -> list[Any]:
        """Packets of the sound up to the end of a frame, as far as they are complete."""
        sound = self._sound
        film_sample = round(film_s * sound.rate_hz)
        n_samples = round(end_s * sound.rate_hz) - film_sample
        if n_samples == 0:
            return []
        if kept.first_of_range:
            self._range_sample, self._range_source_sample = film_sample, round(source_s * sound.rate_hz)
        samples = sound.take(self._range_source_sample + film_sample - self._range_sample, n_samples)
        ramp = np.linspace(0, 1, min(n_samples, round(_FADE_S * sound.rate_hz)), dtype=np.float32)
        if kept.first_of_range:
            samples[:, : len(ramp)] *= ramp
        if kept.last_of_range:
            samples[:, n_samples - len(ramp) :] *= ramp[::-1]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.time_base, frame.pts = sound.rate_hz, Fraction(1, sound.rate_hz), film_sample
        packets: list[Any] = self.stream.encode(frame)
        return packets


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:  # UnknownCodecError
        return False
    return True
