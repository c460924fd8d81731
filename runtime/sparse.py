"""Some frames of a video, without decoding those that neither they nor any other frame is built on.

H.264 says of every picture whether others refer to it. Those to which none does, a third in common films, can be left
out where nobody asked for them, and what is decoded stays the same to the bit. Which frames are asked for is decided by
their presentation times alone, from the packets: the rank of a frame is known as soon as a packet comes that is decoded
no earlier than the frame is shown.

This holds only where packets and frames are one to one and their time stamps right. What is decoded is therefore
compared with what the packets promised, and the first difference ends the attempt with `Irregular`; the file is then
to be decoded whole, by `runtime.video.decode`, which repairs what can be repaired. Damage inside a picture that is left
out is not seen: such a frame counts as if it had been decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

from av.error import FFmpegError

_TRIED = 16
"""Pictures that could be left out and are decoded all the same, so that wrong time stamps show."""
_MOST_WAITING = 64
"""Packets that may wait for the order of their frames to be known; H.264 reorders at most 16."""
_PROGRESSIVE = (0, 1)  # of FFmpeg's field orders: unknown, progressive
_NEVER = 1 << 62


class Irregular(Exception):
    """The packets do not tell which frames the file holds: decode all of it."""


def decode_some(container: Any, stream: Any, wants: Callable[[int, int], bool]) -> Iterator[Any]:
    """Decode a video stream forward and give the frames that are wanted.

    Parameters
    ----------
    wants : told the presentation time and the duration of every frame, in ticks of `stream.time_base`, in order of
        presentation, a few frames ahead of those that are given; the duration is 0 where the file does not tell it

    Yields
    ------
    av.VideoFrame   those that are wanted, in order of presentation

    Raises
    ------
    Irregular       not H.264, not progressive, or not as it should be from here on; discard what was given so far
    """
    if stream.codec_context.name != "h264" or stream.codec_context.field_order not in _PROGRESSIVE:
        raise Irregular(f"{stream.codec_context.name}, field order {stream.codec_context.field_order}")
    yield from _Decoding(stream, wants).frames(container)


class _Decoding:
    """Packets on their way through the decoder."""

    def __init__(self, stream: Any, wants: Callable[[int, int], bool]) -> None:
        self._stream, self._wants = stream, wants
        setup = stream.codec_context.extradata or b""
        self._length_size = (setup[4] & 3) + 1 if len(setup) > 6 and setup[0] == 1 else None  # None: start codes
        self._waiting: deque[tuple[Any, bool]] = deque()  # packets, and whether other pictures refer to theirs
        self._unsettled: list[tuple[int, int]] = []  # times and durations of frames before which others may still come
        self._settled = -_NEVER  # time up to which all frames are known
        self._wanted: dict[int, bool] = {}  # settled frames that are neither given nor left out yet
        self._owed: list[int] = []  # times of the frames that the decoder still has to give
        self._decoded: deque[Any] = deque()  # frames that are not settled yet
        self._last_dts: int | None = None
        self._n_tried = 0

    def frames(self, container: Any) -> Iterator[Any]:
        try:
            for packet in container.demux(self._stream):
                if packet.size:
                    self._take(packet)
                else:  # the end: what the decoder still holds
                    self._settle(_NEVER)
                    self._decode_waiting()
                    self._receive(packet)
                yield from self._given()
        except FFmpegError as error:
            raise Irregular(str(error)) from error
        if self._owed or self._decoded:
            raise Irregular(f"{len(self._owed)} frames did not come")

    def _take(self, packet: Any) -> None:
        pts, dts = packet.pts, packet.dts
        if pts is None or packet.is_corrupt or len(self._waiting) > _MOST_WAITING:
            raise Irregular(f"an unexpected packet at {pts}")
        if dts is None:
            in_order = self._last_dts is None
        else:
            in_order = dts <= pts and (self._last_dts is None or dts > self._last_dts)
        if not in_order or pts <= self._settled:
            raise Irregular(f"a packet out of order at {pts}")
        self._last_dts = dts
        if packet.is_discard:  # decoded for the sake of others, never shown
            self._waiting.append((packet, True))
        else:
            heappush(self._unsettled, (pts, packet.duration or 0))
            self._waiting.append((packet, self._is_reference(packet)))
        if dts is not None:
            self._settle(dts)
        self._decode_waiting()

    def _settle(self, until: int) -> None:
        """All frames up to this time are known: ask for each of them."""
        while self._unsettled and self._unsettled[0][0] <= until:
            pts, duration = heappop(self._unsettled)
            if pts == self._settled:
                raise Irregular(f"two frames at {pts}")
            self._settled = pts
            self._wanted[pts] = self._wants(pts, duration)

    def _decode_waiting(self) -> None:
        """In the order of the file, as far as it is known which are wanted."""
        while self._waiting:
            packet, needed = self._waiting[0]
            if not needed:
                if packet.pts not in self._wanted:
                    return
                self._n_tried += not self._wanted[packet.pts]
                needed = self._wanted[packet.pts] or self._n_tried <= _TRIED
            self._waiting.popleft()
            if not needed:
                del self._wanted[packet.pts]
                continue
            if not packet.is_discard:
                heappush(self._owed, packet.pts)
            self._receive(packet)

    def _receive(self, packet: Any) -> None:
        for frame in packet.decode():
            if not self._owed or frame.pts != heappop(self._owed) or frame.is_corrupt or frame.interlaced_frame:
                raise Irregular(f"an unexpected frame at {frame.pts}")
            self._decoded.append(frame)

    def _given(self) -> Iterator[Any]:
        while self._decoded and self._decoded[0].pts in self._wanted:
            frame = self._decoded.popleft()
            if self._wanted.pop(frame.pts):
                yield frame

    def _is_reference(self, packet: Any) -> bool:
        """Whether other pictures may refer to that of a packet: nal_ref_idc of its first slice (H.264, 7.4.1)."""
        data = bytes(packet)
        header: int | None = None
        for start in self._units(data):
            kind = data[start] & 31
            if kind in (1, 5) and header is None:
                header = data[start]
                # Not the first of its picture: packets are not pictures.
                if start + 1 < len(data) and not data[start + 1] & 128:
                    raise Irregular(f"half a picture at {packet.pts}")
                if self._length_size is None:
                    break
        if header is None or header & 128:
            raise Irregular(f"no picture in the packet at {packet.pts}")
        return bool(header & 0b0110_0000)

    def _units(self, data: bytes) -> Iterator[int]:
        """Where the units of a packet start (H.264, 7.3.1 and annex B; ISO 14496-15, 5.3.3.1)."""
        at = 0
        if self._length_size is None:
            while (at := data.find(b"\0\0\1", at)) >= 0 and at + 3 < len(data):
                at += 3
                yield at
            return
        while at < len(data):
            start = at + self._length_size
            at = start + int.from_bytes(data[at:start], "big")
            if not start < at <= len(data):
                raise Irregular("units that do not fill their packet")
            yield start
