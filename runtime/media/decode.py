"""A media file -> its pictures, its sounds, and their decoded frames; what is damaged is passed over.

Only the file itself is read, and only if it is media: FFmpeg would also follow playlists, manifests and scripts, which
name other files and addresses. Those are refused before anything in them is opened, by a list of the demuxers of media
(`MEDIA_FORMATS`), and no protocol but plain files is allowed besides.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.machine import cpu_count
from vsum_runtime.runtime.media.clock import packets
from vsum_runtime.runtime.media.rational import frame_rate, time_base
from vsum_runtime.runtime.releases import why_unsupported

# PyAV's own annotations differ between releases and make every time base optional; these names say what is meant.
Container: TypeAlias = Any
Stream: TypeAlias = Any
Frame: TypeAlias = Any

_log = logging.getLogger(__name__)

_MOST_REORDERED = 16  # pictures that a codec may hold back

MEDIA_FORMATS = (
    # pictures, mostly with sound
    "3gp 4xm alias_pix anm apng asf asf_o av1 avi avs avs2 avs3 bethsoftvid bfi bink bmp_pipe bmv c93 cavsvideo "
    "cdxl cine dfa dhav dirac dnxhd dsicin dv dxa ea evc film_cpk filmstrip flic flv gdv gif gif_pipe gxf h261 h263 "
    "h264 hevc hnm idcin idf ifv ipmovie ipu iss iv8 ivf ivr j2k_pipe jpeg_pipe jpegxl_anim jpegxl_pipe jv kux "
    "live_flv lmlm4 lvf lxf m4a m4v matroska mgsts mj2 mjpeg mjpeg_2000 mlv mm mods moflex mov mp4 mpeg mpegts "
    "mpegvideo mpjpeg mtv mv mvi mxf mxg nc nsv nut nuv obu ogg paf pdv pmp png_pipe psxstr pva qoi_pipe r3d rl2 rm "
    "roq rpl rsd sdr2 sga siff smjpeg smk smush swf thp tiertexseq tiff_pipe tmv truehd ty txd usm vc1 vc1test "
    "vividas vivo vmd vqf vvc wc3movie webm webp_anim webp_pipe wsvqa wtv xmv yop yuv4mpegpipe "
    # sound alone, so that the message can say what is missing
    "aac ac3 aiff amr ape au caf dts eac3 flac mp3 tak tta voc w64 wav wv"
)
"""Names of FFmpeg's demuxers of media. Not among them, on purpose: concat, hls, dash, imf, sdp, image2 (patterns of
file names), captions and other text, raw samples of unknown shape, devices, and the script readers avisynth and
vapoursynth."""

_NOT_MEDIA = {
    b"#EXTM3U": "an HLS or M3U playlist",
    b"ffconcat": "a concat script",
    b"<?xml": "an XML manifest, as of DASH or Smooth Streaming",
    b"<MPD": "a DASH manifest",
    b"<SmoothStreamingMedia": "a Smooth Streaming manifest",
    b"<asx": "an ASX playlist",
    b"[playlist]": "a PLS playlist",
    b"[Reference]": "an ASF reference",
    b"v=0": "an SDP description",
    b"RTSPtext": "an RTSP address",
    b";FFMETADATA": "a metadata file",
}
"""How files begin that only name others -> what they are."""


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open a media file for reading.

    Raises
    ------
    VideoError
        there is nothing, a directory or a device, an empty file, or one that is no media; says which
    """
    _warn_of_other_releases()
    file = Path(path)
    advice = "give the path of a video file"
    if not file.exists():
        raise VideoError(f"{file}: expected a video file, found nothing there; {advice}")
    if not file.is_file():
        raise VideoError(
            f"{file}: expected a video file, found {'a directory' if file.is_dir() else 'a device'}; {advice}"
        )
    try:
        if file.stat().st_size == 0:
            raise VideoError(f"{file}: expected a video file, found an empty one (0 bytes); copy or download it again")
        # "file:", so that a name with a colon is a name; the lists, so that nothing in the file opens anything else.
        options = {"protocol_whitelist": "file", "format_whitelist": MEDIA_FORMATS.replace(" ", ",")}
        # To the container alone: PyAV 15 ends the process if streams that appear late (FLV) get options, too.
        return av.open(f"file:{file}", container_options=options)
    except (FFmpegError, OSError, ValueError) as error:
        if kind := _kind_of_list(file):
            raise VideoError(
                f"{file}: expected a video file, found {kind}, which only names other files; give one of those"
            ) from error
        if isinstance(error, av.error.ArgumentError) and set(file.name) & set("%*?[{"):
            advice = "its name reads like a pattern of the names of many pictures, rename it"
        raise VideoError(
            f"{file}: expected a video file, it cannot be read as one: {_reason(error)}; {advice}"
        ) from error


