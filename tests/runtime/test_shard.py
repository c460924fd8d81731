"""Shares of many videos: together the whole, none twice, the same on every machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from vsum_runtime.runtime.cli.shard import Shard, parse
from vsum_runtime.runtime.cli.summarize import main

NAMES = [f"day{n % 7}_{n:05}.mp4" for n in range(2000)]


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_shards_are_the_whole_and_none_has_a_video_of_another(count: int) -> None:
    shares = [[name for name in NAMES if Shard(number, count).holds(name)] for number in range(1, count + 1)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)
    assert max(map(len, shares)) < 2 * len(NAMES) / count


@pytest.mark.parametrize(("name", "number"), [("a.mp4", 33), ("ä.mkv", 3)])
def test_the_share_is_that_of_the_first_eight_bytes_of_the_sha256(name: str, number: int) -> None:
    assert [n for n in range(1, 65) if Shard(n, 64).holds(name)] == [number]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/64", {}, Shard(3, 64)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "5"},
            Shard(3, 5),
        ),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "0"}, Shard(1, 8)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "4", "AWS_BATCH_JOB_ARRAY_SIZE": "5"}, Shard(5, 5)),
        ("auto/6", {"JOB_COMPLETION_INDEX": "5"}, Shard(6, 6)),
    ],
)
def test_schedulers_tell_the_number(text: str, environment: dict[str, str], expected: Shard) -> None:
    assert parse(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/4", {}, "expected a share from 1/4 to 4/4, got 0/4"),
        ("5/4", {}, "expected a share from 1/4 to 4/4, got 5/4"),
        ("1/0", {}, "expected a share from"),
        ("half", {}, "expected a share such as 3/64, or auto under a scheduler, got 'half'"),
        ("auto", {}, "auto: expected one of SLURM_ARRAY_TASK_ID, "),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "5"},
            "JOB_COMPLETION_INDEX tells the number of this task alone",
        ),
        ("auto/4", {"JOB_COMPLETION_INDEX": "5"}, "expected a share from 1/4 to 4/4, got 6/4"),
    ],
)
def test_what_is_no_share_is_refused(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refusal:
        parse(text, environment)
    assert message in str(refusal.value)


def test_shards_fill_one_folder(media: Any, capfd: pytest.CaptureFixture[str]) -> None:
    fcntl = pytest.importorskip("fcntl", reason="files are not locked on Windows")
    (media.folder / "in").mkdir()
    for number in range(5):
        media.film(f"in/film {number}.mp4", 30)
    folder, out = media.folder / "in", media.folder / "out"
    made = []
    for number in (1, 2):
        assert main([str(folder), "-o", str(out), "--shard", f"{number}/2"]) == 0
        made += [Path(line).name for line in capfd.readouterr().out.splitlines()]
    assert sorted(made) == [f"film {number}.summary.mp4" for number in range(5)]
    assert main([str(folder), "-o", str(out)]) == 0
    assert "0 done, 5 skipped, 0 failed" in capfd.readouterr().err
    with (out / ".shard-1-of-2.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(folder), "-o", str(out), "--shard", "1/2"]) == 2
        assert "another run writes there" in capfd.readouterr().err
        assert main([str(folder), "-o", str(out), "--shard", "2/2"]) == 0
