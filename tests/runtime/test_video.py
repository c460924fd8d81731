"""Reading videos: which frames are sampled, when they are shown, what they look like, and what is refused."""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.clips import write_clip
from vsum_runtime.runtime.errors import InputError, VideoError
from vsum_runtime.runtime.media.frames import FrameReader, read_frames
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0, GOOGLENET, Recipe

SMALL = replace(EFFICIENTNET_LITE0, width=64, height=48)
EVERY = replace(SMALL, rate_hz=None, stride=1)


def read(path: Path, recipe: Recipe = SMALL, **options: Any) -> tuple[np.ndarray, FrameReader]:
    with read_frames(path, recipe, **options) as reader:
        blocks = list(reader)
    return np.concatenate(blocks), reader


def picks_by_definition(times_s: list[float], rate_hz: float) -> list[int]:
    """Sample k is the first frame at or after k / rate; a frame is taken once."""
    n_samples = int(times_s[-1] * rate_hz) + 1
    return sorted({next(i for i, t in enumerate(times_s) if t >= k / rate_hz - 1e-6) for k in range(n_samples)})


@pytest.mark.parametrize("rate", [30, 24, 25, Fraction(24000, 1001), Fraction(30000, 1001), 60, 2, 1])
def test_two_frames_a_second_at_any_constant_rate(media: Any, rate: Fraction | int) -> None:
    n_frames = max(4, int(3 * rate))
    pictures, reader = read(media.film("film.mp4", n_frames, rate=rate))
    times = [float(i / Fraction(rate)) for i in range(n_frames)]
    assert reader.picks.tolist() == picks_by_definition(times, 2.0)
    assert media.numbers(pictures) == reader.picks.tolist()
    assert reader.n_frames == n_frames
    np.testing.assert_allclose(reader.frame_times_s, [*times, float(n_frames / Fraction(rate))], atol=1e-4)


def test_variable_rate_is_sampled_by_time(media: Any, rng: np.random.Generator) -> None:
    times = np.concatenate([[0], np.cumsum(rng.choice([0.02, 0.05, 0.4, 1.3], size=59))]).tolist()
    pictures, reader = read(media.film("film.mp4", 60, times_s=times))
    assert reader.picks.tolist() == picks_by_definition(times, 2.0)
    assert media.numbers(pictures) == reader.picks.tolist()
    np.testing.assert_allclose(reader.frame_times_s[:-1], times, atol=1e-4)
    assert np.all(np.diff(reader.frame_times_s) > 0)


def test_a_clock_in_milliseconds_takes_the_same_frames(media: Any) -> None:
    thirds = replace(SMALL, rate_hz=3.0)  # frame 10 is due at 1/3 s, which such a clock calls 0.333
    fine = read(media.film("film.mp4", 90), thirds)[1]
    rounded = read(media.film("film.mkv", 90), thirds)[1]
    assert rounded.picks.tolist() == fine.picks.tolist() == list(range(0, 90, 10))


def test_stride_counts_frames_whatever_the_rate(media: Any) -> None:
    recipe = replace(SMALL, rate_hz=None, stride=15)
    pictures, reader = read(media.film("film.mp4", 50, rate=24), recipe)
    assert reader.picks.tolist() == [0, 15, 30, 45]
    assert media.numbers(pictures) == [0, 15, 30, 45]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_times_start_at_zero_wherever_the_file_starts(media: Any, name: str) -> None:
    times = [10 + i / 30 for i in range(40)]
    reader = read(media.film(name, 40, times_s=times))[1]
    assert reader.frame_times_s[0] == 0
    assert reader.picks.tolist() == [0, 15, 30]


@pytest.mark.parametrize("name", ["film.h264", "film.avi"])
def test_missing_or_wrong_time_stamps_are_repaired(media: Any, name: str) -> None:
    path = media.film(name, 60, rate=25, options={"preset": "medium", "bf": "3"})
    pictures, reader = read(path, EVERY)
    assert media.numbers(pictures) == list(range(60))
    np.testing.assert_allclose(reader.frame_times_s, np.arange(61) / 25, atol=2.01 / 25)
    assert np.all(np.diff(reader.frame_times_s) > 0)


