"""No writer ever replaces what it reads, nor a film, picture or data set that it did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vsum_runtime.runtime.cli import features, summarize
from vsum_runtime.runtime.errors import DiskError, InputError
from vsum_runtime.runtime.file_kinds import kind_of
from vsum_runtime.runtime.summary import Summary
from vsum_runtime.runtime.targets import check_target

LINKS: dict[str, Callable[[Path, Path], None]] = {
    "symbolic": lambda film, link: link.symlink_to(film.name),
    "hard": lambda film, link: os.link(film, link),
}


def whole_film(source: Path | None, n_frames: int = 60) -> Summary:
    return Summary(
        scores=np.ones(4, np.float32),
        picks=np.array([0, 15, 30, 45]),
        n_frames=n_frames,
        shots=np.array([[0, 15], [15, 60]]),
        shot_scores=np.array([1.0, 0.5]),
        chosen=np.array([0]),
        budget_frames=30,
        frame_times_s=np.arange(n_frames + 1) / 30,
        source=source,
    )


@pytest.mark.parametrize("cut", ["exact", "smart", "copy"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_write_video_never_writes_over_its_source(media: Any, cut: str, overwrite: bool) -> None:
    film = media.film("film.mp4", 60)
    before = film.read_bytes()
    with pytest.raises(InputError, match="is read, so it cannot be written too"):
        whole_film(film).write_video(film, cut=cut, overwrite=overwrite)
    for name, link in LINKS.items():
        link(film, media.folder / f"{name}.mp4")
        with pytest.raises(InputError, match=r"same file as .*film\.mp4, which is read"):
            whole_film(film).write_video(media.folder / f"{name}.mp4", cut=cut, overwrite=overwrite)
    assert film.read_bytes() == before


@pytest.mark.parametrize("cut", ["exact", "smart", "copy"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_an_own_film_is_replaced_and_that_of_somebody_only_with_overwrite(media: Any, cut: str, suffix: str) -> None:
    summary, theirs = whole_film(media.film("film.mp4", 60)), media.film(f"theirs{suffix}", 90)
    before = theirs.read_bytes()
    ours = summary.write_video(media.folder / f"ours{suffix}", cut=cut)
    assert summary.write_video(ours, cut=cut) == ours
    with pytest.raises(InputError, match="exists and is a film, not an earlier result"):
        summary.write_video(theirs, cut=cut)
    assert theirs.read_bytes() == before
    summary.write_video(theirs, cut=cut, overwrite=True)
    assert len(media.pictures(theirs)[0]) < 90


def test_an_own_plot_is_replaced_and_a_photograph_is_not(tmp_path: Path) -> None:
    from PIL import Image

    summary = whole_film(None)
    for suffix in (".png", ".svg", ".pdf"):
        ours = summary.plot(tmp_path / f"ours{suffix}")
        assert kind_of(ours) in ("a picture", "a drawing")
        assert summary.plot(ours) == ours
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="is a picture"):
        summary.plot(tmp_path / "photo.png")
    summary.plot(tmp_path / "photo.png", overwrite=True)


@pytest.mark.parametrize("writer", ["-o", "--json", "--plot"])
def test_the_command_refuses_before_it_begins(media: Any, writer: str, capsys: pytest.CaptureFixture[str]) -> None:
    film, other = media.film("film.mp4", 60), media.film("other.mp4", 60)
    names = {"-o": ".mp4", "--json": ".json", "--plot": ".png"}
    read, theirs = (media.folder / f"{name}{names[writer]}" for name in ("read", "theirs"))
    read.symlink_to(film)
    theirs.write_bytes(other.read_bytes())
    before = sorted(media.folder.iterdir())
    arguments = [str(film), "-o", str(media.folder / "out.mp4")]
    assert summarize.main([*arguments, writer, str(read), "--overwrite"]) == 2
    assert summarize.main([*arguments, writer, str(theirs)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "reading" in line] == []
    assert "which is read" in said[0]
    assert "is a film" in said[1]
    assert sorted(media.folder.iterdir()) == before


def test_json_is_never_written_into_a_film(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    film = media.film("film.mp4", 60)
    ours = whole_film(film).write_video(media.folder / "o1.mp4")
    before = ours.read_bytes()
    for out in ("o1.mp4", "new.mp4"):
        assert summarize.main([str(film), "-o", str(media.folder / "out.mp4"), "--json", str(media.folder / out)]) == 2
        assert f"expected a name such as {Path(out).stem}.json" in capsys.readouterr().err
    twice = str(media.folder / "same.mp4")
    assert summarize.main([str(film), "-o", twice, "--plot", twice]) == 2
    assert ours.read_bytes() == before


def test_many_videos_refuse_a_source_among_the_results(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    media.film("film.mp4", 60)
    theirs = media.film("film.summary.mp4", 60)
    before = theirs.read_bytes()
    named = [str(media.folder / "film.mp4"), str(theirs)]
    assert summarize.main([*named, "-o", str(media.folder), "--overwrite"]) == 2
    assert "film.summary.mp4: is read, so it cannot be written too" in capsys.readouterr().err
    assert summarize.main([str(media.folder), "-o", str(media.folder)]) == 2
    assert "film.summary.mp4: exists and is a film, not an earlier result" in capsys.readouterr().err
    assert summarize.main([*named, "-o", str(media.folder / "out"), "--report", str(theirs)]) == 2
    assert theirs.read_bytes() == before


def test_features_replace_their_own_file_and_no_other(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    film = media.film("film.mp4", 60)
    out, theirs = media.folder / "data.h5", media.folder / "theirs.h5"
    with h5py.File(theirs, "w") as file:
        file["video_1/gtscore"] = np.ones(4)
    assert features.main([str(film), "-o", str(theirs)]) == 2
    assert "is an HDF5 file" in capsys.readouterr().err
    assert features.main([str(film), "-o", str(out)]) == 0
    assert features.main([str(film), "-o", str(out)]) == 0
    assert features.main([str(film), "-o", str(theirs), "--overwrite"]) == 0
    assert features.main([str(film), "-o", str(media.folder / "data.npz")]) == 2
    assert "expected a name ending in .h5" in capsys.readouterr().err


def test_datasets_and_reports_refuse_their_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vsum_runtime.training import evaluate
    from vsum_runtime.training.datasets import cli as datasets

    source, table, splits = tmp_path / "data.h5", tmp_path / "anno.tsv", tmp_path / "splits.json"
    with h5py.File(source, "w") as file:
        file["video_1/n_frames"], file["video_1/picks"] = 30, [0, 15]
        file["video_1/features"] = np.eye(2, dtype=np.float32)
    table.write_text("film\tx\t1,1\n")
    splits.write_text(json.dumps([{"train_keys": [], "test_keys": ["video_1"]}]))
    os.link(source, tmp_path / "link.h5")
    before = source.read_bytes()
    assert datasets.main(["prepare", str(source), str(tmp_path / "link.h5"), "--overwrite"]) == 2
    assert datasets.main(["prepare", str(source), str(table), "--annotations", str(table)]) == 2
    for out in (source, splits, tmp_path / "link.h5"):
        assert evaluate.main(["--dataset", str(source), "--splits", str(splits), "--json", str(out)]) == 2
    assert all("is read" in line or "which is read" in line for line in capsys.readouterr().err.splitlines())
    (tmp_path / "out.h5").write_bytes(before)
    assert datasets.main(["prepare", str(source), str(tmp_path / "out.h5")]) == 2
    assert "is an HDF5 file" in capsys.readouterr().err
    assert datasets.main(["prepare", str(source), str(tmp_path / "new.h5")]) == 0
    assert datasets.main(["prepare", str(source), str(tmp_path / "new.h5")]) == 0
    assert source.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that refuses: /dev/full and /proc of Linux")
def test_a_report_on_a_disk_that_refuses_is_one_line(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mp4", "b.mp4"):
        media.film(name, 4)
    assert summarize.main([str(media.folder), "--report", "/proc/report.jsonl", "-o", str(media.folder / "out")]) == 1
    error = capsys.readouterr().err
    assert "--report: /proc/report.jsonl cannot be written" in error
    assert "Traceback" not in error
    with summarize._Report(Path("/dev/full")) as report, pytest.raises(DiskError, match="No space left on device"):
        report.append("line")


def test_devices_directories_and_missing_folders_are_no_targets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found a device"):
        check_target("/dev/null")
    with pytest.raises(InputError, match="found a directory"):
        check_target(tmp_path)
    with pytest.raises(InputError, match="make it first"):
        check_target(tmp_path / "absent" / "file")
    check_target(tmp_path / "new")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts", "m2ts", "flv", "mpg", "h264", "asf", "nut"])
def test_films_are_known_by_their_first_bytes(media: Any, suffix: str) -> None:
    film = media.film(f"a.{suffix}", 30, codec="mpeg2video" if suffix == "mpg" else "libx264")
    film.rename(media.folder / "nameless")
    assert kind_of(media.folder / "nameless") == "a film"


def test_text_is_none_of_the_kinds(tmp_path: Path) -> None:
    for text in (whole_film(None).to_json(), "a free text", "Good morning\n" * 100, "", "BM", "ID,name\n1,a\n"):
        (tmp_path / "text").write_text(text)
        assert kind_of(tmp_path / "text") is None, text
