"""A video and frame ranges -> a film copied out of it without encoding: fast, no loss, cut only at key frames.

A compressed picture can be shown only if those it builds on are there, back to a key frame. Every range therefore grows
at its start to the entry before it and at its end by the few pictures that were put before others which are still
needed (`runtime.media.packets`); ranges that then touch are one. The film is longer than what was asked for: `Copied`
says by how much.

When pictures are to be decoded is told anew: in the order of the file, each as many pictures ahead of its place on the
screen as the film's order needs. Sound is placed by its own time stamps, independently of where the file interleaves
it, and pieces join within one packet of it; PCM is cut to the sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media import parameter_sets
from vsum_runtime.runtime.media.decode import (
    Container,
    Stream,
    decode,
    find_sounds,
    find_video,
    has_slots,
    open_container,
    read_packets,
    usual_duration,
)
from vsum_runtime.runtime.media.film import CONTAINERS, checked_ranges
from vsum_runtime.runtime.media.packets import Pictures, read_pictures
from vsum_runtime.runtime.media.rational import fraction, time_base
from vsum_runtime.runtime.media.sound_copy import HAS_EDIT_LISTS, copy_sound
from vsum_runtime.runtime.targets import FILM

_EXACT = "cut exactly instead (--cut exact)"
_LOOKED_AT = 64  # pictures, to learn whether they are shown in another order than they are decoded in


@dataclass(frozen=True)
class Copied:
    """What became of the ranges."""

    segments_s: list[tuple[float, float]]
    """Start and end of every copied piece in the source, seconds."""

    @property
    def duration_s(self) -> float:
        return sum(end - start for start, end in self.segments_s)


class Piece(NamedTuple):
    """Pictures that are copied together."""

    start_place: int
    stop_place: int
    """In the order of decoding, half-open."""
    low_rank: int
    """Pictures of lower rank are leading ones of the entry, and are left out."""
    start: int
    end: int
    """From when the first picture is shown and until when the last one is, ticks of the source's clock."""
    running: int
    """When the first picture is shown in the film, ticks."""


def copy_summary(
    source: str | os.PathLike[str],
    ranges: ArrayLike,
    frame_times_s: ArrayLike,
    out: str | os.PathLike[str],
    *,
    audio: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Copied:
    """Copy some ranges of a video, and their sound, grown to where decoding can begin and end.

    Parameters
    ----------
    source
        video file
    ranges : int [K, 2]
        half-open ranges of frames, ascending, K >= 1
    frame_times_s : float [N + 1]
        as `runtime.media.frames.FrameReader` gives them
    out : file to write
        .mp4, .m4v, .mov or .mkv; it must be able to hold the source's codecs
    audio : str or None
        which sound tracks, as `runtime.media.decode.find_sounds` takes it
    progress : callable
        told the share of the work that is done, 0..1

    Raises
    ------
    InputError
        on ranges, a file name or a track that cannot be
    VideoError
        no right copy is possible: packets without time stamps, no key frame to begin at, parameters that change midway,
        an edit list of several pieces, or codecs that `out` cannot hold; nothing is left
    """
    target = Path(out)
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"out: expected a name ending in {', '.join(CONTAINERS)}, got {target.name}")
    kind = CONTAINERS[target.suffix.lower()]
    wanted = times_of(ranges, frame_times_s)
    first = first_tick(source)
    with open_container(source) as container:
        video = find_video(container, source)
        tick_s = time_base(video)
        pictures = index_pictures(container, video, source)
        loses_shape = cannot_keep_shape(video, kind)
    ticks = first + np.rint(wanted / float(tick_s)).astype(np.int64)
    pieces = _pieces(pictures, pictures.ranks_at(wanted, first, float(tick_s)), ticks, source)
    _check_hidden(pictures, pieces, kind, source)
    if loses_shape:
        raise VideoError(f"{source}: its container alone tells the shape of pixels; name the film .mp4, or {_EXACT}")
    with open_container(source) as container, replacing(target) as temporary:
        video, sounds = find_video(container, source), find_sounds(container, audio)
        try:
            with av.open(str(temporary), "w", format=kind, container_options=muxer_options(kind)) as film:
                film.metadata["comment"] = FILM
                _copy(container, video, sounds, film, pictures, pieces, progress)
        except (FFmpegError, ValueError) as error:
            raise VideoError(
                f"{target}: expected to copy {Path(source).name} into it, it failed: {error}; "
                f"choose another of {', '.join(CONTAINERS)}, or {_EXACT}"
            ) from error
    return Copied([(float((p.start - first) * tick_s), float((p.end - first) * tick_s)) for p in pieces])


def times_of(ranges: ArrayLike, frame_times_s: ArrayLike) -> NDArray[np.float64]:
    """Start and end of ranges of frames [K, 2], seconds."""
    checked = np.array(checked_ranges(ranges))
    times: NDArray[np.float64] = np.asarray(frame_times_s, dtype=np.float64)
    if checked[-1, 1] >= len(times):
        raise VideoError(
            f"ranges: expected a video of at least {checked[-1, 1]} frames, got the times of {len(times) - 1}; "
            "has the file changed since it was summarized?"
        )
    starts_ends: NDArray[np.float64] = times[checked]
    return starts_ends


