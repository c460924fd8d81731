"""A video and frame ranges -> a film of exactly those frames, of which only the borders are encoded.

What lies in a range from the first restart to the last clean end (`runtime.media.packets`) is copied; the pictures
before and after it are decoded and encoded again, each run of them starting anew. Two encoders' pictures lie in one
stream: the parameter sets of the second one bear another number, so that both stand in the head of the film, under the
sample entry ``avc1``, and every player of H.264 can follow. Sound is encoded, so that it joins to the sample.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.video.frame import PictureType
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media import nal_units, parameter_sets
from vsum_runtime.runtime.media.ahead import ahead
from vsum_runtime.runtime.media.decode import (
    Container,
    Frame,
    Stream,
    find_sounds,
    find_video,
    has_slots,
    open_container,
    read_packets,
)
from vsum_runtime.runtime.media.film import CONTAINERS
from vsum_runtime.runtime.media.film_copy import (
    FilmTimes,
    add_copy,
    cannot_keep_shape,
    first_tick,
    index_pictures,
    muxer_options,
    times_of,
)
from vsum_runtime.runtime.media.packets import Pictures
from vsum_runtime.runtime.media.rational import fraction, frame_rate, time_base
from vsum_runtime.runtime.media.sound import Sound
from vsum_runtime.runtime.media.sound_copy import Span
from vsum_runtime.runtime.targets import FILM

_log = logging.getLogger(__name__)

_PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le")
_PROGRESSIVE = (0, 1)  # of FFmpeg's field orders: unknown, progressive
_ENCODER_NAME = "libx264"
_ENCODER = {"preset": "ultrafast", "crf": "20"}  # by half larger than the exact cut's, no worse, and 3 times as quick
_FADE_S = 0.005  # against clicks at joins
_LEAST_COPIED = 0.1
"""Share of the pictures below which encoding all of them is as quick, and better compressed."""


class Unsuited(Exception):
    """The film cannot be made this way, or would gain nothing by it: cut exactly."""


class Run(NamedTuple):
    """Pictures that are all copied or all encoded, one after the other in the film."""

    is_copied: bool
    start: int
    stop: int
    """Ranks, half-open; those that are copied lie at these places, but for leading pictures."""


def smart_summary(
    source: str | os.PathLike[str],
    ranges: ArrayLike,
    frame_times_s: ArrayLike,
    out: str | os.PathLike[str],
    *,
    audio: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the frames of some ranges of a video, and their sound, as a film; encode no more than borders.

    Parameters
    ----------
    As `runtime.media.film.write_summary`.

    Raises
    ------
    Unsuited
        nothing is left: another codec than H.264, interlaced, parameters that change, an edit list of several pieces,
        or hardly a whole group inside the ranges
    InputError
        on ranges or a file name that cannot be
    VideoError
        the film cannot be written; nothing is left
    """
    target = Path(out)
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"out: expected a name ending in {', '.join(CONTAINERS)}, got {target.name}")
    kind = CONTAINERS[target.suffix.lower()]
    times = times_of(ranges, frame_times_s)
    first = first_tick(source)
    with open_container(source) as container:
        video = find_video(container, source)
        _check_codec(video)
        if has_slots(container, video):
            raise Unsuited("the file stores no presentation times")
        try:
            pictures = index_pictures(container, video, source)
        except VideoError as error:
            raise Unsuited(str(error)) from error
        if cannot_keep_shape(video, kind):
            raise Unsuited("only the container tells the shape of pixels")
        tick_s = float(time_base(video))
        if pictures.are_within(times, first, tick_s).any():
            raise Unsuited("a range begins or ends within a picture")
        wanted = pictures.ranks_at(times, first, tick_s)
    plan = _runs(pictures, wanted)
    with ExitStack() as opened, replacing(target) as temporary:
        container = opened.enter_context(open_container(source))
        sounds = []
        for number in range(len(find_sounds(container, audio))):  # each track is read on its own
            other = opened.enter_context(open_container(source))
            sounds.append(Sound(other, find_sounds(other, audio)[number]))
        try:
            with av.open(str(temporary), "w", format=kind, container_options=muxer_options(kind)) as film:
                film.metadata["comment"] = FILM
                _Film(film, container, find_video(container, source), sounds, pictures, wanted, plan).write(progress)
        except (FFmpegError, ValueError) as error:
            raise VideoError(f"{target}: expected to write the film, it failed: {error}") from error
    return target


