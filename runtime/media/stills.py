"""Single frames of a video as pictures: upright, of the shape in which they are shown, in files that browsers read.

Only what the frames need is decoded, where the file tells what that is (`media.sparse`).
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.decode import Frame, Stream, decode, find_video, open_container
from vsum_runtime.runtime.media.picture import Fitter
from vsum_runtime.runtime.media.rational import time_base
from vsum_runtime.runtime.media.sparse import Irregular, decode_some
from vsum_runtime.runtime.targets import STILL

_ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    ".jpg": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "4"}),
    ".png": ("png", "rgb24", {}),
    ".webp": ("libwebp", "yuv420p", {"quality": "85"}),
}
_LONGEST_SIDE = 16383  # of WebP; the others take more
SUFFIXES = tuple(_ENCODERS)


def read_stills(
    source: str | os.PathLike[str], numbers: Iterable[int], frame_times_s: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frames of a video, in order.

    Parameters
    ----------
    numbers
        of the frames, as `media.frames.read_frames` counts them
    frame_times_s : float64 [N + 1]
        as `media.frames.FrameReader` gives them

    Yields
    ------
    int, uint8 [H, W, 3]
        number and picture: red, green, blue, square pixels

    Raises
    ------
    VideoError
        the source cannot be decoded, or holds a frame no more
    """
    wanted = sorted({int(number) for number in numbers})
    last = -1
    for read in (_some, _all):
        with open_container(source) as container:
            stream = find_video(container, source)
            fit = Fitter(stream)
            try:
                for number, picture in read(container, stream, [n for n in wanted if n > last], frame_times_s):
                    yield number, _as_shown(fit(picture), fit)
                    last = number
                break
            except Irregular:
                continue
    if wanted and last < wanted[-1]:
        raise VideoError(f"{source}: expected a frame {wanted[-1]}, it ends before; has the file changed?")


def _some(
    container: Any, stream: Stream, wanted: list[int], times_s: NDArray[np.float64]
) -> Iterator[tuple[int, Frame]]:
    """By decoding only what they need; frames are told by count, and their times must be the known ones."""
    tick_s, asked = float(time_base(stream)), set(wanted)
    first = n_frames = 0

    def wants(pts: int, _: int) -> bool:
        nonlocal first, n_frames
        number, n_frames = n_frames, n_frames + 1
        first = pts if number == 0 else first
        if number >= len(times_s) - 1 or abs((pts - first) * tick_s - times_s[number]) > tick_s / 2 + 1e-9:
            raise Irregular(f"frame {number} at another time")
        return number in asked

    for number, picture in zip(wanted, decode_some(container, stream, wants), strict=False):
        yield number, picture
        if number == wanted[-1]:
            return
    if wanted:
        raise Irregular(f"{n_frames} frames came")


def _all(
    container: Any, stream: Stream, wanted: list[int], times_s: NDArray[np.float64]
) -> Iterator[tuple[int, Frame]]:
    """By decoding everything; frames are told by time, and a long picture counts as several."""
    tick_s, first = float(time_base(stream)), None
    waiting: tuple[Frame, int] | None = None
    for picture, pts, _ in decode(container, stream):
        first = pts if first is None else first
        number = int(np.searchsorted(times_s, (pts - first) * tick_s + 1e-6, "right")) - 1
        if waiting is not None:
            yield from ((n, waiting[0]) for n in _between(wanted, waiting[1], number))
        if not wanted or number > wanted[-1]:
            return
        waiting = picture, number
    if waiting is not None:
        yield from ((n, waiting[0]) for n in _between(wanted, waiting[1], len(times_s) - 1))


def _between(ascending: list[int], first: int, end: int) -> list[int]:
    return ascending[bisect_left(ascending, first) : bisect_left(ascending, end)]


def _as_shown(picture: Frame, fit: Fitter) -> NDArray[np.uint8]:
    shape = fit.pixel_shape or Fraction(1)
    width, height = picture.width, picture.height
    width, height = (round(width * shape), height) if shape >= 1 else (width, round(height / shape))
    rgb: NDArray[np.uint8] = picture.reformat(width, height, format="rgb24").to_ndarray()
    return rgb


def scaled(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] at another size, fitted into it with black beside or above it."""
    inner_width = min(width, max(1, round(height * picture.shape[1] / picture.shape[0])))
    inner_height = min(height, max(1, round(width * picture.shape[0] / picture.shape[1])))
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    inner = frame.reformat(inner_width, inner_height, interpolation="AREA").to_ndarray()
    fitted = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    fitted[top : top + inner_height, left : left + inner_width] = inner
    return fitted


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix that says how a picture is written; `InputError` for any other."""
    suffix = Path(path).suffix.lower().replace(".jpeg", ".jpg")
    if suffix not in _ENCODERS:
        raise InputError(f"{path}: expected a name ending in {', '.join(SUFFIXES)}")
    return suffix


def write_picture(picture: NDArray[np.uint8], path: str | os.PathLike[str]) -> Path:
    """Write a picture uint8 [H, W, 3] as JPEG, PNG or WebP, whole or not at all."""
    encoder, pixels, options = _ENCODERS[suffix_of(path)]
    if max(picture.shape[:2]) > _LONGEST_SIDE:
        raise InputError(
            f"{path}: expected a picture of at most {_LONGEST_SIDE} pixels a side, got {picture.shape[:2]}"
        )
    context: Any = av.CodecContext.create(encoder, "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base, context.options = pixels, Fraction(1, 1), options
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels)
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(_marked(b"".join(bytes(packet) for packet in packets)))
    return Path(path)


def _marked(data: bytes) -> bytes:
    """A picture's file with a comment that says who made it, as `runtime.targets` looks for."""
    comment = STILL.encode()
    if data.startswith(b"\xff\xd8"):  # JPEG: a COM segment behind the start
        return data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]
    if data.startswith(b"\x89PNG"):  # a tEXt chunk behind the header, which takes 33 bytes with the signature
        chunk = b"tEXtComment\0" + comment
        return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    chunk = b"NOTE" + struct.pack("<I", len(comment)) + comment + bytes(len(comment) % 2)  # WebP: readers skip it
    return data[:4] + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:] + chunk