@cache
def _warn_of_other_releases() -> None:
    """Say once that PyAV is of a release that we do not support; most files come out right all the same."""
    if (reason := why_unsupported("av")) is not None:
        _log.warning(reason)


def _kind_of_list(file: Path) -> str | None:
    """What a text is that names media elsewhere; None for anything else."""
    try:
        with file.open("rb") as opened:
            start = opened.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    except OSError:
        return None
    return next((kind for sign, kind in _NOT_MEDIA.items() if start.startswith(sign.lower())), None)


def find_video(container: Container, path: str | os.PathLike[str], n_threads: int | None = None) -> Stream:
    """The main video stream, its decoder set to `n_threads`, or to use all processors.

    Cover pictures and thumbnails do not count.

    Raises
    ------
    VideoError
        no video stream, or one of an unknown codec
    """
    stream = _main_video(container)
    if stream is None:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise VideoError(f"{path}: expected a video stream, found only {', '.join(kinds)}; give a file with pictures")
    if stream.codec_context is None:
        raise VideoError(f"{path}: expected a codec that FFmpeg decodes, found an unknown one; convert the file first")
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = n_threads or cpu_count()  # FFmpeg's own count looks past a container's quota
    return stream


def find_audio(container: Container) -> Stream | None:
    """The default sound of the main video's programme, or None; one of an unknown codec is left out with a warning."""
    stream = container.streams.best("audio", related=_main_video(container))
    if stream is not None and stream.codec_context is None:
        _log.warning("%s: the sound has a codec that this FFmpeg does not know, it is left out", container.name)
        return None
    return stream


def find_sounds(container: Container, choice: str | None = None) -> list[Stream]:
    """The chosen sound tracks of the main video's programme.

    Parameters
    ----------
    choice
        None: the default one; "all"; a number, counted from 1; or a language as the file states it ("eng")

    Raises
    ------
    InputError
        there is no such track; names those there are
    """
    default = find_audio(container)
    if choice is None:
        return [] if default is None else [default]
    tracks = [stream for stream in _programme(container) if stream.type == "audio" and stream.codec_context is not None]
    languages = [str(track.metadata.get("language", "und")) for track in tracks]
    if choice == "all":
        return tracks
    if choice.isdecimal() and 1 <= int(choice) <= len(tracks):
        return [tracks[int(choice) - 1]]
    spoken = [track for track, language in zip(tracks, languages, strict=True) if language.lower() == choice.lower()]
    if spoken:
        return [default if default in spoken else spoken[0]]
    there = ", ".join(f"{number} ({language})" for number, language in enumerate(languages, 1)) or "none"
    raise InputError(f"audio: expected 'all', a track's number or its language, got {choice!r}; there are: {there}")


def _main_video(container: Container) -> Stream | None:
    """FFmpeg's choice of the video streams, or the first one where that is only a still beside the film."""
    best = container.streams.best("video")
    if best is None or not _is_still(best):
        return best
    return next((stream for stream in container.streams.video if not _is_still(stream)), None)


def _is_still(stream: Stream) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _programme(container: Container) -> list[Stream]:
    """The main video, and all sound that is not of another programme, in the order of the file."""
    video = _main_video(container)
    return [
        stream
        for stream in container.streams
        if stream is video or (stream.type == "audio" and _is_of(container, stream, video))
    ]


def _is_of(container: Container, sound: Stream, video: Stream | None) -> bool:
    """PyAV lists no programmes; but the best video for a sound in a programme is one of that programme."""
    related = container.streams.best("video", related=sound)
    return related is None or related is video or _is_still(related)


def read_packets(container: Container, *streams: Stream) -> Iterator[Any]:
    """Packets of some streams, as `clock.packets` gives them by all streams of the main video's programme."""
    return packets(container, streams, [other for other in _programme(container) if other not in streams])


