"""Sound of pieces of a video -> packets of a film, without loss.

Sound has its own time stamps and its own cursor: how a file interleaves it with the pictures does not matter. Packets
of codecs that lose something are taken whole, each at its place; where pieces join, the last one of a piece may reach
into the next one, by half a packet, and a packet that would overlap is left out. What loses nothing is cut to the
sample: PCM as it is, FLAC and ALAC unpacked and packed again. It has no gaps, for QuickTime counts samples of PCM and
cannot tell one: silence stands where the source has no sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import av
import numpy as np

from vsum_runtime.runtime.media.mp3_reservoir import Mp3Reservoir
from vsum_runtime.runtime.media.rational import time_base

HAS_EDIT_LISTS = ("mp4", "mov")
"""Containers that can begin to show a film after its first picture or sound."""

Span: TypeAlias = tuple[Fraction, Fraction, Fraction]
"""Start and end of a piece in the source, and its start in the film, seconds."""

_PCM = re.compile(r"pcm_(?:[suf](8|16|24|32|64)(?:le|be)?|mulaw|alaw)")
_LOSSLESS = ("flac", "alac")
_QUIET = {"pcm_u8": 0x80, "pcm_mulaw": 0xFF, "pcm_alaw": 0xD5}
_ROUNDED_S = Fraction(2, 1000)  # clocks of milliseconds round


def copy_sound(film: Any, audio: Any, spans: list[Span]) -> WholePackets | Samples:
    """What turns packets of an audio stream of the source into those of the film; adds the film's stream."""
    codec = audio.codec_context
    pcm = _PCM.fullmatch(codec.name)
    if codec.name in _LOSSLESS:
        return PackedSamples(film, audio, spans)
    copy = film.add_stream_from_template(audio, opaque=True)
    copy.time_base = time_base(audio)
    copy.metadata.update({key: audio.metadata[key] for key in ("language",) if key in audio.metadata})
    if pcm is not None:
        return Samples(copy, audio, spans, int(pcm[1] or 8) // 8)
    return WholePackets(copy, audio, spans, begins_before=film.format.name in HAS_EDIT_LISTS)


class WholePackets:
    """Packets that are taken as they are."""

    def __init__(self, copy: Any, audio: Any, spans: list[Span], *, begins_before: bool) -> None:
        self._copy, self._tick_s, self._spans = copy, time_base(audio), spans
        self._reservoir = Mp3Reservoir() if audio.codec_context.name.startswith("mp3") else None
        self._number = 0
        self._until: Fraction | None = None if begins_before else Fraction(0)  # end of the film's sound so far
        self._is_first = True  # of its piece

    @property
    def is_complete(self) -> bool:
        return self._number == len(self._spans)

    def take(self, packet: Any) -> list[Any]:
        """Packets of the film that a packet of the source becomes."""
        at, duration = packet.pts * self._tick_s, (packet.duration or 0) * self._tick_s
        middle = at + duration / 2
        while not self.is_complete and middle >= self._spans[self._number][1]:
            self._number += 1
            self._is_first = True
        if self.is_complete:
            return []
        start, _, running = self._spans[self._number]
        film_at = at - start + running
        if self._until is None:  # sound before the film's start is not heard, but what follows is built on it
            is_taken = at + duration > start
        else:
            is_taken = middle >= start and film_at >= self._until - _ROUNDED_S
        if self._reservoir is not None:
            packet = self._reservoir.filled(packet, starts=is_taken and self._is_first)
        if not is_taken:
            return []
        self._until, self._is_first = film_at + duration, False
        packet.pts = packet.dts = round(film_at / self._tick_s)
        packet.time_base, packet.stream = self._tick_s, self._copy
        return [packet]

    def rest(self) -> list[Any]:
        """Packets after the last one of the source."""
        return []


class Samples:
    """Uncompressed sound."""

    def __init__(self, copy: Any, audio: Any, spans: list[Span], n_bytes: int) -> None:
        codec = audio.codec_context
        self._copy, self._tick_s = copy, time_base(audio)
        self._rate = codec.sample_rate
        self._frame_bytes = n_bytes * codec.layout.nb_channels
        self._quiet = bytes([_QUIET.get(codec.name, 0)]) * self._frame_bytes
        self._spans: list[tuple[int, int, int]] = []  # as before, in samples
        for start_s, end_s, running_s in spans:
            start, running = round(start_s * self._rate), round(running_s * self._rate)
            end = start + round((running_s + end_s - start_s) * self._rate) - running
            self._spans.append((start, end, running))
        self._number = 0
        self._n = 0  # samples of the film so far
        self._expected: int | None = None  # where the next sample of the source should be

    @property
    def is_complete(self) -> bool:
        return self._number == len(self._spans)

    def take(self, packet: Any) -> list[Any]:
        """Packets of the film that a packet of the source becomes."""
        return list(self._cut(packet.pts * self._tick_s, bytes(packet)))

    def rest(self) -> list[Any]:
        """Packets after the last one of the source: silence up to the end of the film."""
        start, end, running = self._spans[-1]
        return list(self._until(running + end - start))

    def _cut(self, at_s: Fraction, data: bytes) -> Iterator[Any]:
        at, n = round(at_s * self._rate), len(data) // self._frame_bytes
        if self._expected is not None and abs(at - self._expected) <= _ROUNDED_S * self._rate:
            at = self._expected
        self._expected = at + n
        while not self.is_complete:
            start, end, running = self._spans[self._number]
            low, high = max(at, start, self._n - running + start), min(at + n, end)
            if low < high:
                yield from self._until(running + low - start)
                yield from self._packets(data[(low - at) * self._frame_bytes : (high - at) * self._frame_bytes])
            if at + n < end:
                return
            self._number += 1

    def _until(self, sample: int) -> Iterator[Any]:
        while self._n < sample:
            yield from self._packets(self._quiet * min(sample - self._n, self._rate))

    def _packets(self, data: bytes) -> list[Any]:
        packet = av.Packet(data)
        packet.pts = packet.dts = self._n
        packet.duration = len(data) // self._frame_bytes
        packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, self._rate), self._copy, True
        self._n += packet.duration
        return [packet]


class PackedSamples(Samples):
    """Sound that is packed without loss."""

    def __init__(self, film: Any, audio: Any, spans: list[Span]) -> None:
        codec = audio.codec_context
        self._format, self._layout = codec.format, codec.layout.name
        copy = film.add_stream(codec.name, rate=codec.sample_rate, layout=self._layout)
        copy.codec_context.format = codec.format.name
        copy.codec_context.options = {"bits_per_raw_sample": "24"} if codec.format.bytes == 4 else {}
        super().__init__(copy, audio, spans, codec.format.bytes)

    def take(self, packet: Any) -> list[Any]:
        taken: list[Any] = []
        for frame in packet.decode():
            samples = frame.to_ndarray()
            if self._format.is_planar:
                samples = samples.T
            taken += self._cut(frame.pts * self._tick_s, samples.tobytes())
        return taken

    def rest(self) -> list[Any]:
        return super().rest() + list(self._copy.encode(None))

    def _packets(self, data: bytes) -> list[Any]:
        kind = {2: np.int16, 4: np.int32}[self._format.bytes]
        samples = np.frombuffer(data, kind).reshape(-1, self._frame_bytes // self._format.bytes)
        samples = samples.T if self._format.is_planar else samples.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), self._format.name, self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._n, Fraction(1, self._rate)
        self._n += frame.samples
        return list(self._copy.encode(frame))