def muxer_options(kind: str) -> dict[str, str]:
    """The sphere of a 360 degree video is written only on request; the index comes first: a film plays as it loads."""
    return {"strict": "unofficial"} | ({} if kind == "matroska" else {"movflags": "+faststart"})


def first_tick(source: str | os.PathLike[str]) -> int:
    """When the first picture that can be decoded is shown: not always that of the first packet."""
    with open_container(source) as container:
        for _, pts, _ in decode(container, find_video(container, source)):
            return pts
    raise VideoError(f"{source}: expected frames, none could be decoded; get the file again")


def index_pictures(container: Container, video: Stream, source: str | os.PathLike[str]) -> Pictures:
    """Those of a whole file, from its packets; VideoError where they tell too little to copy them."""
    slots: list[int] = []

    def packets() -> Iterator[tuple[Any, int, int]]:
        for packet in read_packets(container, video):
            if packet.size == 0:
                continue
            if packet.pts is None or (packet.dts is None and has_slots(container, video)):
                raise VideoError(f"{source}: its packets have no time stamps, so they cannot be copied; {_EXACT}")
            slots.append(packet.dts)
            yield packet, packet.pts, packet.duration or 0

    codec = video.codec_context
    pictures = read_pictures(packets(), codec.name, bytes(codec.extradata or b""))
    if len(pictures.entries) == 0:
        raise VideoError(f"{source}: expected key frames to begin at, found none; {_EXACT}")
    in_file_order = bool((np.diff(pictures.pts) > 0).all())
    if in_file_order and codec.has_b_frames and _is_reordered(source):
        raise VideoError(f"{source}: its time stamps do not tell in which order its pictures are shown; {_EXACT}")
    if has_slots(container, video):
        times = np.sort(np.array(slots, dtype=np.int64))
        return replace(pictures, pts=times[pictures.rank], end=int(times[-1]) + usual_duration(video))
    return pictures


def _is_reordered(source: str | os.PathLike[str]) -> bool:
    """Whether the decoder gives the first pictures in another order than that of their time stamps."""
    with open_container(source) as container:
        frames = islice(container.decode(find_video(container, source)), _LOOKED_AT)
        times = [frame.pts for frame in frames if frame.pts is not None]
    return any(later <= earlier for earlier, later in pairwise(times))


def _pieces(
    pictures: Pictures, wanted: NDArray[np.int64], ticks: NDArray[np.int64], source: str | os.PathLike[str]
) -> list[Piece]:
    """Ranges of ranks, and of times -> what has to be copied for them; those that touch are one.

    A picture that is shown from before a range, or until after it, is shown for the range alone, unless it is there for
    the sake of others.
    """
    places: list[tuple[int, int, int, int]] = []  # places, and the first and last range between them
    for number, (low, high) in enumerate(wanted.tolist()):
        start = pictures.entry_for(low, restart=bool(places))
        if start is None and places:
            start = places[-1][1]  # all in between
        if start is None:
            raise VideoError(f"{source}: expected a key frame before the first range, found none; {_EXACT}")
        stop, since = pictures.clean_end_for(low, max(high, low + 1)), number
        is_apart = number > 0 and ticks[number, 0] > ticks[number - 1, 1] and pictures.rank[start] == low
        while places and (start < places[-1][1] or (start == places[-1][1] and not is_apart)):
            earlier = places.pop()
            start, since = min(start, earlier[0]), earlier[2]
        places.append((start, stop, since, number))
    pieces: list[Piece] = []
    running = 0
    for start, stop, since, until in places:
        if ((pictures.changes >= start) & (pictures.changes < stop)).any():
            raise VideoError(f"{source}: its codec's parameters change midway, so it cannot be copied; {_EXACT}")
        low_rank, stop_rank = int(pictures.rank[start]), int(pictures.rank[:stop].max()) + 1
        shown = pictures.shown[(pictures.shown >= low_rank) & (pictures.shown < stop_rank)]
        at, end = pictures.time_of_rank(int(shown[0])), pictures.time_of_rank(stop_rank)
        if wanted[since, 0] == shown[0]:
            at = max(at, int(ticks[since, 0]))
        if wanted[until, 1] == stop_rank:
            end = min(end, int(ticks[until, 1]))
        pieces.append(Piece(start, stop, low_rank, at, end, running))
        running += end - at
    return pieces


def _check_hidden(pictures: Pictures, pieces: list[Piece], kind: str, source: str | os.PathLike[str]) -> None:
    """The film can hide pictures too, but only before its first one, and only with an edit list."""
    for number, piece in enumerate(pieces):
        ranks = pictures.rank[piece.start_place : piece.stop_place]
        ranks = np.sort(ranks[ranks >= piece.low_rank])
        is_shown = np.isin(ranks, pictures.shown)
        n_before = int(np.argmax(is_shown))
        last = len(ranks) - int(np.argmax(is_shown[::-1]))
        if not is_shown[n_before:last].all() or (n_before and number > 0):
            raise VideoError(f"{source}: its edit list has several pieces, so it cannot be copied; {_EXACT}")
        if n_before and kind not in HAS_EDIT_LISTS:
            raise VideoError(
                f"{source}: the film would show pictures that the source's edit list hides; "
                f"choose a name ending in .mp4, or {_EXACT}"
            )


