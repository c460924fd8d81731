"""What classes declare is read from their source as Python would tell it, and mistakes are refused without torch."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import read_dataset, read_splits
from vsum_runtime.training.declared import check_arguments, default_class, fields, keyword_options
from vsum_runtime.training.models import MODELS, build
from vsum_runtime.training.procedures import RECIPES, SWEPT, find_recipe, procedure_class

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_those_of_the_procedure(name: str) -> None:
    recipe = find_recipe(name)
    module, _, procedure = recipe.procedure.partition(":")
    module = f"vsum_runtime.training.procedures.{module}"
    defaults = procedure_class(recipe).defaults
    assert default_class(module, procedure) == type(defaults).__name__
    expected = {field.name: field.type for field in dataclasses.fields(defaults)}
    assert fields(module, type(defaults).__name__) == expected


@pytest.mark.parametrize("name", MODELS)
def test_options_are_those_of_the_model(name: str) -> None:
    module, _, class_name = MODELS[name].partition(":")
    parameters = inspect.signature(getattr(import_module(module), class_name)).parameters.values()
    assert keyword_options(module, class_name) in ([], [p.name for p in parameters if p.kind == p.KEYWORD_ONLY])


def test_what_is_swept_is_what_can_be_swept() -> None:
    from vsum_runtime.training.many import SWEEPS

    assert set(SWEPT) == set(SWEEPS)


def test_one_model_has_one_name_however_it_is_spelt() -> None:
    assert find_recipe("DR-DSN") is find_recipe("dr_dsn") is RECIPES["dr_dsn"]
    assert type(build("dr-dsn", feature_dim=8)) is type(build("dr_dsn", feature_dim=8))
    check_arguments("ca_sum", {"epochs": "2", "sigma": "0.5"}, {})


def test_lists_name_every_model() -> None:
    with pytest.raises(InputError) as refusal:
        find_recipe("nothing")
    for name in (*MODELS, *RECIPES):
        assert f" {name}," in str(refusal.value)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--model", "cstta"], "model: expected one of ac_sum_gan, ca_sum, csta, dr_dsn,"),
        (["--epochs", "0"], "epochs: expected a whole number, 1 or more, got '0'"),
        (["--epochs", "1.5"], "epochs: expected a whole number, 1 or more, got '1.5'"),
        (["--seed", "-1"], "seed: expected a whole number, 0 or more, got '-1'"),
        (["--learning-rate", "fast"], "learning_rate: expected a number, 0 or more, got 'fast'"),
        (["--batch-videos", "0"], "batch_videos: expected a whole number, 1 or more, got '0'"),
        (["--select", "best"], "select: expected one of validation, training-loss, last for csta, got 'best'"),
        (["--set", "batchvideos=2"], "settings: expected some of average, batch_videos,"),
        (["--set", "stretch=perhaps"], "stretch: expected true or false, got 'perhaps'"),
        (["--option", "sale=1"], "csta: unknown option sale; it has model_name, scale,"),
        (["--option", "softmax_axis=X"], "softmax_axis: expected one of None, T, D, TD, got 'X'"),
        (["--option", "dropout_ratio=2"], "dropout_ratio: expected a number, 0 to 1, got '2'"),
        (
            ["--model", "vasnet", "--option", "hidden_size=1"],
            "hidden_size: expected a whole number, 2 or more, got '1'",
        ),
        (["--split", "1", "9"], "split: expected 1 .. 1 or 'all' for splits.json, got '9'"),
        (["--sweep"], "--sweep: expected one of ca_sum, ac_sum_gan, got csta"),
        (["--seeds", "0,x"], "--seeds: expected whole numbers, 0 or more, with commas between, got '0,x'"),
        (["--split", "first"], "--split: expected numbers from 1, all or whole, got 'first'"),
        (["--device", "gpu"], "--device: expected cpu, cuda or cuda:1, got 'gpu'"),
        (["--jobs", "0"], "--jobs: expected a whole number, 1 or more, got '0'"),
        (["--splits", "none.json"], "--splits: expected a split file, found no none.json"),
    ],
)
def test_mistakes_are_refused_before_torch_or_numba_is_loaded(
    argv: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsum_runtime.training import cli

    def loaded(*_: object) -> None:
        raise AssertionError("the data set is read")

    monkeypatch.setattr("vsum_runtime.training.datasets.read_dataset", loaded)
    (tmp_path / "splits.json").write_text('[{"train_keys": ["video_1"], "test_keys": ["video_2"]}]')
    given = ["--model", "csta", "--dataset", "data.h5", "--splits", str(tmp_path / "splits.json")]
    assert cli.main([*given, *argv]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_checking_arguments_loads_neither_torch_nor_numba() -> None:
    script = (
        "import sys\nfrom vsum_runtime.training.cli import main\n"
        "code = main(['--model', 'csta', '--dataset', 'x.h5', '--split', 'whole', '--option', 'sale=1'])\n"
        "heavy = {'torch', 'numba', 'h5py', 'av', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code != 2 or heavy else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_splits_that_use_half_of_the_videos_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(tmp_path / "tvsum.h5", "w") as file:
        for number in range(1, 5):
            file[f"video_{number}/n_frames"], file[f"video_{number}/picks"] = 30, [0, 15]
            file[f"video_{number}/features"] = np.eye(2, dtype=np.float32)
    dataset = read_dataset(tmp_path / "tvsum.h5")
    half, whole = tmp_path / "summe_partition.json", tmp_path / "tvsum_partition.json"
    half.write_text(json.dumps([{"train_keys": ["video_1"], "test_keys": ["video_2"]}]))
    whole.write_text(json.dumps([{"train_keys": ["video_1", "video_3"], "test_keys": ["video_2", "video_4"]}]))
    read_splits(whole, dataset)
    assert caplog.text == ""
    read_splits(half, dataset)
    assert "its splits use 2 of the 4 videos of tvsum; is it the split file of this data set?" in caplog.text
