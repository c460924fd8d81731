"""The training loop: what it learns from, which epoch it keeps, and that it can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.training.resuming import assert_same_run
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training import saver
from vsum_runtime.training.checkpoint import load_checkpoint, read_metadata
from vsum_runtime.training.cli import main
from vsum_runtime.training.config import TrainConfig, changed, published
from vsum_runtime.training.datasets import Dataset, Splits, read_dataset, read_splits, unit_rows
from vsum_runtime.training.models import MODELS, fcsn
from vsum_runtime.training.procedures import RECIPES
from vsum_runtime.training.procedures.regression import Regression
from vsum_runtime.training.runs import RunFolder
from vsum_runtime.training.selection import Epoch
from vsum_runtime.training.train import Scorer, train_split

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = {"heads": 2, "num_segments": 2}
CONFIG = changed(published("pgl_sum"), {"epochs": 4, "learning_rate": 1e-3})


@pytest.fixture
def data(eight_videos: tuple[Path, Path]) -> tuple[Dataset, Splits]:
    dataset = read_dataset(eight_videos[0])
    return dataset, read_splits(eight_videos[1], dataset)


@pytest.fixture(autouse=True)
def every_epoch_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "_WRITING_SHARE", np.inf)


def trained(data: tuple[Dataset, Splits], runs: Path, config: TrainConfig = CONFIG, **more: Any) -> Path:
    dataset, splits = data
    split = splits.splits[0]
    folder = runs / "eight/pgl_sum/split1"
    return train_split("pgl_sum", dataset, splits, split, config=config, options=OPTIONS, folder=folder, **more)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)[0]


def same(first: Path, second: Path) -> bool:
    one, other = weights_of(first), weights_of(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    log: list[Epoch] = []
    trained(data, tmp_path, changed(CONFIG, {"epochs": 60, "batch_videos": 1}), report=log.append)
    assert [entry.epoch for entry in log] == list(range(1, 61))
    losses = [entry.objectives["loss"] for entry in log]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_same_seed_same_bits_and_other_seed_other_bits(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = trained(data, tmp_path / "a")
    torch.manual_seed(2)
    assert same(first, trained(data, tmp_path / "b"))
    assert not same(first, trained(data, tmp_path / "c", dataclasses.replace(CONFIG, seed=1)))


def test_the_callers_random_state_is_left_alone(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    trained(data, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("rule", RECIPES["pgl_sum"].rules)
def test_the_test_videos_are_never_read(data: tuple[Dataset, Splits], tmp_path: Path, rule: str) -> None:
    dataset, splits = data
    config = dataclasses.replace(CONFIG, select=rule)
    with_tests = trained(data, tmp_path / "a", config)
    hidden = {key: video for key, video in dataset.videos.items() if key not in splits.splits[0].test_keys}
    without = trained((dataclasses.replace(dataset, videos=hidden), splits), tmp_path / "b", config)
    assert same(with_tests, without)


def test_the_metadata_say_what_was_learned_from_and_how_the_epoch_was_chosen(
    data: tuple[Dataset, Splits], tmp_path: Path
) -> None:
    log: list[Epoch] = []
    metadata = read_metadata(trained(data, tmp_path, report=log.append))
    dataset, splits = data
    assert metadata["dataset"] == {"name": "eight", "sha256": dataset.sha256, "recipe": ""}
    assert metadata["splits"] == {"name": "splits.json", "sha256": splits.sha256}
    assert (metadata["split"], metadata["seed"], metadata["feature_norm"]) == (1, 12345, "l2")
    assert (len(metadata["train_keys"]), len(metadata["validation_keys"])) == (5, 1)
    assert sorted(metadata["train_keys"] + metadata["validation_keys"]) == sorted(splits.splits[0].train_keys)
    best = max(log, key=lambda entry: entry.validation_tau or -1.0)
    assert metadata["selection"] == {"rule": "validation", "value": best.validation_tau}
    assert metadata["epoch"] == best.epoch
    assert metadata["config"] == dataclasses.asdict(CONFIG)


def test_a_split_with_its_own_validation_part_draws_none(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    keys = [f"video_{number}" for number in range(1, 9)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"train_keys": keys[:4], "val_keys": keys[4:6], "test_keys": keys[6:]}))
    metadata = read_metadata(trained((data[0], read_splits(file, data[0])), tmp_path))
    assert (metadata["train_keys"], metadata["validation_keys"]) == (keys[:4], keys[4:6])


def test_the_published_recipes() -> None:
    csta, pgl_sum = published("csta"), published("pgl_sum")
    assert (csta.epochs, csta.settings.learning_rate, csta.settings.weight_decay) == (100, 1e-3, 1e-7)
    assert (csta.settings.batch_videos, csta.settings.max_grad_norm, csta.settings.stretch) == (1, None, False)
    assert (pgl_sum.epochs, pgl_sum.settings.learning_rate, pgl_sum.settings.weight_decay) == (200, 5e-5, 1e-5)
    assert (pgl_sum.settings.batch_videos, pgl_sum.settings.average, pgl_sum.settings.max_grad_norm) == (None, False, 5)
    assert published("vasnet").settings.stretch
    rules = {name: published(name).select for name in MODELS.keys() & RECIPES.keys()}
    assert rules == dict.fromkeys(rules, "validation") | {
        "ca_sum": "least-loss",
        "ac_sum_gan": "reward",
        "dr_dsn": "last",
        "nonlocal_ridge": "cross-validation",
        "vslud": "last",
    }


def test_settings_are_changed_by_name_and_kept_in_their_own_type() -> None:
    config = changed(published("ac_sum_gan"), {"epochs": "7", "sparsity": "0.3", "state_gradient": "true"})
    assert (config.epochs, config.settings.sparsity, config.settings.state_gradient) == (7, 0.3, True)
    assert changed(config, {"batch_videos": "none"}).settings.batch_videos is None
    for values, told in (
        ({"sigma": 0.5}, "expected some of batch_videos, .*, got sigma"),
        ({"epochs": "2.5"}, "epochs: expected a whole number, 1 or more"),
        ({"batch_videos": "0"}, "batch_videos: expected a whole number, 1 or more"),
        ({"learning_rate": "fast"}, "learning_rate: expected a number"),
        ({"state_gradient": "perhaps"}, "state_gradient: expected true or false"),
    ):
        with pytest.raises(InputError, match=told):
            changed(config, values)


def test_features_of_unit_norm_are_left_as_they_are(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    dataset, splits = data
    unit = {
        key: dataclasses.replace(video, features=unit_rows(np.asarray(video.features)) * np.float32(1.05))
        for key, video in dataset.videos.items()
    }
    path = trained((dataclasses.replace(dataset, videos=unit), splits), tmp_path / "a")
    assert read_metadata(path)["feature_norm"] == "none"
    path = trained(data, tmp_path / "b", dataclasses.replace(CONFIG, feature_norm="none"))
    assert read_metadata(path)["feature_norm"] == "none"


def test_a_loss_that_is_not_finite_stops_the_run(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    with pytest.raises(VsumError, match="lower --learning-rate"):
        trained(data, tmp_path, changed(CONFIG, {"learning_rate": 1e29, "epochs": 20}))


def test_a_finished_run_may_be_lengthened(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    trained(data, tmp_path / "a", dataclasses.replace(CONFIG, epochs=2))
    log: list[Epoch] = []
    trained(data, tmp_path / "a", dataclasses.replace(CONFIG, epochs=5), report=log.append)
    trained(data, tmp_path / "b", dataclasses.replace(CONFIG, epochs=5))
    assert [entry.epoch for entry in log] == [1, 2, 3, 4, 5]
    folder = Path("eight/pgl_sum/split1")
    assert_same_run(tmp_path / "a" / folder, tmp_path / "b" / folder)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where the tests run in the background, a shell has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_an_epoch_is_written_waits_for_it(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    def interrupt(epoch: int, score: Scorer) -> None:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path, watch=interrupt)
    assert read_metadata(tmp_path / "eight/pgl_sum/split1/last.safetensors")["epoch"] == 1


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("turned_into", [None, SystemError("a call returned a result with an exception set")])
def test_an_interrupt_that_other_code_loses_ends_the_run(
    data: tuple[Dataset, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned_into: Exception | None
) -> None:
    epochs, run_epoch = [], Regression.run_epoch

    def losing(self: Regression, videos: Any, epoch: int) -> dict[str, float]:
        epochs.append(epoch)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        if turned_into is not None:
            raise turned_into
        return run_epoch(self, videos, epoch)

    monkeypatch.setattr(Regression, "run_epoch", losing)
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path)
    assert epochs == [1]
    assert (tmp_path / "eight/pgl_sum/split1/last.safetensors").exists() == (turned_into is None)


def test_a_run_made_otherwise_is_not_continued(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    trained(data, tmp_path)
    with pytest.raises(InputError, match=r"seed was 12345, now 1.*choose another --runs, or --fresh"):
        trained(data, tmp_path, dataclasses.replace(CONFIG, seed=1))
    assert read_metadata(trained(data, tmp_path, dataclasses.replace(CONFIG, seed=1), fresh=True))["seed"] == 1


def without_labels(dataset: Dataset) -> Dataset:
    videos = {
        key: dataclasses.replace(video, gtscore=None, user_scores=None, shots=None, user_summary=None)
        for key, video in dataset.videos.items()
    }
    return dataclasses.replace(dataset, videos=videos)


UNSUPERVISED = {
    "ca_sum": ({}, {}),
    "dr_dsn": ({}, {}),
    "ac_sum_gan": ({"hidden_size": 8, "action_state_size": 10}, {}),
    "vslud": ({"variant": "B"}, {"adversarial_weight": 0}),
}


@pytest.mark.parametrize("name", UNSUPERVISED)
def test_unsupervised_training_sees_no_labels(
    data: tuple[Dataset, Splits], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcsn, "_BLOCKS", {v: tuple((8,) * len(w) for w in b) for v, b in fcsn._BLOCKS.items()})
    monkeypatch.setattr(fcsn, "_TOP", 32)
    dataset, splits = data
    options, settings = UNSUPERVISED[name]
    config = changed(published(name), {"epochs": 2, **settings})
    bare, full = (
        train_split(name, d, splits, splits.splits[0], config=config, options=options, folder=tmp_path / folder)
        for d, folder in ((without_labels(dataset), "bare"), (dataset, "full"))
    )
    assert same(bare, full)
    assert read_metadata(bare)["validation_keys"] == []


@pytest.mark.parametrize(
    ("name", "select", "told"),
    [
        ("pgl_sum", "last", "eight: video_1/gtscore is missing"),
        ("dsnet_af", "last", "eight: video_1/gtscore is missing"),
        ("ca_sum", "validation", "validation needs user_scores or gtscore, which are missing; .* --select last"),
    ],
)
def test_missing_labels_are_named(
    data: tuple[Dataset, Splits], tmp_path: Path, name: str, select: str, told: str
) -> None:
    dataset, splits = data
    config = dataclasses.replace(published(name), select=select)
    with pytest.raises(InputError, match=told):
        train_split(name, without_labels(dataset), splits, splits.splits[0], config=config, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_pace_depends_on_its_length_is_not_lengthened(
    data: tuple[Dataset, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcsn, "_BLOCKS", {v: tuple((8,) * len(w) for w in b) for v, b in fcsn._BLOCKS.items()})
    monkeypatch.setattr(fcsn, "_TOP", 32)
    dataset, splits = data

    def train_for(epochs: int) -> Path:
        config = changed(published("vslud"), {"epochs": epochs, "adversarial_weight": 0})
        return train_split("vslud", dataset, splits, splits.splits[0], config=config, folder=tmp_path)

    train_for(1)
    with pytest.raises(InputError, match="epochs was 1, now 2"):
        train_for(2)


def test_pretrained_encoders_start_a_summarizer(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(1, 9):
        with h5py.File(texts / f"video_{number}.h5", "w") as file:
            for field in ("cat", "query", "title", "description"):
                file[field] = np.arange(3) + 200 * number
    small = ["--option=nlayers_vid=1", "--option=nhead_vid=2", "--option=nhid_vid=8", "--option=iter=1"]
    pytest.importorskip("transformers")
    files = ["--dataset", str(eight_videos[0]), "--splits", str(eight_videos[1]), "--runs", str(tmp_path / "runs")]
    pretrain = ["--model=sspvs-pretrain", *small, "--option=text_encoder=small", "--set=window_steps=8"]
    pretrain += ["--set=validation_share=0.34"]  # two videos: texts are mismatched there too
    assert main([*pretrain, *files, "--epochs=2", "--texts", str(texts)]) == 0
    assert "chosen by match-accuracy" in capsys.readouterr().out
    pretrained = tmp_path / "runs/eight/sspvs_pretrain/split1/best.safetensors"
    assert read_metadata(pretrained)["recipe"] == "sspvs_pretrain"

    train_it = ["--model=sspvs", *small, "--set=window_steps=8", "--epochs=1", "--learning-rate=0", "--select=last"]
    assert main([*train_it, *files, "--init", str(pretrained)]) == 0
    started, given = weights_of(tmp_path / "runs/eight/sspvs/split1/best.safetensors"), weights_of(pretrained)
    shared = [name for name in started if not name.startswith("score_predict.")]
    assert shared
    assert all(torch.equal(started[name], given[name]) for name in shared)
    assert main([*pretrain, *files, "--epochs=2"]) == 2
    assert "name the folder of token-id side files" in capsys.readouterr().err


def test_one_file_of_weights_is_kept_and_best_is_its_second_name(data: tuple[Dataset, Splits], tmp_path: Path) -> None:
    best = trained(data, tmp_path)
    epoch = read_metadata(best)["epoch"]
    assert sorted(path.name for path in best.parent.iterdir()) == sorted(
        ["best.safetensors", f"epoch{epoch}.safetensors", "last.safetensors", "log.jsonl", "tensorboard"]
    )
    assert best.samefile(best.parent / f"epoch{epoch}.safetensors")


KILLED_WHILE_WRITING = """
import math, os, signal, sys
from vsum_runtime.training import saver
from vsum_runtime.training.cli import main

