"""Copying without encoding: every picture asked for, in order, with its sound, from every kind of file."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.clips import Check, check_film, joined, read_film, trimmed, two_programs, with_box, write_clip
from vsum_runtime.runtime.errors import VideoError
from vsum_runtime.runtime.media.film_copy import Copied, copy_summary
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

OPEN_HEVC = {"x265-params": "keyint=30:min-keyint=30:open-gop=1:bframes=3:b-adapt=0:scenecut=0:log-level=none:pools=1"}
OPEN_H264 = {"bf": "3", "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"}
ASKED = [[10, 25], [70, 88]]


def copied(
    source: Path, asked: list[list[int]], suffix: str, n_pictures: int = 120, rate: int = 30
) -> tuple[Check, Copied, Path]:
    out = source.with_name(f"film{suffix}")
    outcome = copy_summary(source, asked, np.arange(n_pictures + 1) / rate, out)
    check = check_film(out, asked, rate=rate)
    told = [n for start, end in outcome.segments_s for n in range(round(start * rate), round(end * rate))]
    assert check.numbers == told
    return check, outcome, out


def assert_right(check: Check, reach: int = 1) -> None:
    """Nothing missing, and sound right within a picture, but for `reach` pictures from a join, which may be silent."""
    assert (check.missing, check.steps_back) == ([], 0)
    numbers = np.array(check.numbers)
    first = np.append(True, np.diff(numbers) != 1)
    beside = {n + k for n in numbers[first] for k in range(reach)} | set(numbers[np.append(first[1:], True)].tolist())
    assert set(check.silent) <= beside
    assert {number for number, ms in zip(check.heard, check.av_ms, strict=True) if abs(ms) > 33.4} <= beside
    assert np.abs(np.percentile(check.av_ms, [10, 50, 90])).max() < 6


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("b-pictures.mkv", {"options": {"bf": "3", "g": "60"}}),
        ("b-pictures.mp4", {"options": {"bf": "3", "b-pyramid": "normal"}, "start_s": 0.5}),
        ("chunks.mp4", {"container": {"chunk_duration": "1000000"}}),
        ("sound-behind.mkv", {"video_first": True}),
        ("open-groups.mp4", {"codec": "libx265", "options": OPEN_HEVC, "tag": "hvc1"}),
        ("open-groups.ts", {"codec": "libx265", "options": OPEN_HEVC}),
        ("av1.mp4", {"codec": "av1"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "sound": "libopus"}),
        ("mpeg2.ts", {"codec": "mpeg2video", "options": {"bf": "2", "g": "15"}, "sound": "mp2", "start_s": 3.0}),
        ("mpeg2.mkv", {"codec": "mpeg2video", "options": {"bf": "2", "g": "15"}, "sound": "ac3"}),
        ("mpeg4.mp4", {"codec": "mpeg4", "options": {"bf": "2", "g": "30"}}),
    ],
)
def test_every_picture_asked_for_in_order_with_its_sound(
    tmp_path: Path, name: str, clip: dict[str, Any], suffix: str
) -> None:
    check, _, _ = copied(write_clip(tmp_path / name, **clip), ASKED, suffix)
    assert_right(check)


@pytest.mark.parametrize(
    "sound", ["libmp3lame", "libopus", "ac3", "eac3", "flac", "vorbis", "pcm_s24le", "mp2", "alac"]
)
def test_sound_of_every_codec_stays_in_its_place(tmp_path: Path, sound: str) -> None:
    source = write_clip(tmp_path / "clip.mkv", sound=sound, layout="stereo", options={"bf": "2", "g": "12"})
    check, _, _ = copied(source, [[n, n + 6] for n in range(5, 110, 24)], ".mkv")
    assert_right(check, reach=2 if sound == "libmp3lame" else 1)  # one packet is silent, and the next overlaps it


@pytest.mark.parametrize(("sound", "rate_hz"), [("pcm_mulaw", 8000), ("pcm_s16le", 48000), ("pcm_u8", 11025)])
def test_uncompressed_sound_is_cut_to_the_sample(tmp_path: Path, sound: str, rate_hz: int) -> None:
    source = write_clip(tmp_path / "clip.mov", sound=sound, sound_rate=rate_hz, options={"g": "5"})
    check, _, out = copied(source, [[n, n + 5] for n in range(5, 115, 10)], ".mov")
    assert (check.missing, check.extra, check.silent) == ([], 0, [])
    assert check.worst_av_ms < 3
    assert len(read_film(out).sound) == pytest.approx(11 * 5 / 30 * rate_hz, abs=1)


def test_sound_that_starts_late_or_ends_early_leaves_pcm_in_place(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mov", sound="pcm_s16le", sound_from_s=0.5, sound_until_s=3.0)
    check, _, _ = copied(source, [[0, 30], [60, 120]], ".mov")
    assert set(check.silent) == set(range(15)) | set(range(90, 120))
    assert len(check.av_ms) == 45
    assert check.worst_av_ms < 3


def test_a_trimmed_start_stays_hidden(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", options={"g": "40", "bf": "2"})
    source = trimmed(whole, tmp_path / "trimmed.mp4", 1.5)
    assert read_film(source).numbers == list(range(45, 120))
    out = tmp_path / "film.mp4"
    outcome = copy_summary(source, [[5, 15], [50, 60]], np.arange(76) / 30, out)
    check = check_film(out, [[50, 60], [95, 105]])
    assert_right(check)
    told = [n for start, end in outcome.segments_s for n in range(round(start * 30), round(end * 30))]
    assert [45 + n for n in told] == read_film(out).numbers
    assert told[0] == 0
    with pytest.raises(VideoError, match=r"hides.*\.mp4"):
        copy_summary(source, [[5, 15]], np.arange(76) / 30, tmp_path / "film.mkv")


def test_a_recording_that_begins_in_mid_group(tmp_path: Path) -> None:
    data = write_clip(
        tmp_path / "whole.ts", codec="mpeg2video", options={"g": "15", "bf": "2"}, sound="mp2"
    ).read_bytes()
    source = tmp_path / "cut.ts"
    source.write_bytes(data[: 188 * 3] + data[188 * (len(data) // 188 // 5) :])
    numbers = read_film(source).numbers
    assert numbers[0] > 5
    asked = [[numbers.index(60), numbers.index(75)]]
    out = tmp_path / "film.mkv"
    copy_summary(source, asked, np.append(np.array(numbers) - numbers[0], 120 - numbers[0]) / 30, out)
    assert_right(check_film(out, [[60, 75]]))


def test_the_sample_entry_of_hevc_is_kept(tmp_path: Path) -> None:
    for name, tag, expected in (("a.mp4", "hvc1", "hvc1"), ("b.mp4", "hev1", "hev1"), ("c.ts", None, "hvc1")):
        source = write_clip(tmp_path / name, 60, codec="libx265", tag=tag, sound=None)
        copy_summary(source, [[0, 10]], np.arange(61) / 30, tmp_path / "film.mp4")
        with av.open(str(tmp_path / "film.mp4")) as film:
            assert film.streams.video[0].codec_context.codec_tag == expected


def test_variable_durations_are_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    times = np.concatenate([[0], np.cumsum(rng.choice([0.02, 0.05, 0.1, 0.4], size=90))])
    source = write_clip(tmp_path / "clip.mkv", times_s=times[:90].tolist(), sound=None, options={"bf": "3", "g": "20"})
    out = tmp_path / "film.mkv"
    copy_summary(source, [[5, 15], [61, 75]], times, out)
    film = read_film(out)
    steps = np.diff(film.times_s)[:-1]
    inside = np.diff(film.numbers) == 1
    expected = (times[1:] - times[:-1])[film.numbers[:-1]]
    np.testing.assert_allclose(steps[inside], expected[inside], atol=2e-3)


def test_what_cannot_be_copied_right_is_refused(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.ts", 60)
    other = write_clip(tmp_path / "two.ts", 60, size=(320, 240), start_s=2.0, first_number=60)
    source = joined([one, other], tmp_path / "sizes.ts")
    with pytest.raises(VideoError, match=r"parameters change midway.*--cut exact"):
        copy_summary(source, [[10, 20], [80, 90]], np.arange(121) / 30, tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()


def test_shape_of_the_container_is_kept(tmp_path: Path) -> None:
    square = write_clip(tmp_path / "square.mp4", 60, shape=Fraction(1), sound=None)
    with av.open(str(square)) as container, av.open(str(tmp_path / "shape.mp4"), "w") as film:
        video = container.streams.video[0]
        copy = film.add_stream_from_template(video, opaque=True)
        copy.codec_context.sample_aspect_ratio = Fraction(3, 4)
        for packet in container.demux(video):
            if packet.size:
                packet.stream = copy
                film.mux(packet)
    for suffix in (".mp4", ".mov"):
        copy_summary(tmp_path / "shape.mp4", [[0, 30]], np.arange(61) / 30, tmp_path / f"film{suffix}")
        assert read_film(tmp_path / f"film{suffix}").shape == Fraction(3, 4)
    with pytest.raises(VideoError, match=r"shape.*\.mp4"):
        copy_summary(tmp_path / "shape.mp4", [[0, 30]], np.arange(61) / 30, tmp_path / "film.mkv")


def test_the_sphere_of_a_360_degree_video_is_kept(tmp_path: Path) -> None:
    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content) + 8) + kind + content

    header = box(b"prhd", bytes(4) + struct.pack(">3i", 90 << 16, 0, 0))
    projection = box(b"proj", header + box(b"equi", bytes(20)))
    sphere = box(b"sv3d", box(b"svhd", bytes(4) + b"made\0") + projection)
    plain = write_clip(tmp_path / "plain.mp4", 60, sound=None)
    source = with_box(plain, tmp_path / "sphere.mp4", ["moov", "trak", "mdia", "minf", "stbl", "stsd", "avc1"], sphere)
    copy_summary(source, [[0, 30]], np.arange(61) / 30, tmp_path / "film.mp4")
    assert header in (tmp_path / "film.mp4").read_bytes()


def source_times(source: Path) -> np.ndarray:
    with read_frames(source, replace(EFFICIENTNET_LITE0, width=16, height=16)) as reader:
        for _ in reader:
            pass
        return reader.frame_times_s


def test_a_clock_that_starts_again_is_mended_as_in_the_exact_cut(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.ts", 60, sound_until_s=2.8)  # its sound is longer than its pictures
    two = write_clip(tmp_path / "two.ts", 60, first_number=60, sound_ahead_s=2.0)
    source = joined([one, two], tmp_path / "joined.ts")
    out = tmp_path / "film.mp4"
    copied_ = copy_summary(source, [[20, 30], [80, 110]], source_times(source), out)
    check = check_film(out, [[20, 30], [80, 110]])
    assert_right(check)
    assert copied_.segments_s[1] == pytest.approx((2.8, 2.8 + 50 / 30), abs=0.2)


def test_a_clock_that_wraps_runs_on(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "wraps.ts", start_s=95442.0)
    copy_summary(source, [[20, 110]], source_times(source), tmp_path / "film.mp4")
    assert_right(check_film(tmp_path / "film.mp4", [[20, 110]]))


def test_sound_is_that_of_the_programme(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.ts", sound_bit_rate=128_000)
    two = write_clip(tmp_path / "two.ts", size=(64, 64), sound_ahead_s=5, sound_bit_rate=192_000)
    source = two_programs(one, two, tmp_path / "both.ts")
    copy_summary(source, ASKED, source_times(source), tmp_path / "film.mp4")
    assert_right(check_film(tmp_path / "film.mp4", ASKED))


def test_an_edit_list_of_several_pieces_is_refused_where_it_cuts_into_groups(tmp_path: Path) -> None:
    plain = write_clip(tmp_path / "plain.mp4", 90, sound=None, options={"g": "40", "bf": "0"})
    data = plain.read_bytes()
    at = data.index(b"elst")
    size, count = struct.unpack(">I", data[at - 4 : at])[0], struct.unpack(">I", data[at + 8 : at + 12])[0]
    assert (size, count) == (28, 1)
    ticks = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    edits = [(500, 0), (1000, round(1.5 * ticks))]  # milliseconds of film, start in the media
    entries = b"".join(struct.pack(">IiI", length, start, 1 << 16) for length, start in edits)
    source = tmp_path / "edits.mp4"
    source.write_bytes(data[: at + 8] + struct.pack(">I", 2) + entries[:12] + data[at + 24 :])
    edited = with_box(source, tmp_path / "two.mp4", ["moov", "trak", "edts", "elst"], entries[12:])
    assert read_film(edited).numbers == [*range(15), *range(45, 75)]
    with pytest.raises(VideoError, match=r"several pieces.*--cut exact"):
        copy_summary(edited, [[5, 30]], source_times(edited), tmp_path / "film.mp4")