def _check_codec(video: Stream) -> None:
    codec = video.codec_context
    if codec.name != "h264":
        raise Unsuited(f"borders of {codec.name} are not encoded here")
    field_order = getattr(codec, "field_order", _PROGRESSIVE[0])  # PyAV before 18 keeps it; frames say it one by one
    if field_order not in _PROGRESSIVE or codec.pix_fmt not in _PIXELS:
        raise Unsuited(f"pictures are {codec.pix_fmt}, field order {field_order}")
    try:
        av.Codec(_ENCODER_NAME, "w")
    except ValueError as error:
        raise Unsuited(f"this FFmpeg has no {_ENCODER_NAME}") from error


def _runs(pictures: Pictures, wanted: NDArray[np.int64]) -> list[list[Run]]:
    """Of each range of ranks, what is encoded and what is copied."""
    plan: list[list[Run]] = []
    n_copied = 0
    for low, high in wanted.tolist():
        inside = slice(*np.searchsorted(pictures.shown, [low, high]))
        if len(pictures.shown[inside]) != high - low or low == high:
            raise Unsuited("an edit list of several pieces")
        restarts = pictures.restarts[pictures.rank[pictures.restarts] >= low]
        start = int(restarts[0]) if len(restarts) else high
        stop = int(pictures.clean_ends[np.searchsorted(pictures.clean_ends, high, side="right") - 1])
        if pictures.rank[min(start, len(pictures.rank) - 1)] != start or stop <= start:
            plan.append([Run(False, low, high)])
            continue
        if ((pictures.changes >= start) & (pictures.changes < stop)).any():
            raise Unsuited("the codec's parameters change midway")
        plan.append(
            [
                run
                for run in (Run(False, low, start), Run(True, start, stop), Run(False, stop, high))
                if run.stop > run.start
            ]
        )
        n_copied += stop - start
    if n_copied < _LEAST_COPIED * int((wanted[:, 1] - wanted[:, 0]).sum()):
        raise Unsuited("hardly a whole group lies inside the ranges")
    return plan


