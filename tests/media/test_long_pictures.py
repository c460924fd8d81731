"""Pictures that are shown for long: budgets are times, stills are cut within, and memory does not grow with them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media.clips import read_film, write_clip
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.film_copy import copy_summary
from vsum_runtime.runtime.media.film_smart import Unsuited, smart_summary
from vsum_runtime.runtime.media.frames import FrameReader, read_frames
from vsum_runtime.runtime.media.sound import Sound
from vsum_runtime.runtime.media.sparse import Irregular
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

STILL_S = 60


def movement_still_movement(path: Path) -> Path:
    """6 s of movement, one picture for a minute, 6 s of movement, at 15 pictures a second."""
    times = [i / 15 for i in range(91)] + [6 + STILL_S + i / 15 for i in range(90)]
    return write_clip(path, len(times), rate=15, times_s=times, size=(128, 96), sound=None)


def sampled(path: Path, *, sparse: bool) -> FrameReader:
    with read_frames(path, EFFICIENTNET_LITE0, sparse=sparse) as reader:
        n_pictures = sum(len(block) for block in reader)
    assert reader.rows.max() + 1 == n_pictures
    return reader


@pytest.mark.parametrize("name", ["still.mp4", "still.mkv"])
def test_a_long_picture_counts_as_frames_of_a_second(tmp_path: Path, name: str) -> None:
    path = movement_still_movement(tmp_path / name)
    reader = sampled(path, sparse=False)
    times = reader.frame_times_s
    assert reader.n_frames == 90 + STILL_S + 90
    np.testing.assert_allclose(times[90 : 90 + STILL_S], 6 + np.arange(STILL_S), atol=0.002)
    assert times[-1] == pytest.approx(STILL_S + 12, abs=0.01)
    shown = reader.rows[(reader.picks >= 90) & (reader.picks < 90 + STILL_S)]
    assert len(shown) == STILL_S
    assert len(set(shown.tolist())) == 1  # the network sees it once
    try:
        sparse = sampled(path, sparse=True)
    except Irregular:  # a container that does not say how long pictures last
        return
    for name in ("picks", "rows", "frame_times_s"):
        np.testing.assert_array_equal(getattr(sparse, name), getattr(reader, name))


def test_the_budget_is_a_time_and_movement_is_kept(tmp_path: Path) -> None:
    path = movement_still_movement(tmp_path / "still.mp4")
    with Summarizer() as summarizer:
        summary = summarizer.summarize(path, budget="20s")
    assert 12 <= summary.duration_s <= 20
    film = read_film(summary.write_video(tmp_path / "film.mp4"))
    assert film.times_s[-1] == pytest.approx(summary.duration_s, abs=0.05)
    assert set(range(0, 83)) | set(range(100, 181)) <= set(film.numbers)


@pytest.mark.parametrize("n_pictures", [2, 3], ids=["of one length", "and a short one"])
def test_pictures_longer_than_the_budget_are_cut_within(tmp_path: Path, n_pictures: int) -> None:
    if n_pictures == 2:
        path = write_clip(tmp_path / "two.mp4", 2, rate=Fraction(1, 150), sound=None)
    else:
        path = write_clip(tmp_path / "three.mp4", 3, times_s=[0, 150, 300], sound=None)
    with Summarizer() as summarizer:
        summary = summarizer.summarize(path, budget="30s")
    assert 15 <= summary.duration_s <= 30.1
    film = read_film(summary.write_video(tmp_path / "film.mp4"))
    assert film.times_s[-1] == pytest.approx(summary.duration_s, abs=0.05)


def test_sound_of_a_part_of_a_long_picture_is_that_part(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", 3, times_s=[0, 10, 20], rate=1)
    times = sampled(path, sparse=False).frame_times_s
    assert len(times) == 31
    film = read_film(write_summary(path, [[4, 7], [12, 14]], tmp_path / "film.mp4", frame_times_s=times))
    assert film.numbers == [0, 1]
    np.testing.assert_allclose(film.times_s, [0, 3, 5], atol=0.01)
    for at_s, source_s in ((1.0, 5.0), (2.5, 6.5), (4.0, 13.0)):
        heard_s = film.heard_at(at_s)
        assert heard_s is not None
        assert heard_s == pytest.approx(source_s, abs=0.01)


def test_a_copy_shows_a_long_picture_for_the_range_alone(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mov", 3, times_s=[0, 10, 20], rate=1, options={"g": "1"}, sound="pcm_s16le")
    times = sampled(path, sparse=False).frame_times_s
    outcome = copy_summary(path, [[4, 7], [12, 14]], times, tmp_path / "film.mov")
    assert outcome.segments_s == [(4.0, 7.0), (12.0, 14.0)]
    film = read_film(tmp_path / "film.mov")
    assert film.numbers == [0, 1]
    np.testing.assert_allclose(film.times_s, [0, 3, 5], atol=0.01)
    for at_s, source_s in ((1.0, 5.0), (2.5, 6.5), (4.0, 13.0)):
        assert film.heard_at(at_s) == pytest.approx(source_s, abs=0.01)
    with pytest.raises(Unsuited, match="a range begins or ends within a picture"):
        smart_summary(path, [[4, 7]], times, tmp_path / "smart.mov")


def test_sound_is_read_a_second_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is shown meanwhile: an hour of it is 690 MB of samples."""
    path = write_clip(tmp_path / "slow.mp4", 2, times_s=[0, 20], rate=1)
    counts = []
    take = Sound.take

    def counted(self: Sound, start: int, count: int) -> NDArray[np.float32]:
        counts.append(count)
        return take(self, start, count)

    monkeypatch.setattr(Sound, "take", counted)
    write_summary(path, [[0, 1]], tmp_path / "film.mp4")
    assert (max(counts), sum(counts)) == (48000, 20 * 48000)
