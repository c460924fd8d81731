"""Several runs of one command: folders, processes, sweeps, the table, and what test videos may be looked at for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.resuming import assert_same_run
from vsum_runtime.training.checkpoint import load_model, read_metadata
from vsum_runtime.training.cli import main
from vsum_runtime.training.datasets import prepare

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["--model=pgl-sum", "--option=heads=2", "--option=num_segments=2"]
RUN = Path("prepared/pgl_sum")


@pytest.fixture
def data(eight_videos: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Arguments that name a data set with shots and user summaries, and two splits of it."""
    dataset, splits = eight_videos
    prepare(dataset, tmp_path / "prepared.h5")
    (split,) = json.loads(splits.read_text())
    other = {"train_keys": split["train_keys"][:4] + split["test_keys"], "test_keys": split["train_keys"][4:]}
    splits.write_text(json.dumps([split, other]))
    return ["--dataset", str(tmp_path / "prepared.h5"), "--splits", str(splits), "--runs", str(tmp_path / "runs")]


def test_runs_in_processes_end_as_one_after_the_other(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    common = [*SMALL, *data, "--all-splits", "--epochs=3", "--peek-test", "--threads=1"]
    try:
        assert main([*common, "--seeds=4", "--jobs=2"]) == 0
        side_by_side = capsys.readouterr()
        assert main([*common, "--seeds=4", "--runs", str(tmp_path / "other")]) == 0
    finally:
        torch.set_num_threads(threads)
    one_by_one = capsys.readouterr()
    assert "split 2 seed 4  epoch 3/3  loss" in side_by_side.err
    assert side_by_side.out.splitlines()[-4:] == one_by_one.out.splitlines()[-4:]
    for split in (1, 2):
        paths = [tmp_path / runs / RUN / f"seed4/split{split}/best.safetensors" for runs in ("runs", "other")]
        assert read_metadata(paths[0])["seed"] == 4
        assert_same_run(*(path.parent for path in paths))


def test_the_table_marks_what_was_picked_on_test(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *data, "--split=1", "--seeds=0,1", "--epochs=4", "--peek-test"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert head.split("|")[-2].strip().startswith("**not a result:**")
    for seed, row in enumerate(rows):
        folder = tmp_path / "runs" / RUN / f"seed{seed}/split1"
        lines = [json.loads(text) for text in (folder / "peek.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
        best = read_metadata(folder / "best.safetensors")
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[:3] == [f"split 1 seed {seed}", f"{best['epoch']} of 4", "validation"]
        assert cells[4].startswith(f"{lines[best['epoch'] - 1]['tau']:.4f} / ")
        picked = max(lines, key=lambda line: line["tau"])
        assert cells[5].startswith(f"{picked['tau']:.4f} / ")
        assert cells[5].endswith(f"(epoch {picked['epoch']})")


def test_peeking_at_test_videos_changes_nothing_but_its_own_file(data: list[str], tmp_path: Path) -> None:
    for runs, more in (("a", ["--peek-test"]), ("b", [])):
        assert main([*SMALL, *data, "--epochs=3", "--runs", str(tmp_path / runs), *more]) == 0
    peeked, plain = (tmp_path / runs / RUN / "split1" for runs in ("a", "b"))
    assert_same_run(peeked, plain)
    for name in ("best.safetensors", "last.safetensors"):
        recorded, expected = read_metadata(peeked / name), read_metadata(plain / name)
        for line in [*recorded.get("log", ()), *expected.get("log", ())]:
            del line["seconds"]
        assert recorded == expected
    assert {path.name for path in peeked.iterdir()} - {path.name for path in plain.iterdir()} == {"peek.jsonl"}


def test_a_sweep_chooses_without_labels_and_leaves_its_best_in_the_plain_folder(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model=ca-sum", *data, "--epochs=3", "--sweep=0.5,0.9"]) == 0
    folder = tmp_path / "runs/prepared/ca_sum"
    improvement = {}
    for sigma in ("0.5", "0.9"):
        log = [json.loads(text) for text in (folder / f"sigma{sigma}/split1/log.jsonl").read_text().splitlines()]
        losses = [line["objectives"]["loss"] for line in log]
        improvement[sigma] = losses[0] - min(losses)
    best = max(improvement, key=lambda sigma: improvement[sigma])
    _, metadata = load_model(folder / "split1/best.safetensors")
    assert metadata["config"]["settings"]["sigma"] == float(best)
    assert f"split1/best.safetensors  is that of split 1 sigma {best}" in capsys.readouterr().out


def test_an_interrupt_ends_all_processes_and_the_same_command_goes_on(data: list[str], tmp_path: Path) -> None:
    arguments = [*SMALL, *data, "--all-splits", "--threads=1", "--jobs=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vsum_runtime.training.cli", *arguments, "--epochs=100000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # Where the tests run in the background, a shell has interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen: set[str] = set()
    while len(seen) < 2:  # both have finished an epoch
        line = process.stderr.readline()
        assert line
        if "epoch 1/" in line:
            seen.add(line.split("  epoch")[0])
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    told = process.stderr.read()  # until the last process that may write has ended
    process.stderr.close()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - started < 30
    assert told.count("interrupted; the same command goes on") == 3
    for split in (1, 2):
        assert read_metadata(tmp_path / "runs" / RUN / f"split{split}/last.safetensors")["epoch"] >= 1


def test_a_run_that_fails_is_named(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / RUN / "split2").mkdir(parents=True)
    (tmp_path / "runs" / RUN / "split2/last.safetensors").write_bytes(b"torn")
    assert main([*SMALL, *data, "--all-splits", "--epochs=1", "--jobs=2"]) == 1
    err = capsys.readouterr().err
    assert "1 of 2 runs failed: split 2 (code 2); their messages are above" in err
    assert "expected a checkpoint of vsum-train" in err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--sweep"], "--sweep: expected one of ca_sum, ac_sum_gan, got pgl_sum"),
        (["--jobs", "0"], "--jobs: expected a whole number, 1 or more, got '0'"),
        (["--seeds=-1"], "--seeds: expected whole numbers, 0 or more, with commas between, got '-1'"),
    ],
)
def test_what_cannot_be_run_many_times_is_refused(
    data: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], told: str
) -> None:
    assert main([*SMALL, *data, *wrong]) == 2
    assert told in capsys.readouterr().err


def test_peeking_needs_what_people_chose(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--dataset", str(eight_videos[0]), "--splits", str(eight_videos[1]), "--runs", str(tmp_path / "runs")]
    assert main([*SMALL, *files, "--peek-test"]) == 2
    assert "is missing; run: vsum-datasets prepare" in capsys.readouterr().err
