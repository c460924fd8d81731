"""The clips' own truth: what is written is what is read, by PyAV alone."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests.media.clips import check_film, joined, read_film, trimmed, two_programs, write_clip


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("clip.mp4", "libx264", "aac"),
        ("clip.mkv", "libvpx-vp9", "libopus"),
        ("clip.mov", "mpeg4", "pcm_s16le"),
        ("clip.ts", "mpeg2video", "mp2"),
    ],
)
def test_a_clip_shows_and_lets_hear_what_it_was_made_of(tmp_path: Path, name: str, codec: str, sound: str) -> None:
    check = check_film(write_clip(tmp_path / name, 60, codec=codec, sound=sound), [[0, 60]])
    assert (check.missing, check.extra, check.steps_back, check.silent) == ([], 0, 0, [])
    assert np.abs(np.percentile(check.av_ms, [5, 95])).max() < 5


def test_displaced_sound_and_silence_are_seen(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "late.mkv", 60, sound="flac", sound_ahead_s=0.1, sound_from_s=1.0)
    check = check_film(film, [[0, 70]])
    assert check.missing == list(range(60, 70))
    assert check.silent == list(range(30))
    assert np.median(check.av_ms) == pytest.approx(100, abs=1)


def test_trims_joins_and_programmes_are_what_they_say(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", 90)
    assert read_film(trimmed(whole, tmp_path / "trimmed.mp4", 1.5)).numbers == list(range(45, 90))
    one = write_clip(tmp_path / "one.ts", 45)
    two = write_clip(tmp_path / "two.ts", 45, first_number=45, sound_ahead_s=5)
    assert read_film(joined([one, two], tmp_path / "joined.ts")).numbers == list(range(90))
    with av.open(str(two_programs(one, two, tmp_path / "both.ts"))) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "video", "audio"]
        shown = [f.to_ndarray(format="gray") for f in container.decode(container.streams.video[1])]
    assert len(shown) == 45
