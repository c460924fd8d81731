"""A video and frame ranges -> a film copied out of it without encoding: fast, no loss, cut only at key frames.

A compressed picture can be shown only if those it builds on are there, back to a key frame. Every range therefore grows
to the key frame at or before its start and to the one at or after its end; ranges that then touch are one. The film is
longer than what was asked for: `Copied` says by how much.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import ArrayLike

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.film import CONTAINERS, checked_ranges
from vsum_runtime.runtime.media.frames import Container, Stream, find_audio, find_video, open_container
from vsum_runtime.runtime.media.rational import time_base

_MOST_REORDERED = 16  # pictures that may be decoded before one that is shown earlier


@dataclass(frozen=True)
class Copied:
    """What became of the ranges."""

    segments_s: list[tuple[float, float]]
    """Start and end of every copied piece in the source, seconds."""

    @property
    def duration_s(self) -> float:
        return sum(end - start for start, end in self.segments_s)


def copy_summary(
    source: str | os.PathLike[str],
    ranges: ArrayLike,
    frame_times_s: ArrayLike,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[float], None] | None = None,
) -> Copied:
    """Copy some ranges of a video, and their sound, grown to key frames.

    Parameters
    ----------
    source : video file
    ranges : int [K, 2]             half-open ranges of frames, ascending, K >= 1
    frame_times_s : float [N + 1]   as `runtime.media.frames.FrameReader` gives them
    out : file to write             .mp4, .m4v, .mov or .mkv; it must be able to hold the source's codecs
    progress : callable             told the share of the work that is done, 0..1

    Raises
    ------
    InputError    on ranges or a file name that cannot be
    VideoError    the source has packets without time stamps, or codecs that `out` cannot hold; nothing is left
    """
    target = Path(out)
    if target.suffix.lower() not in CONTAINERS:
        raise InputError(f"out: expected a name ending in {', '.join(CONTAINERS)}, got {target.name}")
    times = np.asarray(frame_times_s, dtype=np.float64)
    wanted = [(float(times[start]), float(times[end])) for start, end in checked_ranges(ranges)]
    with open_container(source) as container:
        keys, first, end = _key_frames(container, find_video(container, source), source)
    pieces = _grown(wanted, keys, first, end)
    with open_container(source) as container, replacing(target) as temporary:
        try:
            with av.open(str(temporary), "w", format=CONTAINERS[target.suffix.lower()]) as film:
                _copy(container, find_video(container, source), film, pieces, first, progress)
        except (FFmpegError, ValueError) as error:
            raise VideoError(
                f"{target}: expected to copy {Path(source).name} into it, it failed: {error}; "
                "cut exactly instead, or choose a name ending in .mkv"
            ) from error
    return Copied([(float(start - first), float(stop - first)) for start, stop in pieces])


def _key_frames(
    container: Container, stream: Stream, source: str | os.PathLike[str]
) -> tuple[list[Fraction], Fraction, Fraction]:
    """Times of the key frames, of the first picture and of the end, in seconds of the file's clock; decodes nothing."""
    keys, first, end = [], None, Fraction(0)
    tick_s = time_base(stream)
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is None:
            raise VideoError(
                f"{source}: its packets have no time stamps, so they cannot be copied; cut exactly instead"
            )
        at = packet.pts * tick_s
        first = at if first is None else min(first, at)
        end = max(end, at + (packet.duration or 0) * tick_s)
        if packet.is_keyframe:
            keys.append(at)
    if first is None or not keys:
        raise VideoError(f"{source}: expected key frames, found none; cut exactly instead")
    return sorted(keys), first, end


def _grown(
    wanted: list[tuple[float, float]], keys: list[Fraction], first: Fraction, end: Fraction
) -> list[tuple[Fraction, Fraction]]:
    """Ranges in seconds from 0 -> ranges from key frame to key frame on the file's clock, joined where they touch."""
    forgiven = Fraction(1, 1000)  # half a millisecond of rounding at either side must not cost a whole group
    pieces: list[tuple[Fraction, Fraction]] = []
    for start_s, end_s in wanted:
        before = bisect_right(keys, first + Fraction(start_s) + forgiven) - 1
        after = bisect_left(keys, first + Fraction(end_s) - forgiven)
        start, stop = keys[max(0, before)], keys[after] if after < len(keys) else end
        if pieces and start <= pieces[-1][1]:
            start = pieces.pop()[0]
        pieces.append((start, stop))
    return pieces


def _copy(
    container: Container,
    video: Stream,
    film: Container,
    pieces: list[tuple[Fraction, Fraction]],
    first: Fraction,
    progress: Callable[[float], None] | None,
) -> None:
    audio = find_audio(container)
    sources = [video] if audio is None else [video, audio]
    copies = {stream.index: film.add_stream_from_template(stream) for stream in sources}
    last_dts: dict[int, int] = {}
    current, running = 0, Fraction(0)  # the piece that is read, and where it begins in the film
    for packet in container.demux(*sources):
        if packet.size == 0 or packet.pts is None:
            continue
        stream = packet.stream
        tick_s = time_base(packet)
        at = packet.pts * tick_s
        if stream is video and packet.is_keyframe and at >= pieces[current][1]:
            running += pieces[current][1] - pieces[current][0]
            current += 1
            while current < len(pieces) and pieces[current][1] <= at:
                running += pieces[current][1] - pieces[current][0]
                current += 1
            if current == len(pieces):
                break
        start, stop = pieces[current]
        if progress is not None and stream is video:
            progress(
                float(min(Fraction(1), max(Fraction(0), at - first) / max(pieces[-1][1] - first, Fraction(1, 1000))))
            )
        if not start <= at < stop:  # also pictures shown before the key frame that they follow in the file
            continue
        shift = round((running - start) / tick_s)
        pts = packet.pts + shift
        # Matroska leaves out when the first pictures are to be decoded: shortly before they are shown, in order.
        dts = pts - _MOST_REORDERED if packet.dts is None else packet.dts + shift
        dts = max(dts, last_dts.get(stream.index, dts - 1) + 1)
        if dts > pts:  # sound of two pieces overlaps by less than one packet at their join
            continue
        last_dts[stream.index] = dts
        packet.pts, packet.dts, packet.stream = pts, dts, copies[stream.index]
        film.mux(packet)
