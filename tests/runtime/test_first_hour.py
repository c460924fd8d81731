"""What a newcomer gives vsum-summarize in the first hour, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.cli.many import plan
from vsum_runtime.runtime.cli.summarize import main
from vsum_runtime.runtime.errors import InputError, VideoError


def test_a_cut_off_video_is_told_by_the_command_the_json_the_cache_and_the_server(
    media: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from vsum_runtime.runtime.serve import video_worker

    film, record = media.cut_off(media.film("film.mkv", 240), 0.5), media.folder / "film.json"
    cache = ["--cache", str(media.folder / "cache")]
    for _ in ("decoded", "from the cache"):
        assert main([str(film), "-o", str(media.folder / "out.mp4"), "--json", str(record), *cache]) == 0
        (said,) = json.loads(record.read_text())["warnings"]
        assert said.endswith("of 8.0 s, it is cut off or damaged")
        assert f"note: {film}: {said}" in capsys.readouterr().err
    task = {"bundle": None, "backend": "auto", "threads": 1, "budget": 0.5, "folder": str(media.folder)}
    task |= {"work": str(media.folder), "video": str(film), "name": "film.mkv", "max_pixels": 1e9, "max_seconds": 1e9}
    video_worker._summarize(task)
    answered = video_worker.load(media.folder, "film.mkv", "model").to_dict()
    assert answered["warnings"] == [said]
    page = (Path(video_worker.__file__).parent / "rest" / "static" / "page.js").read_text()
    assert "shown.warnings" in page


def test_a_whole_video_has_no_warnings(media: Any) -> None:
    with Summarizer() as summarizer:
        assert summarizer.summarize(media.film("film.mkv", 60)).to_dict()["warnings"] == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("photo.jpg", "found a picture; a film of one picture has nothing to choose from"),
        ("photo.png", "found a picture"),
        ("features.npz", "found an archive of NumPy arrays; features at hand go to Summarizer.summarize_features"),
        ("features.npy", "found an archive of NumPy arrays"),
        ("page.pdf", "found a drawing; give the path of a video"),
        ("data.h5", "found an HDF5 file"),
    ],
)
def test_what_is_no_video_is_told_by_its_kind(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    if name.endswith((".jpg", ".png")):
        from PIL import Image

        Image.new("RGB", (64, 48)).save(file)
    elif name.endswith(".npz"):
        np.savez(file, features=np.ones((4, 8), np.float32))
    elif name.endswith(".npy"):
        np.save(file, np.ones((4, 8), np.float32))
    else:
        file.write_bytes(b"%PDF-1.7" if name.endswith(".pdf") else b"\x89HDF\r\n\x1a\n")
    with Summarizer() as summarizer, pytest.raises(VideoError, match=told):
        summarizer.summarize(file)
    assert main(["-q", str(file), "-o", str(tmp_path / "out.mp4")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_moving_pictures_are_videos(media: Any) -> None:
    for name, codec, pix_fmt in (("a.gif", "gif", "rgb8"), ("a.mjpeg", "mjpeg", "yuvj420p")):
        film = media.film(name, 40, codec=codec, pix_fmt=pix_fmt, rate=10)
        with Summarizer() as summarizer:
            assert summarizer.summarize(film, budget=0.5).n_frames == 40


def test_directories_inside_a_directory(tmp_path: Path) -> None:
    for place in ("a.mp4", "day1/a.mp4", "day2/deep/b.mp4", ".hidden/c.mp4", "day1/a.summary.mp4", "day1/notes.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "day2" / "loop").symlink_to(tmp_path)
    out = tmp_path / "out"
    assert [job.film.name for job in plan([tmp_path], out)] == ["a.summary.mp4"]
    jobs = plan([tmp_path], out, recursive=True)
    assert {job.video.relative_to(tmp_path).as_posix(): job.film.name for job in jobs} == {
        "a.mp4": "a.summary.mp4",
        "day1/a.mp4": "day1_a.summary.mp4",
        "day2/deep/b.mp4": "day2_deep_b.summary.mp4",
    }
    with pytest.raises(InputError, match="found none; --recursive looks into the directories inside it, too"):
        plan([tmp_path / "day2"], out)


def test_a_folder_as_out_takes_the_film_of_one_video(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    film = media.film("film.mp4", 60)
    (media.folder / "films").mkdir()
    assert main(["-q", str(film), "-o", str(media.folder / "films")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(str(media.folder / "films" / "film.summary.mp4"))
