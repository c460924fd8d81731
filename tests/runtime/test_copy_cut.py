"""Copying without encoding: whole groups of pictures, bit for bit, with their sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.film_copy import copy_summary


def test_ranges_grow_to_key_frames_and_pictures_are_those_of_the_source(media: Any, rng: np.random.Generator) -> None:
    sound = (0.1 * rng.normal(size=(1, 5 * 48000))).astype(np.float32)
    source = media.film("source.mp4", 150, sounds=[sound], sound_codec="aac")  # a key frame every 12 frames
    out = media.folder / "out.mp4"
    copied = copy_summary(source, [[13, 20], [60, 72], [100, 101]], np.arange(151) / 30, out)
    expected = [*range(12, 20), *range(60, 72), *range(96, 101)]
    pictures, times = media.pictures(out)
    assert media.numbers(pictures) == expected
    np.testing.assert_array_equal(pictures, media.pictures(source)[0][expected])
    np.testing.assert_allclose(times, np.arange(25) / 30, atol=1e-3)
    assert copied.duration_s == pytest.approx(25 / 30, abs=1e-3)
    heard, rate = media.sound(out)
    assert heard.shape[1] / rate == pytest.approx(25 / 30, abs=0.07)


@pytest.mark.parametrize("name", ["film.mkv", "film.mov"])
def test_pictures_out_of_order_in_the_file_stay_whole(media: Any, name: str) -> None:
    source = media.film(name, 96, options={"preset": "medium", "bf": "3", "g": "24", "sc_threshold": "0"})
    out = media.folder / f"out{source.suffix}"
    copy_summary(source, [[30, 40], [80, 90]], np.arange(97) / 30, out)
    pictures, times = media.pictures(out)
    numbers = media.numbers(pictures)
    assert set(range(30, 40)) | set(range(80, 90)) <= set(numbers)
    assert numbers == sorted(numbers)
    assert (np.diff(times) > 0).all()


def test_a_rotated_video_stays_rotated(media: Any) -> None:
    source = media.turned(media.film("source.mp4", 30), (0, 1, -1, 0))
    out = media.folder / "out.mp4"
    copy_summary(source, [[0, 5]], np.arange(31) / 30, out)
    assert tuple(_matrix(out)[[0, 1, 3]]) == (0, 1 << 16, -(1 << 16))


def _matrix(path: Any) -> np.ndarray:
    import av
    from av.sidedata.sidedata import Type

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return np.frombuffer(bytes(frame.side_data.get(Type.DISPLAYMATRIX)), dtype=np.int32)


def test_what_cannot_be_copied_says_so(media: Any) -> None:
    raw = media.film("film.h264", 30)
    with pytest.raises(VideoError, match="cut exactly instead"):
        copy_summary(raw, [[0, 5]], np.arange(31) / 30, media.folder / "out.mp4")
    with pytest.raises(InputError, match=r"out\.webm"):
        copy_summary(raw, [[0, 5]], np.arange(31) / 30, media.folder / "out.webm")
    assert [path.name for path in media.folder.iterdir()] == ["film.h264"]
