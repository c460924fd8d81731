"""The sound of a file as samples at a steady rate, each at its place on the film's clock.

Samples are counted, and their time stamps watched. A stamp more than 50 ms away from the count begins a new run, and a
gap is silence. Less than that is a sound clock that drifts from the film's: from 10 ms on the samples are stretched or
squeezed as if to be back in place 4 s later, so that sound stays within a picture, without a step and hardly detuned.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from vsum_runtime.runtime.media.decode import Container, Frame, Stream, decode
from vsum_runtime.runtime.media.rational import time_base

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # channels -> layout for AAC; others are mixed down to stereo
_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # what AAC knows
_GAP_S = 0.05  # time stamps may differ this much from the count of samples before they count as a gap
_DRIFT_S = 0.01  # ... and this much before the samples follow them
_IN_PLACE_S = 0.001  # ... until they differ no more than this
_BACK_IN_PLACE_S = 4.0  # ... and in so much time, were there no further drift


class Sound:
    """One sound track as float32 samples, read forward; silence where there is none.

    `rate_hz`, `n_channels` and `layout` are the source's where AAC knows them, else near ones: 48 kHz, stereo.
    """

    def __init__(self, container: Container, stream: Stream) -> None:
        context = stream.codec_context
        self.rate_hz = context.sample_rate if context.sample_rate in _RATES_HZ else 48000
        self.n_channels = context.channels if context.channels in _LAYOUTS else 2
        self.layout = _LAYOUTS[self.n_channels]
        self.language = str(stream.metadata.get("language", ""))
        self._pieces = self._decoded(container, stream)
        self._position, self._samples = -(1 << 62), np.empty((self.n_channels, 0), dtype=np.float32)

    def take(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples [channels, count] from `start` on, counted on the film's clock; starts must ascend."""
        taken = np.zeros((self.n_channels, count), dtype=np.float32)
        while True:
            end = self._position + self._samples.shape[1]
            first, last = max(start, self._position), min(start + count, end)
            if first < last:
                taken[:, first - start : last - start] = self._samples[
                    :, first - self._position : last - self._position
                ]
            if end >= start + count:
                return taken
            piece = next(self._pieces, None)
            if piece is None:
                return taken
            self._position, self._samples = piece

    def _decoded(self, container: Container, stream: Stream) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Pieces of sound, each with the position of its first sample."""
        resampler: _Resampler | None = None
        setting: tuple[Any, ...] = ()
        position, is_drifting = 0, False
        expected_s, tick_s = Fraction(0), time_base(stream)
        for frame, pts, _ in decode(container, stream):
            time_s = pts * tick_s
            seen = (frame.format.name, frame.layout.name, frame.sample_rate)
            late_s = time_s - expected_s
            if resampler is None or seen != setting or abs(late_s) > _GAP_S:
                if resampler is not None:
                    yield from _placed(resampler.resample(None), position)
                resampler, setting = self._resampler(frame), seen
                position, expected_s = round(time_s * self.rate_hz), time_s
                is_drifting, late_s = False, Fraction(0)
            frame.pts = pts
            expected_s += Fraction(frame.samples, frame.sample_rate)
            is_drifting = abs(late_s) > (_IN_PLACE_S if is_drifting else _DRIFT_S)
            for place, samples in _placed(resampler.resample(frame), position):
                if is_drifting:
                    shift = round(float(late_s) / _BACK_IN_PLACE_S * samples.shape[1])
                    samples = _stretched(samples, samples.shape[1] + shift)
                    expected_s += Fraction(shift, self.rate_hz)
                    late_s -= Fraction(shift, self.rate_hz)
                    place = position
                yield place, samples
                position = place + samples.shape[1]
        if resampler is not None:
            yield from _placed(resampler.resample(None), position)

    def _resampler(self, frame: Frame) -> _Resampler:
        if frame.layout.nb_channels > self.n_channels:
            return _Downmix(frame, self.layout, self.rate_hz)
        resampler: _Resampler = av.AudioResampler("fltp", self.layout, self.rate_hz)
        return resampler


class _Resampler(Protocol):
    def resample(self, frame: Frame | None) -> list[Frame]:
        """Frames in the format of the film; None: what is still held."""
        ...


class _Downmix:
    """Fewer channels, no louder than full scale.

    `av.AudioResampler` scales the sum of channels down for integer samples only: of floats it may reach 3.4.
    """

    def __init__(self, frame: Frame, layout: str, rate_hz: int) -> None:
        self._graph = Graph()
        source = self._graph.add_abuffer(
            format=frame.format.name,
            sample_rate=frame.sample_rate,
            layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        )
        target = f"sample_fmts=fltp:sample_rates={rate_hz}:channel_layouts={layout}"
        steps = (("aresample", "rematrix_maxval=1"), ("aformat", target), ("abuffersink", None))
        self._graph.link_nodes(source, *(self._graph.add(*step) for step in steps)).configure()

    def resample(self, frame: Frame | None) -> list[Frame]:
        self._graph.push(frame)
        frames = []
        while True:
            try:
                frames.append(self._graph.pull())
            except (BlockingIOError, EOFError):  # more is needed; all is given
                return frames


def _placed(frames: list[Frame], position: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for frame in frames:
        samples = frame.to_ndarray()
        yield position, samples
        position += samples.shape[1]


def _stretched(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Samples [channels, n] as [channels, count], by a cubic through the four nearest."""
    n = samples.shape[1]
    at = np.arange(count) * (n / count)
    left = at.astype(np.int64)
    t = (at - left).astype(np.float32)
    before, here, after, beyond = (samples[:, np.clip(left + k, 0, n - 1)] for k in (-1, 0, 1, 2))
    slope, bend, twist = (
        after - before,
        2 * before - 5 * here + 4 * after - beyond,
        beyond - before + 3 * (here - after),
    )
    stretched: NDArray[np.float32] = here + 0.5 * t * (slope + t * (bend + t * twist))
    return stretched