def _copy(
    container: Container,
    video: Stream,
    sounds: list[Stream],
    film: Container,
    pictures: Pictures,
    pieces: list[Piece],
    progress: Callable[[float], None] | None,
) -> None:
    tick_s, codec = time_base(video), video.codec_context
    spans = [(p.start * tick_s, p.end * tick_s, p.running * tick_s) for p in pieces]
    copy = add_copy(film, video)
    tracks = {sound.index: copy_sound(film, sound, spans) for sound in sounds}
    times = _film_times(pictures, pieces)
    length_size = parameter_sets.length_size(bytes(codec.extradata or b""), codec.name)
    place = number = n_copied = 0
    for packet in read_packets(container, video, *sounds):
        if packet.size == 0:
            continue
        if packet.stream_index != video.index:
            if packet.pts is not None:
                film.mux(tracks[packet.stream_index].take(packet))
            continue
        while number < len(pieces) and place >= pieces[number].stop_place:
            number += 1
        if number == len(pieces):
            if all(track.is_complete for track in tracks.values()):
                break
            continue
        piece = pieces[number]
        if place >= piece.start_place and pictures.rank[place] >= piece.low_rank:
            if codec.name == "hevc" and number > 0 and place == piece.start_place:
                packet = _with_data(packet, parameter_sets.as_splice(bytes(packet), length_size))
            times.stamp(packet, n_copied, tick_s)
            packet.stream = copy
            film.mux(packet)
            n_copied += 1
        place += 1
        if progress is not None:
            progress(min(1.0, place / pieces[-1].stop_place))
    for track in tracks.values():
        film.mux(track.rest())


def _film_times(pictures: Pictures, pieces: list[Piece]) -> FilmTimes:
    times = []
    for piece in pieces:
        inside = slice(piece.start_place, piece.stop_place)
        pts = pictures.pts[inside]
        is_cut = (pts < piece.start) & np.isin(pictures.rank[inside], pictures.shown)  # hidden ones stay before it
        is_taken = pictures.rank[inside] >= piece.low_rank
        times.append(np.where(is_cut, piece.start, pts)[is_taken] - piece.start + piece.running)
    return FilmTimes(np.concatenate(times), pieces[-1].running + pieces[-1].end - pieces[-1].start)


class FilmTimes:
    """When the pictures of a film are shown and decoded, and for how long.

    pts : int [N]   ticks, in the order of decoding
    end : int       of the last picture
    """

    def __init__(self, pts: NDArray[np.int64], end: int) -> None:
        order, steps = np.argsort(pts, kind="stable"), np.arange(len(pts))
        rank = np.empty_like(order)
        rank[order] = steps
        shown = np.maximum.accumulate(pts[order] - steps) + steps  # no two at once
        self._pts = shown[rank]
        self._durations = np.maximum(1, np.append(shown[1:], end) - shown)[rank]
        ahead = int((steps - rank).max())  # pictures that are decoded before one that is shown earlier
        step = max(1, int(np.median(np.diff(shown)))) if len(shown) > 1 else 1
        self._dts = np.append(shown[0] - step * np.arange(ahead, 0, -1), shown)

    def stamp(self, packet: Any, index: int, tick_s: Fraction) -> None:
        """Tell the `index`-th packet of the film its times."""
        packet.pts, packet.dts, packet.duration = map(int, (self._pts[index], self._dts[index], self._durations[index]))
        packet.time_base = tick_s


def cannot_keep_shape(stream: Stream, kind: str) -> bool:
    """Whether only the container tells the shape of pixels: PyAV has no way to tell it to FFmpeg's Matroska writer."""
    shape = fraction(stream.sample_aspect_ratio)
    return (
        kind == "matroska" and shape is not None and shape != (fraction(stream.codec_context.sample_aspect_ratio) or 1)
    )


def add_copy(film: Container, stream: Stream) -> Stream:
    """A stream of the film for the pictures of the source: their codec, sample entry, shape and side data."""
    copy = film.add_stream_from_template(stream, opaque=True)
    copy.time_base = time_base(stream)
    codec = copy.codec_context
    shape = fraction(stream.sample_aspect_ratio)
    if shape is not None:
        codec.sample_aspect_ratio = shape
    if film.format.name in HAS_EDIT_LISTS and stream.codec_context.name == "hevc":
        codec.codec_tag = "hev1" if stream.codec_context.codec_tag == "hev1" else "hvc1"
    return copy


def _with_data(packet: Any, data: bytes) -> Any:
    other = av.Packet(data)
    other.is_keyframe = packet.is_keyframe
    return other