def decode(container: Container, stream: Stream) -> Iterator[tuple[Frame, int, int]]:
    """Decode a stream forward, skipping what is damaged.

    Yields
    ------
    frame
        av.VideoFrame or av.AudioFrame
    pts : int
        presentation time in ticks of `stream.time_base`, strictly increasing
    duration : int
        ticks until the next frame is expected, > 0

    Notes
    -----
    Times are those of the film's `clock`. Absent ones continue from the frame before; where presentation times run
    backwards more often than decoding times, those are used instead (FFmpeg's own rule). AVI stores none: its pictures
    lie in the order of decoding, one in each slot of its clock, and the n-th that is shown takes the n-th slot.
    """
    faults = {"pts": 0, "dts": 0}
    last = {"pts": None, "dts": None}
    previous: int | None = None
    expected = 0
    slots = _Slots(stream) if has_slots(container, stream) else None
    for frame in _frames(container, stream, slots):
        for clock in ("pts", "dts"):
            ticks = getattr(frame, clock)
            if ticks is not None:
                faults[clock] += last[clock] is not None and ticks <= last[clock]
                last[clock] = ticks
        by_pts = frame.pts is not None and (faults["pts"] <= faults["dts"] or frame.dts is None)
        pts = frame.pts if by_pts else frame.dts
        if slots is not None:
            pts = slots.next(frame)
        duration = frame.duration or usual_duration(stream, frame)
        if pts is None:
            pts = expected
        elif previous is not None:
            pts = max(pts, previous + 1)
        previous, expected = pts, pts + duration
        yield frame, pts, duration


def has_slots(container: Container, stream: Stream) -> bool:
    """Whether the file has decoding times only, so that those FFmpeg makes up for presentation are not looked at."""
    return stream.type == "video" and str(container.format.name) == "avi"


class _Slots:
    """The clock of a file that stores decoding times only: slots of packets, handed out in the order of showing."""

    def __init__(self, stream: Stream) -> None:
        self._reorders = bool(stream.codec_context.has_b_frames)
        self._reach = _MOST_REORDERED * usual_duration(stream)
        self._free: list[int] = []

    def add(self, packet: Any) -> None:
        if packet.size and packet.dts is not None:
            heappush(self._free, packet.dts)

    def drop(self, packet: Any) -> None:
        """Take back the slot of a packet that gave no picture."""
        if packet.dts in self._free:
            self._free.remove(packet.dts)
            heapify(self._free)

    def next(self, frame: Frame) -> int | None:
        """The slot of the next frame that is shown; None where the file has none for it."""
        behind = frame.dts if frame.dts is not None else -(1 << 62)
        if self._reorders:
            behind -= self._reach
        while self._free and self._free[0] < behind:  # of packets without a picture
            heappop(self._free)
        return heappop(self._free) if self._free else None


def usual_duration(stream: Stream, frame: Frame | None = None) -> int:
    """Ticks that a frame lasts by its samples, or by the frame rate of its stream."""
    if frame is not None and stream.type == "audio":
        seconds = Fraction(frame.samples, frame.sample_rate)
    else:
        seconds = 1 / (frame_rate(stream) or Fraction(25))
    return max(1, int(seconds / time_base(stream) + Fraction(1, 2)))


def _frames(container: Container, stream: Stream, slots: _Slots | None) -> Iterator[Frame]:
    """Every frame that can be decoded, in the decoder's order."""
    damaged = 0
    for packet in read_packets(container, stream):
        if slots is not None:
            slots.add(packet)
        try:
            frames = packet.decode()
        except FFmpegError:
            damaged += 1
            if slots is not None:
                slots.drop(packet)
            continue
        yield from frames
    if damaged:
        _log.warning("%s: skipped %d damaged packets", container.name, damaged)


class Orientation:
    """`orientation` of the frames of one stream, read again where their size, format or rotation changes.

    A frame whose side data was looked at and PyAV's view of that data hold each other: such frames wait for the garbage
    collector, more than a gigabyte of them in two hours. The rotation alone, which does not tell flips, costs nothing.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, str, int], tuple[bool, bool, bool]] = {}

    def __call__(self, frame: Frame) -> tuple[bool, bool, bool]:
        key = (frame.width, frame.height, frame.format.name, frame.rotation)
        if key not in self._known:
            self._known[key] = orientation(frame)
        return self._known[key]


def orientation(frame: Frame) -> tuple[bool, bool, bool]:
    """How a frame as stored becomes upright: transpose, then flip rows, then flip columns.

    Read from the display matrix (a b u, c d v, x y w) that cameras write: column p, row q is shown at column
    a p + c q, row b p + d q.
    """
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
