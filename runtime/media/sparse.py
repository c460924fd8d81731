"""Some frames of a video, without decoding those that neither they nor any other frame is built on.

H.264 and HEVC say of every picture whether others refer to it, and nothing refers past an IDR picture, where decoding
starts anew. Pictures that nobody asked for are left out where none refers to them, a third in common films, and all of
them from the last that was asked for up to the next IDR picture. What is decoded stays the same to the bit. Which
frames are asked for is decided by their presentation times alone, from the packets: the rank of a frame is known as
soon as a packet comes that is decoded no earlier than the frame is shown.

This holds only where packets and frames are one to one and their time stamps right. What is decoded is therefore
compared with what the packets promised, and the first difference ends the attempt with `Irregular`; the file is then
to be decoded whole, by `decode.decode`, which repairs what can be repaired. Damage inside a picture that is left
out is not seen: such a frame counts as if it had been decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from statistics import median
from typing import Any

from av.error import FFmpegError

from vsum_runtime.runtime.media import nal_units
from vsum_runtime.runtime.media.decode import has_slots, read_packets

_TRIED = 16
"""Pictures that could be left out and are decoded all the same, so that wrong time stamps show."""
_MOST_WAITING = 64
"""Packets that may wait for the order of their frames to be known; both codecs reorder at most 16."""
_MOST_HELD_BYTES = 32 << 20
"""Pictures that may be left out if no later one is asked for; those beyond are decoded."""
_LARGE, _RECENT = 4.0, 15
"""A packet is unusually large at so many times the median of so many before it."""
_PROGRESSIVE = (0, 1)  # of FFmpeg's field orders: unknown, progressive
_NEVER = 1 << 62


class Irregular(Exception):
    """The packets do not tell which frames the file holds: decode all of it."""


def decode_some(
    container: Any, stream: Any, wants: Callable[[int, int], bool], see: Callable[[Any, int], None] | None = None
) -> Iterator[Any]:
    """Decode a video stream forward and give the frames that are wanted.

    Parameters
    ----------
    wants
        told the presentation time and the duration of every frame, in ticks of `stream.time_base`, in order of
        presentation, a few frames ahead of those that are given; the duration is 0 where the file does not tell it
    see
        shown every frame that is decoded, with its presentation time, in order of presentation. Frames around a packet
        that is much larger than those before it, and before a restart that comes early, are then decoded too: encoders
        write such at cuts

    Yields
    ------
    av.VideoFrame
        those that are wanted, in order of presentation

    Raises
    ------
    Irregular
        another codec, not progressive, or not as it should be from here on; discard what was given so far
    """
    codec = stream.codec_context
    field_order = getattr(codec, "field_order", _PROGRESSIVE[0])  # PyAV before 18 keeps it; frames say it one by one
    if codec.name not in nal_units.READERS or field_order not in _PROGRESSIVE:
        raise Irregular(f"{codec.name}, field order {field_order}")
    if has_slots(container, stream):
        raise Irregular("no presentation times")
    yield from _Decoding(stream, wants, see).frames(container)


class _Decoding:
    """Packets on their way through the decoder."""

    def __init__(
        self, stream: Any, wants: Callable[[int, int], bool], see: Callable[[Any, int], None] | None = None
    ) -> None:
        self._stream, self._wants, self._see = stream, wants, see
        codec = stream.codec_context
        self._units = nal_units.READERS[codec.name](codec.extradata or b"")
        self._waiting: deque[tuple[Any, nal_units.Picture]] = deque()  # it is not known yet whether they are wanted
        self._held: deque[Any] = deque()  # packets that are only needed if a later picture is, before decoding restarts
        self._n_held_bytes = 0
        self._unsettled: list[tuple[int, int]] = []  # times and durations of frames before which others may still come
        self._settled = -_NEVER  # time up to which all frames are known
        self._wanted: dict[int, bool] = {}  # settled frames that are neither given nor left out yet
        self._owed: list[int] = []  # times of the frames that the decoder still has to give
        self._decoded: deque[Any] = deque()  # wanted frames that are not given yet
        self._last_dts: int | None = None
        self._n_tried = 0
        self._recent_bytes: deque[int] = deque(maxlen=_RECENT)  # of packets that others refer to
        self._may_cut_until = -_NEVER  # presentation time of the last one that was unusually large
        self._n_since_restart, self._usual_since_restart = 0, 0  # packets; the latter is the most there were

    def frames(self, container: Any) -> Iterator[Any]:
        try:
            for packet in read_packets(container, self._stream):
                if packet.size:
                    self._take(packet)
                else:  # the end: what the decoder still holds
                    self._settle(_NEVER)
                    self._decode_waiting()
                    self._leave_out_held()
                    self._receive(packet)
                yield from self._given()
        except FFmpegError as error:
            raise Irregular(str(error)) from error
        if self._owed:
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
        try:
            said = self._units.read(bytes(packet))
        except ValueError as error:
            raise Irregular(f"{error} at {pts}") from error
        is_first = self._last_dts is None
        self._waiting.append((packet, said._replace(is_needed=said.is_needed or is_first)))
        self._last_dts = dts
        if not packet.is_discard:  # those are decoded for the sake of others, never shown
            heappush(self._unsettled, (pts, packet.duration or 0))
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
            packet, said = self._waiting[0]
            if not packet.is_discard and packet.pts not in self._wanted:
                return
            self._waiting.popleft()
            if said.is_restart:
                if self._see is not None and self._n_since_restart != self._usual_since_restart:
                    self._decode_held()  # encoders restart at a cut, before it is due
                self._leave_out_held()
                self._usual_since_restart = max(self._usual_since_restart, self._n_since_restart)
                self._n_since_restart = 0
            self._n_since_restart += 1
            is_reference = said.is_reference or packet.is_discard
            is_needed = said.is_needed or (not packet.is_discard and self._wanted[packet.pts])
            if self._see is not None:
                if is_reference and self._is_large(packet):
                    self._may_cut_until = packet.pts
                is_needed = is_needed or packet.pts <= self._may_cut_until
            if not is_needed and not is_reference:
                self._n_tried += 1
                is_needed = self._n_tried <= _TRIED
            if is_needed or is_reference:
                self._held.append(packet)
                self._n_held_bytes += packet.size
            else:
                del self._wanted[packet.pts]
            while self._held and (is_needed or self._n_held_bytes > _MOST_HELD_BYTES):
                self._decode(self._held.popleft())

    def _decode_held(self) -> None:
        while self._held:
            self._decode(self._held.popleft())

    def _is_large(self, packet: Any) -> bool:
        recent = self._recent_bytes
        is_large = not recent or packet.size > _LARGE * median(recent)
        recent.append(packet.size)
        return is_large

    def _leave_out_held(self) -> None:
        for packet in self._held:
            self._wanted.pop(packet.pts, None)
        self._held.clear()
        self._n_held_bytes = 0

    def _decode(self, packet: Any) -> None:
        self._n_held_bytes -= packet.size
        if not packet.is_discard:
            heappush(self._owed, packet.pts)
        self._receive(packet)

    def _receive(self, packet: Any) -> None:
        for frame in packet.decode():
            if not self._owed or frame.pts != heappop(self._owed) or frame.is_corrupt or frame.interlaced_frame:
                raise Irregular(f"an unexpected frame at {frame.pts}")
            if self._see is not None:
                self._see(frame, frame.pts)
            if self._wanted.pop(frame.pts):  # of those that were held, many may come at once
                self._decoded.append(frame)

    def _given(self) -> Iterator[Any]:
        while self._decoded:
            yield self._decoded.popleft()
