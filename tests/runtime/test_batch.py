"""Many videos with the default model: one bad file does not stop the others, and a killed run goes on where it was."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.cli import features
from vsum_runtime.runtime.cli import many as batch
from vsum_runtime.runtime.cli.summarize import main
from vsum_runtime.runtime.errors import BundleError, InputError
from vsum_runtime.runtime.summarizer_process import SummarizerProcess

ROOT = Path(__file__).resolve().parents[2]
REPEATABLE = (128, 96)
"""x264 writes other bytes for the same pictures now and then, unless their width is a multiple of eight macroblocks of
16 pixels (its SIMD code for mbtree looks past the last macroblock of a row)."""


_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2  # of <linux/prctl.h>, <linux/capability.h>


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def films(media: Any, count: int) -> Path:
    folder: Path = media.folder / "in"
    folder.mkdir()
    for number in range(count):
        media.film(f"in/film {number}.mp4", 60 + 12 * number, size=REPEATABLE)
    return folder


def test_bad_files_fail_and_the_others_finish(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = films(media, 2)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mkv").write_text("not a video")
    (folder / "notes.txt").write_text("not even called one")
    media.film("in/é漢 100%d [x]?.mp4", 60)
    (folder / "a directory.mp4").mkdir()
    out, report = media.folder / "out", media.folder / "report.jsonl"
    assert main([str(folder), "-o", str(out), "--report", str(report), "--jobs", "2"]) == 1
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    status = {Path(line["video"]).name: line["status"] for line in lines}
    assert status == {
        "film 0.mp4": "done",
        "film 1.mp4": "done",
        "é漢 100%d [x]?.mp4": "done",
        "empty.mp4": "failed",
        "text.mkv": "failed",
    }
    assert "0 bytes" in next(line["error"] for line in lines if "empty" in line["video"])
    assert "3 done, 0 skipped, 2 failed" in capsys.readouterr().err
    assert {path.suffix for path in out.iterdir()} == {".mp4", ".json"}
    assert len(list(out.iterdir())) == 6


def test_finished_videos_are_skipped_until_something_changes(media: Any) -> None:
    folder, out, report = films(media, 2), media.folder / "out", media.folder / "report.jsonl"
    arguments = [str(folder), "-o", str(out), "--report", str(report)]

    def statuses(*more: str) -> list[str]:
        report.unlink(missing_ok=True)
        assert main([*arguments, *more]) == 0
        return [json.loads(line)["status"] for line in report.read_text().splitlines()]

    assert statuses() == ["done", "done"]
    before = contents(out)
    assert statuses() == ["skipped", "skipped"]
    assert statuses("--budget", "30%") == ["done", "done"]
    assert statuses() == ["done", "done"]
    assert contents(out) == before
    media.film("in/film 0.mp4", 75, size=REPEATABLE)
    (out / "film 1.summary.mp4").write_bytes(b"damaged")
    assert statuses() == ["done", "done"]
    assert contents(out)["film 1.summary.mp4"] == before["film 1.summary.mp4"]


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """vsum-summarize as a process of its own, which interrupts and missing permissions stop."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "vsum_runtime.runtime.cli.summarize", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_as_of_a_terminal,
    )


def _as_of_a_terminal() -> None:
    # Where the tests run in the background, a shell has interrupts ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":  # the superuser may read and write everything: not without these capabilities
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_a_run_killed_at_ten_moments_ends_in_the_same_files(media: Any) -> None:
    folder = films(media, 3)
    whole, broken = media.folder / "whole", media.folder / "broken"

    def run_into(out: Path, kill_after_s: float | None = None) -> int:
        with started(folder, "-o", out, "--jobs", "2") as process:
            if kill_after_s is not None:
                time.sleep(kill_after_s)
                process.kill()
            process.communicate()
        return process.returncode

    began = time.monotonic()
    assert run_into(whole) == 0
    took_s = time.monotonic() - began
    draw = random.Random(0)
    for number in range(10):
        run_into(broken, draw.uniform(0.3, 1.0) * took_s)
        # As a kill between film and record leaves it; without, the later runs would have nothing left to do.
        (broken / f"film {number % 3}.summary.json").unlink(missing_ok=True)
    assert run_into(broken) == 0
    assert contents(broken) == contents(whole)


