"""What a packet of H.264 or HEVC says of its picture, undecoded: do others refer to it, does decoding start anew there?

H.264 says it of every picture by itself. HEVC says it within the picture's temporal sub-layer, and pictures of higher
ones may refer to it all the same: there, only pictures of the highest count as those that nobody refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol


class Picture(NamedTuple):
    """What the units of a packet say."""

    is_needed: bool  # whatever it shows: it brings parameters
    is_reference: bool  # others may refer to it
    is_restart: bool  # nothing after it refers to anything before it


class Reader(Protocol):
    """Of the packets of one stream, in their order."""

    def read(self, data: bytes) -> Picture:
        """Raises ValueError where a packet is not one whole picture that follows those before it."""
        ...


class _H264:
    """H.264, 7.3.1, 7.4.1 and table 7-1."""

    def __init__(self, setup: bytes) -> None:
        self._length_size = (setup[4] & 3) + 1 if len(setup) > 6 and setup[0] == 1 else None

    def read(self, data: bytes) -> Picture:
        found, has_parameters = None, False
        for start in _units(data, self._length_size):
            kind = data[start] & 31
            has_parameters |= kind in (7, 8, 13, 15)
            if kind in (1, 5) and found is None:
                _check(data, start, header_bytes=1)
                found = bool(data[start] & 0b0110_0000), kind == 5
        return _picture(found, has_parameters)


class _Hevc:
    """HEVC, 7.3.1, 7.4.2.2 and table 7-1."""

    def __init__(self, setup: bytes) -> None:
        is_record = len(setup) > 22 and setup[0] == 1  # ISO 14496-15, 8.3.3.1
        self._length_size = (setup[21] & 3) + 1 if is_record else None
        self._n_sub_layers = setup[21] >> 3 & 7 if is_record else 0  # 0: not known
        self._has_ended = False

    def read(self, data: bytes) -> Picture:
        found, has_parameters = None, False
        for start in _units(data, self._length_size):
            if start + 1 >= len(data):
                raise ValueError("half a unit")
            kind, sub_layer = data[start] >> 1 & 63, (data[start + 1] & 7) - 1
            if data[start] & 1 or data[start + 1] & 0b1111_1000:
                raise ValueError("more than one layer")
            has_parameters |= kind in (32, 33, 34)
            if kind == 33 and start + 2 < len(data):
                self._n_sub_layers = max(self._n_sub_layers, (data[start + 2] >> 1 & 7) + 1)
            if kind in (16, 17, 18) or (kind == 21 and self._has_ended):
                raise ValueError("joined films, of which the decoder leaves out pictures")
            if kind < 32 and found is None:
                _check(data, start, header_bytes=2)
                if 0 < self._n_sub_layers <= sub_layer:
                    raise ValueError("more sub-layers than announced")
                is_alone = kind < 16 and kind % 2 == 0 and sub_layer == self._n_sub_layers - 1
                found = not is_alone, kind in (19, 20)
                self._has_ended = False
            self._has_ended |= kind in (36, 37)
        return _picture(found, has_parameters)


READERS: dict[str, Callable[[bytes], Reader]] = {"h264": _H264, "hevc": _Hevc}
"""FFmpeg's name of the codec -> what reads its packets, made from the parameters in the container (extradata)."""


def _units(data: bytes, length_size: int | None) -> Iterator[int]:
    """Where units start (H.264 and HEVC, annex B; ISO 14496-15, 5.3.3.1); ``length_size`` None: after start codes."""
    at = 0
    if length_size is None:
        while (at := data.find(b"\0\0\1", at)) >= 0 and at + 3 < len(data):
            at += 3
            yield at
        return
    while at < len(data):
        start = at + length_size
        at = start + int.from_bytes(data[at:start], "big")
        if not start < at <= len(data):
            raise ValueError("units that do not fill their packet")
        yield start


def _check(data: bytes, start: int, *, header_bytes: int) -> None:
    """Both codecs: a header begins with 0, and the first slice of a picture with 1."""
    slice_header = data[start + header_bytes : start + header_bytes + 1]
    if data[start] & 128 or slice_header < b"\x80":
        raise ValueError("half a picture")


def _picture(found: tuple[bool, bool] | None, has_parameters: bool) -> Picture:
    if found is None:
        raise ValueError("no picture")
    return Picture(has_parameters, *found)