class _Film:
    """The film being written."""

    def __init__(
        self,
        film: Container,
        container: Container,
        video: Stream,
        sounds: list[Sound],
        pictures: Pictures,
        wanted: NDArray[np.int64],
        plan: list[list[Run]],
    ) -> None:
        self._film, self._container, self._video = film, container, video
        self._pictures, self._runs = pictures, [run for runs in plan for run in runs]
        self._tick_s = time_base(video)
        order, running, spans = [], 0, []
        pts_of_rank = np.append(pictures.pts[pictures.order], pictures.end)
        film_pts = np.zeros(len(pictures.pts), dtype=np.int64)
        for (low, high), runs in zip(wanted.tolist(), plan, strict=True):
            start, end = int(pts_of_rank[low]), int(pts_of_rank[high])
            film_pts[low:high] = pts_of_rank[low:high] - start + running
            spans.append((start * self._tick_s, end * self._tick_s, running * self._tick_s))
            running += end - start
            for run in runs:
                order.append(pictures.rank[run.start : run.stop] if run.is_copied else np.arange(run.start, run.stop))
        self._ranks = np.concatenate(order)  # in the order of the film's packets
        self._times = FilmTimes(film_pts[self._ranks], running)
        self._n_written = 0
        codec = video.codec_context
        setup = bytes(codec.extradata or b"")
        self._length_size = parameter_sets.length_size(setup, codec.name)
        self._sets = sorted(parameter_sets.of_container(setup, codec.name))
        self._encoder_sets: list[bytes] = []
        self._copy = add_copy(film, video)
        self._sounds = [PieceSound(film, sound, spans) for sound in sounds]
        encoder = self._encoder()
        own = parameter_sets.units(bytes(encoder.extradata), None)
        self._copy.codec_context.extradata = parameter_sets.avc_record(
            self._sets + [unit for unit in own if unit[0] & 31 in (7, 8)]
        )
        self._own_setup = bytes(encoder.extradata)

    def write(self, progress: Callable[[float], None] | None) -> None:
        encoder: Any = None
        starts = {run.start for run in self._runs if not run.is_copied}
        ends = {run.stop for run in self._runs if not run.is_copied}
        n_read = 0
        with ahead(self._pieces(), n_waiting=4) as pieces:
            for rank, packet, picture in pieces:
                if n_read == len(self._ranks) or rank != self._ranks[n_read]:
                    raise Unsuited(f"the {rank}th picture came unexpectedly")
                n_read += 1
                if packet is not None:
                    self._mux(packet)
                else:
                    if rank in starts:
                        encoder = self._encoder()
                        if bytes(encoder.extradata) != self._own_setup:
                            raise Unsuited("the encoder's parameters change")
                    self._encode(encoder, picture)
                    if rank + 1 in ends:
                        self._encode(encoder, None)
                if progress is not None:
                    progress(n_read / len(self._ranks))
        if self._n_written != len(self._ranks):
            raise Unsuited(f"{self._n_written} of {len(self._ranks)} pictures came")
        for sound in self._sounds:
            self._film.mux(sound.rest())

    def _pieces(self) -> Iterator[tuple[int, Any, Frame | None]]:
        """In the order of the film, each with its rank: a packet to copy, or a picture to encode."""
        pictures = self._pictures
        wanted = {
            int(pictures.pts[pictures.order[r]]): r for run in self._runs if not run.is_copied for r in range(*run[1:])
        }
        is_copied = np.zeros(len(pictures.pts), dtype=bool)
        for run in self._runs:
            is_copied[run.start : run.stop] |= run.is_copied
        regions = self._regions()
        last = max([stop for _, stop in regions] + [run.stop for run in self._runs])
        codec = self._video.codec_context
        units = nal_units.READERS[codec.name](bytes(codec.extradata or b""))
        place = 0
        for packet in read_packets(self._container, self._video):
            if packet.size == 0:
                continue
            if regions and place == regions[0][1]:
                yield from self._shown(codec.decode(None), wanted)
                codec.flush_buffers()
                regions.pop(0)
            if place == last:
                return
            if regions and place >= regions[0][0] and self._is_needed(packet, units, wanted):
                frames = codec.decode(packet)
            else:
                frames = []
            if is_copied[place]:
                yield int(pictures.rank[place]), packet, None
            yield from self._shown(frames, wanted)
            place += 1
        if regions:
            yield from self._shown(codec.decode(None), wanted)

    def _regions(self) -> list[tuple[int, int]]:
        """Places from an entry to a clean end between which the pictures to encode can be decoded."""
        regions: list[tuple[int, int]] = []
        for run in self._runs:
            if run.is_copied:
                continue
            start = self._pictures.entry_for(run.start, restart=False)
            if start is None:
                raise Unsuited("no key frame before the first range")
            stop = self._pictures.clean_end_for(run.start, run.stop)
            while regions and start < regions[-1][1]:
                before = regions.pop()
                start, stop = before[0], max(stop, before[1])
            regions.append((start, stop))
        return regions

    @staticmethod
    def _is_needed(packet: Any, units: nal_units.Reader, wanted: dict[int, int]) -> bool:
        if packet.pts in wanted:
            return True
        try:
            said = units.read(bytes(packet))
        except ValueError:
            return True
        return said.is_reference or said.is_needed

    def _shown(self, frames: list[Frame], wanted: dict[int, int]) -> Iterator[tuple[int, Any, Frame | None]]:
        for frame in frames:
            rank = wanted.get(frame.pts)
            if rank is not None:
                if frame.is_corrupt or frame.interlaced_frame:
                    raise Unsuited(f"a damaged or interlaced picture at {frame.pts}")
                yield rank, None, frame

    def _encoder(self) -> Any:
        source = self._video.codec_context
        context: Any = av.CodecContext.create(_ENCODER_NAME, "w")
        context.width, context.height, context.pix_fmt = source.width, source.height, source.pix_fmt
        context.time_base, context.framerate = self._tick_s, frame_rate(self._video) or Fraction(25)
        shape = fraction(source.sample_aspect_ratio)
        if shape is not None:
            context.sample_aspect_ratio = shape
        context.color_range, context.colorspace = source.color_range, source.colorspace
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        context.max_b_frames = 0
        context.flags |= Flags.global_header
        number = parameter_sets.free_number(self._sets)
        context.options = _ENCODER | {"x264-params": f"sps-id={number}:stitchable=1"}
        context.open()
        return context

    def _encode(self, encoder: Any, picture: Frame | None) -> None:
        if picture is not None:
            picture.pict_type, picture.time_base = PictureType.NONE, self._tick_s
        for packet in encoder.encode(picture):
            data = parameter_sets.with_lengths(bytes(packet), None)
            encoded = av.Packet(data)
            encoded.is_keyframe = packet.is_keyframe
            self._mux(encoded, is_own=True)

    def _mux(self, packet: Any, *, is_own: bool = False) -> None:
        if not is_own and self._length_size != 4:
            is_key = packet.is_keyframe
            packet = av.Packet(parameter_sets.with_lengths(bytes(packet), self._length_size))
            packet.is_keyframe = is_key
        self._times.stamp(packet, self._n_written, self._tick_s)
        packet.stream = self._copy
        for sound in self._sounds:
            self._film.mux(sound.until((packet.pts + packet.duration) * self._tick_s))
        self._film.mux(packet)
        self._n_written += 1