def test_an_interrupted_run_stops_soon_and_leaves_only_whole_files(media: Any) -> None:
    folder, out = films(media, 3), media.folder / "out"
    media.repeated(folder / "film 0.mp4", 100, "in/long.mp4")
    with started(folder, "-o", out) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        more, said = process.communicate()
    n_done = len((first + more).splitlines())
    if process.returncode == 0:  # done before the interruption arrived
        assert n_done == 4
    else:
        assert process.returncode == 130, said
        assert "interrupted" in said
        assert 1 <= n_done < 4
    for record in out.glob("*.json"):
        film = record.with_suffix(".mp4").read_bytes()
        assert json.loads(record.read_text())["run"]["film_sha256"] == hashlib.sha256(film).hexdigest()
    assert len(list(out.glob("*.json"))) == n_done
    assert not list(out.glob(".*"))


def test_a_file_that_grows_while_it_is_read_is_not_called_done(media: Any) -> None:
    film, out = media.film("film.mkv", 60), media.folder / "out"

    class Growing(SummarizerProcess):
        def write_video(self, *arguments: Any, **options: Any) -> Path:
            with film.open("ab") as file:
                file.write(b"more")
            return super().write_video(*arguments, **options)

    with Growing({}) as summarizer:
        (outcome,) = batch.run(summarizer, batch.plan([film], out))
    assert outcome.status == "failed"
    assert "changed while it was read" in str(outcome.error)
    assert not list(out.glob("*.json"))


@pytest.fixture
def fatal_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every process that is started now, videos of certain names end it: what a native library does, harmlessly."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from vsum_runtime.runtime.summary import Summary\n"
        "from vsum_runtime.runtime.media import film, frames\n"
        "open_container, write = frames.open_container, Summary.write_video\n"
        "def opened(path, *arguments, **options):\n"
        "    if 'read-abort' in str(path): os.abort()\n"
        "    if 'read-kill' in str(path): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if 'read-exit' in str(path): os._exit(3)\n"
        "    return open_container(path, *arguments, **options)\n"
        "def written(self, path, **options):\n"
        "    def progress(share):\n"
        "        if 'write-abort' in str(self.source): os.abort()\n"
        "    return write(self, path, **{**options, 'progress': progress})\n"
        "frames.open_container, Summary.write_video = opened, written\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.usefixtures("fatal_names")
@pytest.mark.skipif(os.name == "nt", reason="processes end otherwise there")
@pytest.mark.parametrize("n_at_once", [1, 2])
def test_a_video_that_ends_its_process_fails_alone(
    media: Any, capfd: pytest.CaptureFixture[str], n_at_once: int
) -> None:
    folder, out = films(media, 2), media.folder / "out"
    for name in ("a read-abort", "b read-kill", "c read-exit", "e write-abort"):
        media.film(f"in/{name}.mp4", 60)
    assert main([str(folder), "-o", str(out), "--jobs", str(n_at_once)]) == 1
    said = capfd.readouterr().err
    assert "2 done, 0 skipped, 4 failed" in said
    for text in (
        "a read-abort.mp4: the process that read it died (SIGABRT: a native library aborted)",
        "b read-kill.mp4: the process that read it died (SIGKILL: killed from outside, as the system does where memory",
        "c read-exit.mp4: the process that read it died (exit code 3)",
        "e write-abort.mp4: the process that wrote its film died (SIGABRT: a native library aborted)",
    ):
        assert text in said
    assert "disk" not in said
    assert {path.name for path in out.iterdir()} == {
        f"film {number}.summary{suffix}" for number in (0, 1) for suffix in (".mp4", ".json")
    }


