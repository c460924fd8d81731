"""Thumbnails, storyboards, chapters and clips of films whose frames say which they are."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.media.clips import BITS, check_film, write_clip
from vsum_runtime.runtime.cli.summarize import main
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.media.stills import read_stills, write_picture
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0
from vsum_runtime.runtime.summary import Summary

RATE = 30


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number in the top rows of a picture of any size, as `tests.media.clips` writes it."""
    height, width = picture.shape[:2]
    row = picture[height // 20, :, 1]
    centres = (np.arange(BITS) + 0.5) * width / BITS
    return int(((row[centres.astype(int)] > 125).astype(int) << np.arange(BITS)).sum())


def summary_of(path: Path, n_frames: int = 120, **changes: Any) -> Summary:
    """Four shots of which the second and the last are kept; scores rise within each."""
    picks = np.arange(0, n_frames, 15)
    bounds = np.linspace(0, n_frames, 5).astype(int)
    fields: dict[str, Any] = {
        "scores": ((picks % 30) / 60 + 0.25).astype(np.float32),
        "picks": picks,
        "n_frames": n_frames,
        "shots": np.stack([bounds[:-1], bounds[1:]], axis=1),
        "shot_scores": np.full(4, 0.5),
        "chosen": np.array([1, 3]),
        "budget_frames": n_frames // 2,
        "frame_times_s": np.arange(n_frames + 1) / RATE,
        "source": path,
    }
    return Summary(**(fields | changes))


def read(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        picture: NDArray[np.uint8] = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return picture


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("b-frames.mp4", {"options": {"bf": "3", "g": "60"}}),
        ("mpeg2.ts", {"codec": "mpeg2video", "options": {"bf": "2", "g": "15"}, "start_s": 3.0}),
        ("vp9.webm", {"codec": "libvpx-vp9", "sound": None}),
    ],
)
def test_the_frames_asked_for(tmp_path: Path, name: str, clip: dict[str, Any]) -> None:
    path = write_clip(tmp_path / name, **clip)
    with read_frames(path, replace(EFFICIENTNET_LITE0, width=16, height=16)) as reader:
        for _ in reader:
            pass
    stills = list(read_stills(path, [119, 3, 60, 61, 3], reader.frame_times_s))
    assert [number for number, _ in stills] == [3, 60, 61, 119]
    assert [number_of(picture) for _, picture in stills] == [3, 60, 61, 119]