class PieceSound:
    """The sound of some pieces of a video, cut to the sample and encoded."""

    def __init__(self, film: Container, sound: Sound, spans: list[Span]) -> None:
        rate = sound.rate_hz
        self._sound, self._stream = sound, film.add_stream("aac", rate=rate, layout=sound.layout)
        self._stream.codec_context.bit_rate = sound.n_channels * min(96_000, 6 * rate)
        if sound.language:
            self._stream.metadata["language"] = sound.language
        self._spans = []  # start in the source, start and end in the film, samples
        for start_s, end_s, running_s in spans:
            film_end = round((running_s + end_s - start_s) * rate)
            self._spans.append((round(start_s * rate), round(running_s * rate), film_end))
        self._n = 0  # samples of the film so far

    def until(self, film_s: Fraction) -> list[Any]:
        """Packets of the film up to a time, as far as they are complete."""
        rate, packets = self._sound.rate_hz, []
        until = min(round(film_s * rate), self._spans[-1][2])
        while self._n < until:
            start, begin, end = next(span for span in self._spans if self._n < span[2])
            n = min(until, end, self._n + rate) - self._n
            samples = self._sound.take(start + self._n - begin, n)
            fade = round(_FADE_S * rate)
            place = np.arange(self._n, self._n + n)
            samples *= np.clip(np.minimum(place - begin, end - 1 - place) / fade, 0, 1, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self._sound.layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), self._n
            packets += self._stream.encode(frame)
            self._n += n
        return packets

    def rest(self) -> list[Any]:
        """Packets up to the end of the film."""
        return [*self.until(Fraction(self._spans[-1][2], self._sound.rate_hz)), *self._stream.encode(None)]