@pytest.mark.usefixtures("fatal_names")
@pytest.mark.skipif(os.name == "nt", reason="processes end otherwise there")
@pytest.mark.parametrize(("name", "doing"), [("read-abort", "read it"), ("write-abort", "wrote its film")])
def test_one_video_that_ends_its_process_is_told_in_a_line(
    media: Any, capfd: pytest.CaptureFixture[str], name: str, doing: str
) -> None:
    film = media.film(f"{name}.mp4", 60)
    assert main([str(film), "-o", str(media.folder / "out.mp4"), "--json", str(media.folder / "out.json")]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert f"{name}.mp4: the process that {doing} died (SIGABRT: a native library aborted)" in said
    assert {path.name for path in media.folder.iterdir()} == {film.name, "site"}


@pytest.mark.usefixtures("fatal_names")
@pytest.mark.skipif(os.name == "nt", reason="processes end otherwise there")
def test_features_of_other_videos_are_kept_where_one_ends_its_process(
    media: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    names, out = ("a", "b read-abort", "c"), media.folder / "data.h5"
    assert features.main([*(str(media.film(f"{name}.mp4", 60)) for name in names), "-o", str(out)]) == 1
    said = capfd.readouterr()
    assert "b read-abort.mp4: the process that read it died (SIGABRT: a native library aborted)" in said.err
    assert said.out == f"{out}  2 videos, 1 failed\n"
    with h5py.File(out) as file:
        assert [file[name]["video_name"][()] for name in file] == [b"a.mp4", b"c.mp4"]


def test_a_process_that_is_killed_while_it_waits_costs_no_video(media: Any) -> None:
    film = media.film("film.mp4", 60)
    with SummarizerProcess({}) as summarizer:
        summary = summarizer.summarize(film)
        (process,) = summarizer._running
        process._process.kill()
        process._process.wait()
        assert summarizer.write_video(summary, media.folder / "out.mp4").exists()


def test_a_call_that_is_interrupted_ends_and_the_process_goes_on(media: Any) -> None:
    long = media.repeated(media.film("film.mp4", 60), 100, "long.mp4")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with SummarizerProcess({}) as summarizer:
        with pytest.raises(KeyboardInterrupt):
            summarizer.summarize(long, progress=interrupt)
        before = set(summarizer._running)
        summary = summarizer.summarize(media.folder / "film.mp4")
        assert summarizer._running == before
    with Summarizer() as same:
        here = same.summarize(media.folder / "film.mp4")
    assert summary.to_dict() == here.to_dict()
    assert summary.source == here.source


def test_what_is_wrong_with_a_model_is_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found none; make one with vsum-export"):
        SummarizerProcess({"bundle": tmp_path})


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    with batch._sole_writer(tmp_path), pytest.raises(InputError, match="another run"), batch._sole_writer(tmp_path):
        pass
    with batch._sole_writer(tmp_path):
        pass


def test_names_that_would_collide(tmp_path: Path) -> None:
    jobs = batch.plan([tmp_path / "a" / "x.mp4", tmp_path / "a" / "x.mkv", tmp_path / "y.mp4"], tmp_path)
    assert [job.film.name for job in jobs] == ["x.mp4.summary.mp4", "x.mkv.summary.mp4", "y.summary.mp4"]
    with pytest.raises(InputError, match=r"called x\.mp4"):
        batch.plan([tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4"], tmp_path)
    with pytest.raises(InputError, match="found none"):
        batch.plan([tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ten-bit.mkv", {"pix_fmt": "yuv420p10le"}),
        ("interlaced.mp4", {"options": {"preset": "medium", "x264-params": "interlaced=1:tff=1"}}),
        ("variable.mp4", {"times_s": [i * i / 400 for i in range(60)]}),
        ("no-times.h264", {}),
    ],
)
def test_unusual_videos_become_films(media: Any, name: str, options: dict[str, Any]) -> None:
    out = media.folder / "out"
    assert main([str(media.film(name, 60, **options)), str(media.film("plain.mp4", 30)), "-o", str(out)]) == 0
    pictures, times = media.pictures(out / f"{Path(name).stem}.summary.mp4")
    record = json.loads((out / f"{Path(name).stem}.summary.json").read_text())
    kept = [frame for start, end in record["segments"] for frame in range(start, end)]
    assert media.numbers(pictures) == kept
    assert len(times) == record["summary_frames"] > 0


needs_permissions = pytest.mark.skipif(
    sys.platform != "linux" and (os.name == "nt" or os.geteuid() == 0), reason="nobody is refused anything here"
)


@needs_permissions
def test_a_folder_that_may_not_be_written_is_named(media: Any) -> None:
    folder = films(media, 2)
    (media.folder / "locked").mkdir(mode=0o500)
    with started(folder, "-o", media.folder / "locked" / "out") as process:
        assert "ermission denied" in process.communicate()[1]
    assert process.returncode == 2


@needs_permissions
def test_a_video_that_may_not_be_read_is_named_and_the_others_finish(media: Any) -> None:
    folder, out = films(media, 2), media.folder / "out"
    (folder / "film 0.mp4").chmod(0)
    with started(folder, "-o", out) as process:
        assert "film 0.mp4: expected a video file, it cannot be read: Permission denied" in process.communicate()[1]
    assert process.returncode == 1
    assert {path.name for path in out.iterdir()} == {"film 1.summary.mp4", "film 1.summary.json"}
    with started(folder / "film 0.mp4", "-o", media.folder / "out.mp4") as process:
        assert "ermission denied" in process.communicate()[1]
    assert process.returncode == 1
    assert not (media.folder / "out.mp4").exists()


def test_a_disk_that_is_full_ends_the_large_film_alone(
    media: Any, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    out = media.folder / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(out)], capture_output=True).returncode:
        pytest.skip("a small disk can only be made by the superuser, and not in every container")
    try:
        folder = films(media, 1)
        noise = rng.integers(0, 256, (60, 240, 320, 3), dtype=np.uint8)
        media.film("in/a large one.mp4", 60, size=(320, 240), paint=lambda index: noise[index])
        assert main([str(folder), "-o", str(out), "--budget", "90%"]) == 1
        said = capsys.readouterr().err
        assert "a large one.summary.mp4: expected to write" in said
        assert "No space left" in said
        assert "1 done, 0 skipped, 1 failed" in said
        assert {path.name for path in out.iterdir()} == {"film 0.summary.mp4", "film 0.summary.json"}
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_what_is_wrong_with_one_video_does_not_touch_the_next(media: Any, rng: np.random.Generator) -> None:
    folder, out = films(media, 1), media.folder / "out"
    noise = rng.uniform(-0.5, 0.5, (1, 48000 * 4)).astype(np.float32)
    media.damaged(media.film("in/b.ts", 90), rng)
    media.turned(media.film("in/c.mp4", 60), (0, 1, -1, 0))
    media.film("in/longer sound.mkv", 60, sounds=[noise])
    media.film("in/two tracks.mkv", 60, sounds=[noise[:, :96000], noise[:, 96000:]], default_sound=1)
    assert main([str(folder), "-o", str(out), "--jobs", "2"]) == 0
    made = {path.name.removesuffix(".summary.json"): json.loads(path.read_text()) for path in out.glob("*.json")}
    assert made.keys() == {"film 0", "b", "damaged-b", "c", "turned-c", "longer sound", "two tracks"}
    for name, record in made.items():
        pictures, _ = media.pictures(out / f"{name}.summary.mp4")
        assert len(pictures) == record["summary_frames"] > 0
        assert pictures.shape[1:3] == ((64, 48) if name == "turned-c" else (96, 128) if name == "film 0" else (48, 64))
        if name not in ("damaged-b", "turned-c"):
            kept = [frame for start, end in record["segments"] for frame in range(start, end)]
            assert media.numbers(pictures) == kept