def test_a_still_has_the_shape_that_is_shown(tmp_path: Path) -> None:
    for shape, size in ((Fraction(4, 3), (144, 256)), (Fraction(3, 4), (192, 192)), (None, (144, 192))):
        path = write_clip(tmp_path / "wide.mp4", 10, size=(192, 144), shape=shape)
        ((_, picture),) = read_stills(path, [4], np.arange(11) / RATE)
        assert picture.shape == (*size, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_picture_is_read_back_and_may_be_replaced(tmp_path: Path, suffix: str) -> None:
    film = write_clip(tmp_path / "film.mp4")
    out = tmp_path / f"best{suffix}"
    summary = summary_of(film)
    for _ in range(2):  # the second time over our own
        assert summary.write_thumbnail(out) == out
    picture = read(out)
    assert picture.shape == (144, 256, 3)
    assert number_of(picture) == summary.best_frame()
    own = np.full((20, 30, 3), 90, dtype=np.uint8)
    with av.open(str(tmp_path / f"theirs{suffix}"), "w", format="image2") as container:
        stream: Any = container.add_stream({".jpg": "mjpeg", ".png": "png", ".webp": "libwebp"}[suffix])
        stream.width, stream.height = 30, 20
        stream.pix_fmt = {".jpg": "yuvj420p", ".png": "rgb24", ".webp": "yuv420p"}[suffix]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(own, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="not an earlier result"):
        summary.write_thumbnail(tmp_path / f"theirs{suffix}")
    summary.write_thumbnail(tmp_path / f"theirs{suffix}", overwrite=True)


def test_the_best_frame_is_kept_sharp_and_not_black(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 255, (90, 160, 3), dtype=np.uint8)
    blurred = np.broadcast_to(np.linspace(60, 200, 160)[:, None], (90, 160, 3)).astype(np.uint8)
    pictures = [np.zeros_like(sharp)] * 60 + [blurred] * 60 + [sharp] * 60 + [blurred] * 60
    with av.open(str(film), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    everything = summary_of(film, 240, chosen=np.arange(4), scores=np.full(16, 0.5, dtype=np.float32))
    assert 120 <= everything.best_frame() < 180
    black = summary_of(film, 240, chosen=np.array([0]), scores=np.full(16, 0.5, dtype=np.float32))
    assert 0 <= black.best_frame() < 60  # there is nothing else to show


@pytest.mark.parametrize("every_s", [None, 0.5])
def test_each_tile_of_a_storyboard_shows_its_time(tmp_path: Path, every_s: float | None) -> None:
    summary = summary_of(write_clip(tmp_path / "film.mp4"))
    picture, cues = summary.write_storyboard(tmp_path / "board.png", every_s=every_s)
    sheet = read(picture)
    blocks = re.findall(r"(\S+) --> (\S+)\n(\S+)#xywh=(\d+),(\d+),(\d+),(\d+)", cues.read_text())
    assert cues.read_text().startswith("WEBVTT\n\n")
    assert len(blocks) == (4 if every_s is None else 8)
    ends = [block[1] for block in blocks]
    assert [block[0] for block in blocks] == ["00:00:00.000", *ends[:-1]]
    assert ends[-1] == "00:00:04.000"
    for start, end, name, *place in blocks:
        left, top, width, height = map(int, place)
        number = number_of(sheet[top : top + height, left : left + width])
        seconds = [60 * int(t[3:5]) + float(t[6:]) for t in (start, end)]
        assert name == "board.png"
        assert seconds[0] <= number / RATE + 1e-3
        assert number / RATE < seconds[1]


@pytest.mark.parametrize("every_s", [0.0, -1.0, float("nan"), 0.001])
def test_a_storyboard_of_too_many_frames_or_none_is_refused(tmp_path: Path, every_s: float) -> None:
    summary = summary_of(write_clip(tmp_path / "film.mp4", 120), 120)
    with pytest.raises(InputError, match="storyboard: expected"):
        summary.write_storyboard(tmp_path / "board.png", every_s=every_s)
    assert not list(tmp_path.glob("board*"))


def test_a_picture_beyond_what_its_format_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 16383 pixels a side"):
        write_picture(np.zeros((2, 16384, 3), dtype=np.uint8), tmp_path / "wide.webp")


def test_chapters_are_the_shots(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "film.mp4")
    times = re.findall(r"(\S+) --> (\S+)\n(.+)", summary.chapters())
    assert times == [
        ("00:00:00.000", "00:00:01.000", "Shot 1"),
        ("00:00:01.000", "00:00:02.000", "Shot 2 (kept)"),
        ("00:00:02.000", "00:00:03.000", "Shot 3"),
        ("00:00:03.000", "00:00:04.000", "Shot 4 (kept)"),
    ]
    blocks = summary.chapters("ffmetadata").split("[CHAPTER]")
    assert blocks[0] == ";FFMETADATA1\n"
    assert blocks[2] == "\nTIMEBASE=1/1000\nSTART=1000\nEND=2000\ntitle=Shot 2 (kept)\n\n"


def test_chapters_of_youtube_are_long_enough(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "film.mp4", 120, frame_times_s=np.arange(121) * 0.4)  # shots of 12 s
    assert summary.chapters("youtube") == "0:00 Shot 1\n0:12 Shot 2 (kept)\n0:24 Shot 3\n0:36 Shot 4 (kept)\n"
    with pytest.raises(InputError, match="this video gives 1"):
        summary_of(tmp_path / "film.mp4").chapters("youtube")
    with pytest.raises(InputError, match="expected one of vtt, ffmetadata, youtube"):
        summary.chapters("srt")


def test_every_kept_shot_is_a_clip_of_its_own(tmp_path: Path) -> None:
    summary = summary_of(write_clip(tmp_path / "film.mp4"))
    clips = summary.write_clips(tmp_path / "clips")
    assert [clip.name for clip in clips] == ["01_0-00-01.mp4", "02_0-00-03.mp4"]
    for clip, (start, end) in zip(clips, ([30, 60], [90, 120]), strict=True):
        assert check_film(clip, [[start, end]]).numbers == list(range(start, end))


def test_features_alone_have_no_stills(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "film.mp4", source=None)
    for write in (summary.write_thumbnail, summary.write_storyboard, summary.write_clips):
        with pytest.raises(InputError, match="made from features"):
            write(tmp_path / "out.png")


def test_the_command_writes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = write_clip(tmp_path / "film.mp4", 150)
    given = [
        "--thumbnail",
        "t.jpg",
        "--storyboard",
        "b.webp",
        "--every",
        "1s",
        "--chapters",
        "c.vtt",
        "--clips",
        "clips",
    ]
    paths = [str(tmp_path / part) if re.match(r"\w+(\.\w+)?$", part) and part != "1s" else part for part in given]
    assert main([str(film), "-o", str(tmp_path / "s.mp4"), "--budget", "50%", *paths]) == 0
    for name in ("s.mp4", "t.jpg", "b.webp", "b.vtt", "c.vtt"):
        assert (tmp_path / name).stat().st_size > 0
    assert list((tmp_path / "clips").iterdir())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thumbnail", "t.gif"], "expected a name ending in .jpg, .png, .webp"),
        (["--every", "5s"], "goes with --storyboard"),
        (["--storyboard", "b.jpg", "--every", "5%"], "--every: expected a time such as 10s"),
        (["--chapters", "c.srt"], "--chapters: expected a name ending in .vtt, .ffmetadata, .txt"),
        (["--storyboard", "b.jpg", "--chapters", "b.vtt"], "expected different files"),
        (["--clips", "film.mp4"], "--clips: expected a folder, found a file"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "film.mp4", 30)
    assert main(["film.mp4", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
