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
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.ahead import ahead
from vsum_runtime.runtime.media.frames import (
    Container,
    Frame,
    Orientation,
    Stream,
    decode,
    find_audio,
    find_video,
    open_container,
    orientation,
)
from vsum_runtime.runtime.media.rational import fraction, frame_rate, time_base
from vsum_runtime.runtime.media.sparse import Irregular, decode_some

_log = logging.getLogger(__name__)

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix of the film -> FFmpeg's name of its container."""

_H264_ENCODERS = ("libx264", "libopenh264")  # the first that this build of FFmpeg has, else its own MPEG-4 part 2
_AUDIO_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # channels -> layout for AAC; others are mixed down to stereo
_AUDIO_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # what AAC knows
_AUDIO_BIT_RATE_PER_CHANNEL = 96_000
_SMPTE170M = 6  # FFmpeg's number of the standard-definition colour matrix
_FADE_S = 0.005  # long enough against clicks at joins, too short to be heard as a fade
_GAP_S = 0.05  # time stamps of sound may jitter this much before they count as a gap


def write_summary(
    source: str | os.PathLike[str],
    ranges: ArrayLike,
    out: str | os.PathLike[str],
    *,
    frame_times_s: ArrayLike | None = None,
    crf: int = 20,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the frames of some ranges of a video, and their sound, as a film.

    Parameters
    ----------
    source : video file
    ranges : int [K, 2]      half-open ranges of frames, counted as `media.frames.read_frames` does; ascending, K >= 1
    out : file to write      .mp4, .m4v, .mov or .mkv
    frame_times_s : float [N + 1]   as `media.frames.FrameReader` gives them: frames are then told by their times, so
        that one which cannot be decoded does not shift those after it, and only what the film needs is decoded where
        the file allows it (`runtime.media.sparse`). Default: all are decoded and counted
    crf : int                quality of libx264, 0 (lossless) .. 51; 20 is hard to tell from the source
    progress : callable      told the share of the work that is done, 0..1

    Returns
    -------
    Path                     `out`

    Raises
    ------
    InputError               on ranges or a file name that cannot be
    VideoError               the source cannot be decoded, has fewer frames than the ranges, or the film cannot be
                             written; nothing half-written is left and an older `out` stays as it was

    Notes
    -----
    Pictures are turned upright. H.264 in its common form needs even sizes: an odd last column or row is cut off.
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
            return _written(source, target, partial(_needed_frames, ranges=joined, times=times, progress=progress), crf)
        except Irregular as irregular:
            _log.info("%s: decoding all of it, %s", source, irregular)
    return _written(source, target, partial(_kept_frames, ranges=joined, times=times, progress=progress), crf)


def _written(source: str | os.PathLike[str], target: Path, kept_frames: _Decode, crf: int) -> Path:
    with open_container(source) as pictures, open_container(source) as sounds, replacing(target) as temporary:
        video = find_video(pictures, source)
        sound = _Sound.of(sounds)
        try:
            with (
                _Film(temporary, CONTAINERS[target.suffix.lower()], video, sound, crf) as film,
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
    """Decode up to the end of the last range and pass on the frames inside; each lasts until the next source frame."""
    last_end, current = ranges[-1][1], 0
    waiting: _Kept | None = None
    n_frames = end = 0
    begun = False  # whether a frame of the current range has been met
    for index, picture, pts, duration in _numbered(container, stream, times):
        if waiting is not None:
            yield waiting._replace(end=pts)
            waiting = None
        if index >= last_end:
            return
        n_frames, end = index + 1, pts + duration
        while index >= ranges[current][1]:
            current, begun = current + 1, False
        first, stop = ranges[current]
        if first <= index:
            waiting = _Kept(picture, pts, end, not begun, index == stop - 1)
            begun = True
        if progress is not None:
            progress(n_frames / last_end)
    if waiting is not None:
        yield waiting
    if n_frames < last_end:
        raise VideoError(
            f"ranges: expected a video of at least {last_end} frames, decoded {n_frames}; "
            "has the file changed since it was summarized?"
        )


def _numbered(
    container: Container, stream: Stream, times: NDArray[np.float64] | None
) -> Iterator[tuple[int, Frame, int, int]]:
    """Frames as `decode` gives them, each after its number."""
    tick_s = float(time_base(stream))
    starts_s = None if times is None else times[:-1].tolist()
    first: int | None = None
    for count, (picture, pts, duration) in enumerate(decode(container, stream)):
        first = pts if first is None else first
        number = count if starts_s is None else bisect_right(starts_s, (pts - first + 0.5) * tick_s) - 1
        yield number, picture, pts, duration


class _Film:
    """The film being written: encoders, container and running time."""

    def __init__(self, path: Path, container: str, source: Stream, sound: _Sound | None, crf: int) -> None:
        options = {"movflags": "+faststart"} if container != "matroska" else {}  # the index first: plays while it loads
        self._container = av.open(str(path), "w", format=container, options=options)
        self._source, self._sound, self._crf = source, sound, crf
        self._upright = _Upright()
        self._tick_s = time_base(source)
        self._clock_s = self._tick_s  # ticks of the film's own clock
        self._elapsed = 0  # source ticks of film so far
        self._range_sample = self._range_source_sample = 0  # where the current range began, in film and source
        self._durations: dict[int, int] = {}
        self._video: Stream = None
        self._audio: Stream = None
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
            if self._audio is not None:
                self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()

    def add(self, kept: _Kept) -> None:
        picture = self._upright(kept.picture)
        if self._video is None:
            self._open_streams(picture, lying=orientation(kept.picture)[0])
        start, self._elapsed = self._elapsed, self._elapsed + kept.end - kept.start
        # Decoded frames remember how their source was coded; the encoder would repeat it.
        picture.pict_type = PictureType.I if kept.first_of_range else PictureType.NONE
        picture.pts, picture.time_base = self._on_clock(start), self._clock_s
        self._durations[picture.pts] = self._on_clock(self._elapsed) - picture.pts
        if self._sound is None:
            self._mux_video(picture)
            return
        packets = self._aside.submit(self._sound_of, self._sound, kept, start)
        self._mux_video(picture)
        self._container.mux(packets.result())

    def _open_streams(self, picture: Frame, *, lying: bool) -> None:
        source = self._source.codec_context
        encoder = next(filter(_has_encoder, _H264_ENCODERS), "mpeg4")
        rate = frame_rate(self._source) or Fraction(25)
        video: Stream = self._container.add_stream(encoder, rate=rate)
        video.width, video.height, video.pix_fmt = picture.width, picture.height, picture.format.name
        context = video.codec_context
        if shape := fraction(source.sample_aspect_ratio):  # of a pixel; on its side after a quarter turn
            context.sample_aspect_ratio = 1 / shape if lying else shape
        context.color_range, context.colorspace = picture.color_range, picture.colorspace
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        if encoder == "libx264":
            video.options = {"crf": str(self._crf), "preset": "veryfast"}
        else:
            _log.warning("this FFmpeg has no libx264: encoding with %s at a fixed bit rate, crf is ignored", encoder)
            context.bit_rate = int(picture.width * picture.height * rate * 0.15)
            if self._tick_s.denominator > 65535:  # finer than MPEG-4 part 2 can count
                self._clock_s = Fraction(1, 60000)
        context.time_base = self._clock_s
        if self._sound is not None:
            self._audio = self._container.add_stream("aac", rate=self._sound.rate_hz, layout=self._sound.layout)
            n_channels = self._sound.n_channels
            self._audio.codec_context.bit_rate = n_channels * min(_AUDIO_BIT_RATE_PER_CHANNEL, 6 * self._sound.rate_hz)
        self._video = video

    def _on_clock(self, ticks: int) -> int:
        return round(ticks * self._tick_s / self._clock_s)

    def _mux_video(self, picture: Frame) -> None:
        for packet in self._video.encode(picture):
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def _sound_of(self, sound: _Sound, kept: _Kept, start: int) -> list[Any]:
        """Packets of the sound up to the end of a frame, as far as they are complete."""
        film_sample = round(start * self._tick_s * sound.rate_hz)
        n_samples = round(self._elapsed * self._tick_s * sound.rate_hz) - film_sample
        if n_samples == 0:
            return []
        if kept.first_of_range:
            self._range_sample = film_sample
            self._range_source_sample = round(kept.start * self._tick_s * sound.rate_hz)
        samples = sound.take(self._range_source_sample + film_sample - self._range_sample, n_samples)
        ramp = np.linspace(0, 1, min(n_samples, round(_FADE_S * sound.rate_hz)), dtype=np.float32)
        if kept.first_of_range:
            samples[:, : len(ramp)] *= ramp
        if kept.last_of_range:
            samples[:, n_samples - len(ramp) :] *= ramp[::-1]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=sound.layout)
        frame.sample_rate, frame.time_base, frame.pts = sound.rate_hz, Fraction(1, sound.rate_hz), film_sample
        packets: list[Any] = self._audio.encode(frame)
        return packets


class _Upright:
    """Pictures as decoded -> upright, of even size, in 8-bit 4:2:0, all as large as the first one."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._orientation = Orientation()
        self._size: tuple[int, int] | None = None
        self._graph: Graph | None = None
        self._graph_key: tuple[Any, ...] = ()

    def __call__(self, picture: Frame) -> Frame:
        turn = self._orientation(picture)
        target = "yuvj420p" if picture.format.name == "yuvj420p" else "yuv420p"
        if picture.format.is_rgb:
            picture = self._reformatter.reformat(picture, format=target, dst_color_range=ColorRange.MPEG)
            picture.color_range, picture.colorspace = ColorRange.MPEG, _SMPTE170M  # what swscale made it
        else:
            picture = self._reformatter.reformat(picture, format=target)
        if any(turn) or picture.width % 2 or picture.height % 2:
            picture = self._turned(picture, turn)
        if self._size is None:
            self._size = picture.width, picture.height
        return self._reformatter.reformat(picture, *self._size)

    def _turned(self, picture: Frame, turn: tuple[bool, bool, bool]) -> Frame:
        key = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range, turn)
        if self._graph is None or key != self._graph_key:
            self._graph, self._graph_key = _turning_graph(picture, turn), key
        self._graph.vpush(picture)
        return self._graph.vpull()


def _turning_graph(picture: Frame, turn: tuple[bool, bool, bool]) -> Graph:
    transpose, flip_rows, flip_columns = turn
    width, height = (picture.height, picture.width) if transpose else (picture.width, picture.height)
    if min(width, height) < 2:
        raise VideoError(f"video: expected pictures of at least 2x2 pixels, got {width}x{height}; scale it up first")
    steps = (
        [("transpose", "dir=cclock_flip")] * transpose + [("vflip", "")] * flip_rows + [("hflip", "")] * flip_columns
    )
    steps.append(("crop", f"{width // 2 * 2}:{height // 2 * 2}:0:0"))
    graph = Graph()
    source = graph.add(
        "buffer",
        f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base={picture.time_base}"
        f":colorspace={int(picture.colorspace)}:range={int(picture.color_range)}",
    )
    graph.link_nodes(source, *(graph.add(*step) for step in steps), graph.add("buffersink")).configure()
    return graph


class _Sound:
    """The sound of a file as float32 samples at a steady rate, read forward; silence where there is none."""

    def __init__(self, container: Container, stream: Stream) -> None:
        context = stream.codec_context
        self.rate_hz = context.sample_rate if context.sample_rate in _AUDIO_RATES_HZ else 48000
        self.n_channels = context.channels if context.channels in _AUDIO_LAYOUTS else 2
        self.layout = _AUDIO_LAYOUTS[self.n_channels]
        self._pieces = self._decoded(container, stream)
        self._position, self._samples = 0, np.empty((self.n_channels, 0), dtype=np.float32)

    @classmethod
    def of(cls, container: Container) -> _Sound | None:
        stream = find_audio(container)
        return None if stream is None else cls(container, stream)

    def take(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples [channels, count] from `start` on, counted on the file's clock; starts must ascend."""
        taken = np.zeros((self.n_channels, count), dtype=np.float32)
        while True:
            end = self._position + self._samples.shape[1]
            first, last = max(start, self._position), min(start + count, end)
            if first < last:
                taken[:, first - start : last - start] = self._samples[
                    :, first - self._position : last - self._position
                ]
            if end >= start + count:
                return taken
            piece = next(self._pieces, None)
            if piece is None:
                return taken
            self._position, self._samples = piece

    def _decoded(self, container: Container, stream: Stream) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Pieces of sound, each with the position of its first sample; a gap in the time stamps starts a new run."""
        resampler: Any = None
        setting: tuple[Any, ...] = ()
        position = 0
        expected_s, tick_s = Fraction(0), time_base(stream)
        for frame, pts, _ in decode(container, stream):
            time_s = pts * tick_s
            found = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or found != setting or abs(time_s - expected_s) > _GAP_S:
                if resampler is not None:
                    yield from self._resampled(resampler, None, position)
                resampler, setting = av.AudioResampler("fltp", self.layout, self.rate_hz), found
                position, expected_s = round(time_s * self.rate_hz), time_s
            frame.pts = pts
            expected_s += Fraction(frame.samples, frame.sample_rate)
            for piece in self._resampled(resampler, frame, position):
                yield piece
                position = piece[0] + piece[1].shape[1]
        if resampler is not None:
            yield from self._resampled(resampler, None, position)

    def _resampled(self, resampler: Any, frame: Frame, position: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for resampled in resampler.resample(frame):
            samples = resampled.to_ndarray()
            yield position, samples
            position += samples.shape[1]


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:  # UnknownCodecError
        return False
    return True