saver._WRITING_SHARE = math.inf  # every epoch

written, flush = 0, os.fsync

def kill_at_the_last_write(descriptor):
    global written
    written += 1
    if written == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)

os.fsync = kill_at_the_last_write
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("model", "options", "writes"),
    [
        ("pgl_sum", {"heads": 2, "num_segments": 2}, ("8", "11")),
        ("ac_sum_gan", {"hidden_size": 8, "action_state_size": 10}, ("9", "12")),
    ],
)
def test_a_run_killed_while_writing_ends_with_the_same_bits(
    eight_videos: tuple[Path, Path], tmp_path: Path, model: str, options: dict[str, int], writes: tuple[str, str]
) -> None:
    def arguments(runs: str) -> list[str]:
        files = ["--dataset", str(eight_videos[0]), "--splits", str(eight_videos[1]), "--runs", str(tmp_path / runs)]
        chosen = [f"--option={name}={value}" for name, value in options.items()]
        return ["--model", model, *files, *chosen, "--epochs=12", "--threads=1"]

    folder = Path("eight") / model / "split1"
    reached = []
    threads = torch.get_num_threads()
    try:
        assert main(arguments("whole")) == 0
        for nth_write in writes:
            command = [sys.executable, "-c", KILLED_WHILE_WRITING, nth_write, *arguments("killed")]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=400)
            assert process.returncode == -signal.SIGKILL
            reached.append(read_metadata(tmp_path / "killed" / folder / "last.safetensors")["epoch"])
        assert main(arguments("killed")) == 0
    finally:
        torch.set_num_threads(threads)
    assert 0 < reached[0] < reached[1] < 12
    assert_same_run(tmp_path / "whole" / folder, tmp_path / "killed" / folder)
    assert len(RunFolder(tmp_path / "killed" / folder).read_log()) == 12
    assert not list((tmp_path / "killed" / folder).glob(".*.tmp"))


