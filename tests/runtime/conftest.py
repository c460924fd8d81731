"""Fixture `media`: small real media files made with PyAV. Every frame shows its number, every sample is known."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray

N_BITS = 8  # a frame's number, as this many white (1) and black (0) columns, highest bit left


class Media:
    """Writes films into one folder, and reads back what they show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def film(
        self,
        name: str,
        n_frames: int = 60,
        *,
        rate: Fraction | int = 30,
        times_s: Sequence[float] | None = None,
        size: tuple[int, int] = (64, 48),
        paint: Callable[[int], NDArray[np.uint8]] | None = None,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        options: dict[str, str] | None = None,
        tick: Fraction | None = None,
        sounds: Sequence[NDArray[np.float32]] = (),
        sound_rate: int = 48000,
        sound_layout: str = "mono",
        sound_codec: str = "pcm_s16le",
        sound_start_s: float = 0.0,
        default_sound: int = 0,
        color_range: int | None = None,
        pixel_shape: Fraction | None = None,
    ) -> Path:
        """One film. `times_s` makes the frame rate variable; each of `sounds` [channels, n] becomes an audio track."""
        path = self.folder / name
        paint = paint or (lambda index: self.numbered(index, size))
        with av.open(str(path), "w") as container:
            video: Any = container.add_stream(codec, rate=rate)
            video.width, video.height, video.pix_fmt = *size, pix_fmt
            video.options = (
                {"crf": "4", "preset": "ultrafast", "g": "12"} | (options or {}) if codec == "libx264" else {}
            )
            if codec != "libx264":
                video.codec_context.bit_rate = 4_000_000
                video.options = options or {}
            if color_range is not None:
                video.codec_context.color_range = color_range
            if pixel_shape is not None:
                video.codec_context.sample_aspect_ratio = pixel_shape
            if tick is None and times_s is not None:
                tick = Fraction(1, 90000)
            if tick is not None:
                video.codec_context.time_base = tick
            clock = tick or 1 / Fraction(rate)
            tracks: list[Any] = [
                container.add_stream(sound_codec, rate=sound_rate, layout=sound_layout) for _ in sounds
            ]
            for number, track in enumerate(tracks):
                track.disposition = Disposition.default.value if number == default_sound else 0
            for index in range(n_frames):
                frame = av.VideoFrame.from_ndarray(paint(index), format="rgb24").reformat(format=pix_fmt)
                at_s = Fraction(index) / Fraction(rate) if times_s is None else Fraction(times_s[index])
                frame.pts, frame.time_base = round(at_s / clock), clock
                if color_range is not None:
                    frame.color_range = color_range
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            for track, samples in zip(tracks, sounds, strict=True):
                start = round(sound_start_s * sound_rate)
                planar = "fltp" if sound_codec == "aac" else "s16"
                for first in range(0, samples.shape[1], 1024):
                    piece = samples[:, first : first + 1024]
                    if planar == "s16":
                        piece = np.round(piece * 32767).astype(np.int16).T.reshape(1, -1)
                    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format=planar, layout=sound_layout)
                    frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
                    frame.pts = start + first
                    container.mux(track.encode(frame))
                container.mux(track.encode(None))
        return path

    @staticmethod
    def numbered(index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """A picture [H, W, 3] that shows a number."""
        width, height = size
        column_bits = (N_BITS - 1) - np.arange(width) * N_BITS // width
        shade = np.where(index >> column_bits & 1, 220, 30).astype(np.uint8)
        return np.broadcast_to(shade[None, :, None], (height, width, 3)).copy()

    @staticmethod
    def numbers(pictures: NDArray[np.uint8]) -> list[int]:
        """The numbers that pictures [b, H, W, 3] show."""
        row = pictures[:, pictures.shape[1] // 2, :, 1]
        middles = ((np.arange(N_BITS) + 0.5) * row.shape[1] / N_BITS).astype(int)
        bits = row[:, middles] > 128
        return (bits @ (1 << np.arange(N_BITS)[::-1])).tolist()

    @staticmethod
    def pictures(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """All frames [N, H, W, 3] of a film and their times [N] in seconds, by PyAV alone."""
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), np.array([f.time for f in frames])

    @staticmethod
    def sound(path: Path, track: int = 0) -> tuple[NDArray[np.float32], int]:
        """All samples [channels, n] from time 0 on, and their rate, by PyAV alone."""
        with av.open(str(path)) as container:
            stream = container.streams.audio[track]
            resampler = av.AudioResampler("fltp", stream.layout.name, stream.rate)
            frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
            samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
            start = round(frames[0].pts * frames[0].time_base * stream.rate)
            return np.pad(samples, ((0, 0), (max(start, 0), 0)))[:, max(-start, 0) :], stream.rate

    def turned(self, path: Path, matrix: tuple[int, int, int, int]) -> Path:
        """A copy of an mp4 film whose display matrix says (a, b, c, d), as cameras write it."""
        data = bytearray(path.read_bytes())
        header = data.index(b"tkhd") + 4  # version and flags 4 bytes, then 36 bytes (version 0), then the matrix
        assert data[header] == 0
        a, b, c, d = (value << 16 for value in matrix)
        data[header + 40 : header + 76] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        copy = path.with_name("turned-" + path.name)
        copy.write_bytes(data)
        return copy

    def repeated(self, path: Path, times: int, name: str) -> Path:
        """A film several times over, its packets copied and not encoded again."""
        copy = self.folder / name
        with av.open(str(copy), "w") as film, av.open(str(path)) as container:
            streams = {stream.index: film.add_stream_from_template(stream) for stream in container.streams}
            length_s = Fraction(container.duration, av.time_base)
            for number in range(times):
                container.seek(0)
                for packet in container.demux():
                    if packet.size:
                        shift = round(number * length_s / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = streams[packet.stream_index]
                        film.mux(packet)
        return copy

    def cut_off(self, path: Path, share: float) -> Path:
        """A copy that ends after a share of the bytes."""
        data = path.read_bytes()
        copy = path.with_name("cut-off-" + path.name)
        copy.write_bytes(data[: int(len(data) * share)])
        return copy

    def damaged(self, path: Path, rng: np.random.Generator, start: float = 0.4, end: float = 0.6) -> Path:
        """A copy with noise in the middle of its bytes."""
        data = bytearray(path.read_bytes())
        first, last = int(len(data) * start), int(len(data) * end)
        data[first:last] = rng.bytes(last - first)
        copy = path.with_name("damaged-" + path.name)
        copy.write_bytes(data)
        return copy


@pytest.fixture
def media(tmp_path: Path) -> Media:
    return Media(tmp_path)


@pytest.fixture(scope="module")
def changing_film(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes ``holiday.mp4``: ten frames a second, and every second a new look of 8 x 6 blocks."""

    def write(*, n_seconds: int, block: int) -> Path:
        draws = np.random.default_rng(1)
        looks = draws.integers(0, 255, (n_seconds, 6, 8, 3), dtype=np.uint8).repeat(block, 1).repeat(block, 2)
        media = Media(tmp_path_factory.mktemp("film"))
        size = (8 * block, 6 * block)
        return media.film("holiday.mp4", 10 * n_seconds, rate=10, size=size, paint=lambda index: looks[index // 10])

    return write
