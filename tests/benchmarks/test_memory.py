"""Memory does not grow with the length of a film; the real run takes two hours of real clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.memory import join, summarize

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no peak of memory to be read here")


def clip(path: Path, size: tuple[int, int], n_frames: int, shades: Sequence[int]) -> Path:
    with av.open(str(path), "w") as film:
        video, sound = film.add_stream("libx264", rate=30), film.add_stream("aac", rate=48000, layout="mono")
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        for index in range(n_frames):
            picture = np.full((size[1], size[0], 3), shades[index * len(shades) // n_frames], dtype=np.uint8)
            film.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            hum = np.sin(np.arange(1600, dtype=np.float32)[None] / 20)
            samples = av.AudioFrame.from_ndarray(hum, format="fltp", layout="mono")
            samples.sample_rate = 48000
            film.mux(sound.encode(samples))
        film.mux(video.encode(None))
        film.mux(sound.encode(None))
    return path


def test_a_film_ten_times_as_long_takes_hardly_more_memory(tmp_path: Path) -> None:
    clips = [
        clip(tmp_path / "a.mp4", (64, 48), 240, (40, 200, 90)),
        clip(tmp_path / "b.mp4", (96, 64), 120, (230, 10)),  # joined recordings need not be alike
    ]
    peaks = {}
    for seconds in (24, 240):
        film, out = tmp_path / f"{seconds}.ts", tmp_path / f"{seconds}.mp4"
        join(clips, film, seconds)
        peak = summarize(film, out).peak_bytes
        assert peak is not None
        peaks[seconds] = peak
        with av.open(str(out)) as summary:
            assert 0.1 * seconds < summary.duration / av.time_base < 0.16 * seconds
    assert peaks[240] < peaks[24] + 40e6