def test_the_door_trains_and_says_what_it_chose(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, splits = map(str, eight_videos)
    common = ["--model", "pgl-sum", "--option", "heads=2", "--option", "num_segments=2", "--dataset", dataset]
    common += ["--epochs", "2", "--runs", str(tmp_path / "runs")]
    assert main([*common, "--splits", splits, "--split", "all", "--select", "training-loss"]) == 0
    out, err = capsys.readouterr()
    assert "split1/best.safetensors  epoch 1 of 2, chosen by training-loss" in out
    assert "pgl_sum split 1  epoch 2/2  loss" in err
    assert main([*common, "--split", "whole", "--select", "last"]) == 0
    assert "whole/best.safetensors  epoch 2 of 2, chosen by last" in capsys.readouterr().out
    metadata = read_metadata(tmp_path / "runs/eight/pgl_sum/whole/best.safetensors")
    assert (metadata["splits"], metadata["split"], len(metadata["train_keys"])) == (None, None, 8)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--model", "nothing"], "model: expected one of ac_sum_gan, ca_sum, csta"),
        (["--split", "2"], r"split: expected 1 \.\. 1"),
        (["--dataset", "none.h5"], "none.h5"),
        (["--epochs", "0"], "epochs: expected a whole number, 1 or more"),
        (["--set", "sigma=1"], "expected some of average, .*, got sigma"),
        (["--texts", "folder"], "got texts"),
        (["--select", "test"], "select: expected one of validation, training-loss, last for pgl_sum, got 'test'"),
        (["--feature-norm", "l1"], "feature_norm: expected"),
        (["--option", "heads"], "expected NAME=VALUE"),
        (["--option", "colour=blue"], "colour"),
        (["--device", "abacus"], "--device"),
        (["--threads", "0"], "--threads"),
        (["--seed", "-1"], "seed: expected a whole number, 0 or more"),
    ],
)
def test_a_wrong_argument_ends_with_code_2_and_a_reason(
    eight_videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], told: str
) -> None:
    dataset, splits = map(str, eight_videos)
    right = ["--model", "pgl_sum", "--dataset", dataset, "--splits", splits, "--runs", str(tmp_path / "runs")]
    assert main([*right, *wrong]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vsum-train: ")
    assert re.search(told, err)
    assert not (tmp_path / "runs").exists()


def test_usage_errors_end_with_code_2(eight_videos: tuple[Path, Path]) -> None:
    assert main(["--model", "csta", "--dataset", str(eight_videos[0])]) == 2