def test_joined_recordings_go_on_where_the_clock_jumps_back(media: Any) -> None:
    first, second = media.film("a.ts", 60).read_bytes(), media.film("b.ts", 60).read_bytes()
    path = media.folder / "joined.ts"
    path.write_bytes(first + second)
    _, reader = read(path, EVERY)
    assert reader.n_frames == 120
    np.testing.assert_allclose(reader.frame_times_s, np.arange(121) / 30, atol=0.1)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),  # a phone held upright: a quarter turn clockwise
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),  # a mirror
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    ],
)
def test_rotation_is_applied(media: Any, matrix: tuple[int, int, int, int], turn: Any) -> None:
    corners = np.full((48, 64, 3), 128, dtype=np.uint8)
    corners[:16, :16], corners[:16, -16:], corners[-16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = media.turned(media.film("film.mp4", 3, paint=lambda _: corners), matrix)
    upright = turn(corners)
    pictures, _ = read(path, replace(SMALL, width=upright.shape[1], height=upright.shape[0]))
    for row in (8, -8):
        for column in (8, -8):
            np.testing.assert_allclose(pictures[0, row, column], upright[row, column], atol=20)


def test_no_frame_waits_for_the_garbage_collector(media: Any) -> None:
    path = media.turned(media.film("film.mp4", 60), (0, 1, -1, 0))
    gc.collect()
    gc.disable()
    try:
        read(path, EVERY)
        n_kept = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    assert n_kept < 10


def test_center_crop_keeps_the_middle_and_the_shape(media: Any) -> None:
    picture = np.full((60, 100, 3), 40, dtype=np.uint8)
    picture[10:50, 30:70] = 200  # the middle square, two thirds of the height
    recipe = replace(GOOGLENET, width=60, height=60, shorter_side=90)
    seen = read(media.film("film.mp4", 2, size=(100, 60), paint=lambda _: picture), recipe)[0][0]
    # 100 x 60 becomes 150 x 90: the square is rows and columns 15 .. 75 of the middle 90, the crop its inner 60.
    assert seen.shape == (60, 60, 3)
    assert seen[2:-2, 2:-2].min() > 180


def test_squash_ignores_the_shape(media: Any) -> None:
    picture = np.full((60, 100, 3), 40, dtype=np.uint8)
    picture[:30] = 200
    seen = read(media.film("film.mp4", 2, size=(100, 60), paint=lambda _: picture))[0][0]
    assert seen.shape == (48, 64, 3)
    assert seen[:22].min() > 180
    assert seen[26:].max() < 60


def test_colours_are_red_green_blue(media: Any) -> None:
    bands = np.zeros((48, 64, 3), dtype=np.uint8)
    bands[:, :21, 0] = bands[:, 21:42, 1] = bands[:, 42:, 2] = 200
    seen = read(media.film("film.mp4", 2, paint=lambda _: bands))[0][0]
    for column in (10, 32, 53):
        np.testing.assert_allclose(seen[24, column], bands[24, column], atol=12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ten-bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("odd.mkv", {"codec": "ffv1", "size": (67, 51), "pix_fmt": "yuv420p"}),
        ("full-chroma.mp4", {"pix_fmt": "yuv444p"}),
        ("interlaced.mp4", {"options": {"x264-params": "tff=1"}}),
        ("grey.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("palette.gif", {"codec": "gif", "pix_fmt": "rgb8", "rate": 25}),
        ("motion.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("b-frames.mp4", {"options": {"preset": "medium", "bf": "3"}}),
        ("xvid.avi", {"codec": "mpeg4"}),
    ],
)
def test_kinds_of_video(media: Any, name: str, options: dict[str, Any]) -> None:
    pictures, reader = read(media.film(name, 40, **options), EVERY)
    assert media.numbers(pictures) == list(range(40))
    assert reader.n_frames == 40


def test_one_frame(media: Any) -> None:
    pictures, reader = read(media.film("film.mp4", 1))
    assert pictures.shape == (1, 48, 64, 3)
    assert reader.picks.tolist() == [0]
    np.testing.assert_allclose(reader.frame_times_s, [0, 1 / 30], atol=1e-3)


def test_a_size_that_changes_on_the_way(media: Any) -> None:
    path = media.folder / "joined.h264"
    path.write_bytes(media.film("a.h264", 20).read_bytes() + media.film("b.h264", 20, size=(96, 80)).read_bytes())
    pictures, reader = read(path, EVERY)
    assert reader.n_frames == 40
    assert media.numbers(pictures) == [*range(20), *range(20)]


def test_what_the_file_says_of_itself(media: Any) -> None:
    silent = media.film("silent.mp4", 30, rate=25, size=(96, 64))
    loud = media.film("loud.mov", 30, sounds=[np.zeros((1, 48000), dtype=np.float32)])
    with read_frames(silent, SMALL) as reader:
        assert (reader.width, reader.height, reader.has_audio) == (96, 64, False)
        assert reader.average_rate_hz == 25
        assert reader.duration_s == pytest.approx(1.2, abs=0.01)
    with read_frames(loud, SMALL) as reader:
        assert reader.has_audio


def test_blocks_are_bounded_and_stay_as_they_were(media: Any) -> None:
    with read_frames(media.film("film.mp4", 50), EVERY, block_size=16) as reader:
        blocks = list(reader)
    assert [len(block) for block in blocks] == [16, 16, 16, 2]
    assert media.numbers(np.concatenate(blocks)) == list(range(50))


def test_progress_rises_to_one(media: Any) -> None:
    shares: list[float] = []
    read(media.film("film.mp4", 60), EVERY, progress=shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-1] == pytest.approx(1.0)


def test_a_reader_is_read_once(media: Any) -> None:
    with read_frames(media.film("film.mp4", 4), SMALL) as reader:
        list(reader)
        with pytest.raises(InputError, match="one pass"):
            list(reader)


@pytest.mark.parametrize("name", ["film.mkv", "film.ts"])
def test_a_cut_off_file_gives_what_is_there_and_a_warning(
    media: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = media.cut_off(media.film(name, 240), 0.5)
    with caplog.at_level(logging.WARNING, logger="vsum_runtime.runtime.media.frames"):
        pictures, reader = read(path, EVERY)
    assert 80 <= reader.n_frames <= 160
    assert media.numbers(pictures)[:80] == list(range(80))
    if name == "film.mkv":  # a transport stream promises no duration
        assert "cut off or damaged" in caplog.text


@pytest.mark.parametrize("name", ["film.mp4", "film.ts", "film.mkv"])
def test_a_recording_that_starts_late_is_not_taken_for_a_damaged_one(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, 60, size=(128, 72), start_s=5.0)
    with read_frames(path, SMALL) as reader:
        list(reader)
    assert reader.frame_times_s[-1] == pytest.approx(2.0, abs=0.01)
    assert reader.duration_s == pytest.approx(2.0, abs=0.1)
    assert reader.warnings == []


@pytest.mark.parametrize("name", ["film.mp4", "film.ts", "film.mkv"])
def test_damage_in_the_middle_is_passed_over(media: Any, name: str, rng: np.random.Generator) -> None:
    path = media.damaged(media.film(name, 200), rng)
    pictures, reader = read(path, EVERY)
    numbers = media.numbers(pictures)
    assert numbers[:60] == list(range(60))
    assert numbers[-15:] == list(range(185, 200))
    assert reader.n_frames < 200
    assert np.all(np.diff(reader.frame_times_s) > 0)
    assert reader.frame_times_s[-1] == pytest.approx(200 / 30, abs=0.2)


@pytest.mark.parametrize(
    "name", ["é漢 100%d #1?.mp4", "a:b.mp4", "concat:x|y.mp4", "-i.mp4", os.fsdecode(b"raw-\xff.mp4")]
)
def test_names_with_odd_characters(media: Any, name: str) -> None:
    path = media.film("film.mp4", 3).rename(media.folder / name)
    assert read(path, EVERY)[1].n_frames == 3


def test_a_relative_path_with_a_colon(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    media.film("film.mp4", 3).rename(media.folder / "http:x.mp4")
    monkeypatch.chdir(media.folder)
    assert read(Path("http:x.mp4"), EVERY)[1].n_frames == 3


def bad_file(media: Any, kind: str) -> Path:
    path: Path = media.folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a video\n" * 100)
    elif kind == "directory":
        path.mkdir()
    elif kind == "cut-off-index":
        path = media.cut_off(media.film("film.mp4", 60), 0.5)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "sound-only":
        path = media.folder / "sound.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "found nothing there"),
        ("empty", "0 bytes"),
        ("text", "cannot be read as one"),
        ("noise", "cannot be read as one"),
        ("directory", "found a directory"),
        ("cut-off-index", "cannot be read as one"),
        ("sound-only", "expected a video stream, found only audio"),
    ],
)
def test_what_is_not_a_video_is_refused(media: Any, kind: str, message: str) -> None:
    path = bad_file(media, kind)
    with pytest.raises(VideoError, match=message) as caught:
        read(path)
    assert path.name in str(caught.value)


def test_a_long_damaged_stretch_does_not_end_the_reading(media: Any) -> None:
    path = media.film("film.mp4", 250)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        places = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places[12:228]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    pictures, reader = read(path, EVERY)
    assert media.numbers(pictures) == [*range(12), *range(228, 250)]
    assert reader.frame_times_s[-1] == pytest.approx(250 / 30, abs=1e-3)


def test_a_video_without_one_good_frame_is_refused(media: Any, rng: np.random.Generator) -> None:
    path = media.film("film.mp4", 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="none could be decoded"):
        read(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_refused(media: Any) -> None:
    path = media.film("film.mp4", 3)
    path.chmod(0)
    with pytest.raises(VideoError, match="ermission"):
        read(path)


LISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "DASH": '<?xml version="1.0"?>\n<MPD type="static"><BaseURL>{name}</BaseURL></MPD>\n',
    "Smooth Streaming": '<SmoothStreamingMedia MajorVersion="2">{name}</SmoothStreamingMedia>\n',
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={name}\nm=video 5004 RTP/AVP 96\n",
    "PLS": "[playlist]\nFile1={name}\n",
    "ASX": '<asx version="3.0"><entry><ref href="{name}"/></entry></asx>\n',
}


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".m3u8", ".mpd", ".ffconcat", ".sdp", ""])
@pytest.mark.parametrize("kind", list(LISTS))
def test_only_the_file_itself_is_read(media: Any, kind: str, suffix: str) -> None:
    """A list of other files is refused by its name, whatever it is called, and nothing that it names is opened."""
    film = media.film("film.ts", 3)
    path = media.folder / f"list{suffix}"
    for text in (LISTS[kind], "\ufeff" + LISTS[kind], LISTS[kind].replace("{name}", "file:{name}")):
        path.write_text(text.format(name=film.name), encoding="utf-8")
        with pytest.raises(
            VideoError, match=rf"list{suffix}: expected a video file, found .*{kind}.*names other files"
        ):
            read(path)


def test_a_name_that_reads_like_a_pattern_opens_no_other_file(media: Any) -> None:
    film = media.film("film.mjpeg", 1, codec="mjpeg", pix_fmt="yuvj420p")
    for name in ("1.jpg", "2.jpg", "%d.jpg"):
        (media.folder / name).write_bytes(film.read_bytes())
    assert read(media.folder / "1.jpg")[1].n_frames == 1
    with pytest.raises(VideoError, match="reads like a pattern"):
        read(media.folder / "%d.jpg")
