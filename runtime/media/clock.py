"""One clock for a film: the packets of a file, with time stamps that run on across every seam.

A recording's clock starts anew where recordings were joined, leaps where a part is missing, and wraps:
a transport stream counts 33 bits of 1/90000 s, 26.5 hours. The streams of a programme share the clock, so a
seam is mended once and for all of them, by these rules:

1. Times are judged as decoding times, in the order of the file, stream by stream. A stream runs on where its time
   advances by less than 10 s or steps back by less than a second; in a format that does not allow seams (everything but
   transport and program streams, Ogg and the like) any advance is time that a picture is shown or a pause of the sound.
2. Anything else is a seam: the stream enters another *span* of the clock. If another stream has entered that span
   before, and is within 10 s, it is this one. So the stream that meets a seam first decides for all, and packets from
   before it that lie behind it in the file stay on their own side.
3. A leap ahead to where another stream of the same span already is, is no seam: pictures or sound had a pause.
4. A span that begins where the 33 bits of the last one end continues it to the tick.
5. Any other span begins when all streams of those before it have ended: nothing that was recorded is lost or overlaps,
   and sound stays with its pictures. The last picture before the seam is shown until then.
6. Packets without a decoding time are moved with their stream. Times before zero stay so: nothing is cut off.

What is left for the decoded frames, in `decode`, are single absent or disordered time stamps; and for sound whose own
clock drifts from its time stamps, `sound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.error import FFmpegError

from vsum_runtime.runtime.media.rational import time_base

_MOST_BACK_S = 1.0
_MOST_AHEAD_S = 10.0
_WRAP_S = Fraction(1 << 33, 90000)
_MOST_READ_ERRORS_IN_A_ROW = 100
_TS_DISCONT = 0x200  # FFmpeg's flag of formats whose clock may have seams


@dataclass(eq=False)
class _Span:
    """A stretch of the file between two seams of its clock."""

    shift_s: Fraction
    """From the time stamps to the film's clock."""
    latest_s: float
    """Greatest decoding time so far, as stamped."""
    end_s: Fraction
    """When everything read so far has been shown and heard, on the film's clock."""


class _Lane:
    """One stream: where it is, and in which span."""

    def __init__(self, stream: Any) -> None:
        self.tick_s = time_base(stream)
        self.tick_float_s = float(self.tick_s)
        self.span = -1  # before its first packet
        self.last_s = 0.0
        self.shift = 0  # of its span, in its own ticks
        self.end = 0  # in its own ticks, as stamped, of what it has in its span


class Clock:
    """Moves the time stamps of packets, given in the order of the file, onto one clock without seams."""

    def __init__(self, streams: Sequence[Any], *, may_leap: bool) -> None:
        self._lanes = {stream.index: _Lane(stream) for stream in streams}
        self._spans: list[_Span] = []
        self._may_leap = may_leap

    def mend(self, packet: Any) -> None:
        """Change the packet's ``pts`` and ``dts``."""
        lane, dts, pts = self._lanes[packet.stream_index], packet.dts, packet.pts
        if dts is not None:
            at_s = dts * lane.tick_float_s
            advance_s = at_s - lane.last_s
            if lane.span < 0 or advance_s <= -_MOST_BACK_S or (advance_s >= _MOST_AHEAD_S and self._may_leap):
                self._enter(lane, at_s, dts if pts is None else pts)
            lane.last_s = at_s
            span = self._spans[lane.span]
            span.latest_s = max(span.latest_s, at_s)
            lane.end = max(lane.end, (dts if pts is None else pts) + (packet.duration or 0))
        if lane.shift:
            packet.pts = None if pts is None else pts + lane.shift
            packet.dts = None if dts is None else dts + lane.shift

    def _enter(self, lane: _Lane, at_s: float, first: int) -> None:
        """Put a stream whose time is `at_s` into a span; `first` is when its packet is shown, in ticks."""
        is_start = lane.span < 0
        oldest = max(0, lane.span + (not is_start and at_s < lane.last_s))
        near = [n for n in range(oldest, len(self._spans)) if abs(at_s - self._spans[n].latest_s) < _MOST_AHEAD_S]
        if not near and not (is_start and self._spans):  # a stream that only begins late makes no seam
            self._spans.append(self._next_span(lane, at_s, first))
        number = near[-1] if near else len(self._spans) - 1
        if number != lane.span:
            self._close(lane)
            lane.span, lane.shift = number, round(self._spans[number].shift_s / lane.tick_s)
            lane.end = first

    def _next_span(self, lane: _Lane, at_s: float, first: int) -> _Span:
        if not self._spans:
            return _Span(Fraction(0), at_s, first * lane.tick_s)
        for each in self._lanes.values():
            self._close(each)
        last = self._spans[-1]
        end_s = max(span.end_s for span in self._spans)
        wrapped_s = at_s + float(_WRAP_S) - last.latest_s
        if lane.tick_s == Fraction(1, 90000) and abs(wrapped_s) < _MOST_AHEAD_S:
            return _Span(last.shift_s + _WRAP_S, at_s, end_s)
        return _Span(end_s - first * lane.tick_s, at_s, end_s)

    def _close(self, lane: _Lane) -> None:
        """Note in its span how far a stream has come."""
        if lane.span >= 0:
            span = self._spans[lane.span]
            span.end_s = max(span.end_s, lane.end * lane.tick_s + span.shift_s)


def demux(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """Packets of some streams as PyAV gives them; the last of each stream is empty.

    At the end PyAV also looks up streams that appeared while the file was read, as in a damaged transport stream, and
    raises an IndexError where it does not know them. All that was asked for has then been given.
    """
    demuxed = container.demux(streams)
    while True:
        try:
            packet = next(demuxed, None)
        except IndexError:
            return
        if packet is None:
            return
        yield packet


def may_leap(container: Any) -> bool:
    """Whether the format allows seams in its clock, and so states no duration that could be relied on."""
    return bool(int(container.format.flags) & _TS_DISCONT)


def packets(container: Any, wanted: Sequence[Any], others: Sequence[Any]) -> Iterator[Any]:
    """Packets of some streams in the order of the file, with times of the film's clock; unreadable ones are skipped.

    Parameters
    ----------
    wanted
        the streams whose packets are given
    others
        the other streams of their programme, by which seams are judged too
    """
    streams = [*wanted, *others]
    clock = Clock(streams, may_leap=may_leap(container))
    indices, unreadable = {stream.index for stream in wanted}, 0
    demuxed = demux(container, streams)
    while unreadable < _MOST_READ_ERRORS_IN_A_ROW:
        try:
            packet = next(demuxed, None)
        except FFmpegError:
            unreadable += 1
            demuxed = demux(container, streams)  # an error ends the iterator, not the file
            continue
        if packet is None:
            return
        unreadable = 0
        if packet.size:
            clock.mend(packet)
        if packet.stream_index in indices:
            yield packet
