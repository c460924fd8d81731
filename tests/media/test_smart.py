"""The smart cut: exactly the pictures asked for, most of them bit for bit, and no visible join."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.clips import check_film, joined, luma_by_number, write_clip
from tests.media.test_copy import OPEN_H264
from vsum_runtime.runtime.media.film_smart import Unsuited, smart_summary

ASKED = [[10, 75], [80, 83], [100, 118]]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("plain.mp4", {}),
        ("b-pictures.mkv", {"options": {"bf": "3", "g": "24", "b-pyramid": "normal"}, "sound": "libopus"}),
        ("annex-b.ts", {"options": {"bf": "2", "g": "20"}, "start_s": 2.0}),
        ("ten-bits.mov", {"options": {"g": "25"}, "pix_fmt": "yuv420p10le", "sound": "pcm_s16le"}),
    ],
)
def test_exactly_the_pictures_asked_for_with_their_sound(
    tmp_path: Path, name: str, clip: dict[str, Any], suffix: str
) -> None:
    source = write_clip(tmp_path / name, **clip)
    out = smart_summary(source, ASKED, np.arange(121) / 30, tmp_path / f"film{suffix}")
    check = check_film(out, ASKED)
    assert (check.missing, check.extra, check.steps_back, check.silent) == ([], 0, 0, [])
    assert (np.abs(check.av_ms) > 33.4).sum() <= 2 * len(ASKED)  # beside a join, a window hears both sides
    assert np.abs(np.percentile(check.av_ms, [10, 50, 90])).max() < 6
    before, after = luma_by_number(source), luma_by_number(out)
    errors = {n: float(((after[n].astype(float) - before[n]) ** 2).mean()) for n in after}
    n_same = sum(error == 0 for error in errors.values())
    assert n_same > len(after) / 3
    assert max(errors.values()) < 255**2 / 10**4  # 40 dB
    with av.open(str(out)) as film:
        assert film.streams.video[0].codec_context.codec_tag == ("avc1" if suffix == ".mp4" else "\0\0\0\0")


def test_films_that_cannot_be_right_or_gain_nothing_are_left_to_the_exact_cut(tmp_path: Path) -> None:
    times = np.arange(121) / 30
    for clip, asked, reason in (
        ({"codec": "mpeg4"}, ASKED, "mpeg4"),
        ({"options": {"g": "250"}}, [[10, 75]], "hardly a whole group"),
        ({"options": OPEN_H264}, ASKED, "hardly a whole group"),
    ):
        source = write_clip(tmp_path / "clip.mp4", sound=None, **clip)  # type: ignore[arg-type]
        with pytest.raises(Unsuited, match=reason):
            smart_summary(source, asked, times, tmp_path / "film.mp4")
    one = write_clip(tmp_path / "one.ts", 60, sound=None)
    other = write_clip(tmp_path / "two.ts", 60, sound=None, size=(320, 240), start_s=2.0)
    with pytest.raises(Unsuited, match="parameters change midway"):
        smart_summary(joined([one, other], tmp_path / "sizes.ts"), ASKED, times, tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()
