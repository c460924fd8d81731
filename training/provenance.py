"""What a checkpoint's metadata say of its training: the recipe, the test videos it saw, the command to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsum_runtime.training.datasets import Dataset, Split, Splits
from vsum_runtime.training.procedures import find_recipe, options_before_training
from vsum_runtime.training.runs import RunFolder


def shared_settings(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs of one row share: all settings but the seed, the split and those that a fit or a sweep chose."""
    name, swept = metadata.get("recipe", metadata["model"]), None
    options = options_before_training(name, metadata["options"])
    config = {} if options.keys() != metadata["options"].keys() else _flat(metadata["config"])
    config.pop("seed", None)
    setting = _sweepable(metadata)
    if setting is not None and RunFolder.of(path).chosen_among_values_of(setting):
        swept = setting
        config.pop(setting)
    return {"recipe": name, "model": metadata["model"], "options": options, "config": config, "swept": swept}


def tries_a_value(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether the run tried one value of a sweep; the folder of the chosen one lies above it."""
    setting = _sweepable(metadata)
    return setting is not None and RunFolder.of(path).tries_a_value_of(setting)


def _sweepable(metadata: Mapping[str, Any]) -> str | None:
    from vsum_runtime.training.many import SWEEPS

    sweep = SWEEPS.get(metadata.get("recipe", metadata["model"]))
    return None if sweep is None else sweep.setting


def seen_in_training(training: Mapping[str, Any], dataset: Dataset, splits: Splits, split: Split) -> int | None:
    """How many test videos the model learned from or was selected on; None where its record does not say."""
    trained_on = (training.get("dataset") or {}).get("sha256")
    if trained_on is None or trained_on not in (dataset.sha256, dataset.source_sha256):
        return None
    keys = [*training.get("train_keys", ()), *training.get("validation_keys", ())]
    if not keys:
        number = training.get("split")
        if number is None or (training.get("splits") or {}).get("sha256") != splits.sha256:
            return None
        keys = list(splits.splits[number - 1].train_keys)
    return len(set(keys) & set(split.test_keys))


def count_parameters(metadata: Mapping[str, Any]) -> int:
    """Parameters of the model that scores."""
    from vsum_runtime.training import models

    model = models.build(metadata["model"], feature_dim=metadata["feature_dim"], **metadata["options"])
    return sum(parameter.numel() for parameter in model.parameters())


def training_command(metadata: Mapping[str, Any], seeds: Sequence[int], *, swept: str | None = None) -> str:
    """The vsum-train command that trains all splits of a row again, without the settings that are as published.

    It names the number of threads, which decides how sums are rounded; training amplifies a difference in the last bit.
    """
    from vsum_runtime.training import models
    from vsum_runtime.training.config import published

    name = metadata.get("recipe", metadata["model"])
    words = ["vsum-train", "--model", name, "--dataset", f"{metadata['dataset']['name']}.h5"]
    words += ["--splits", metadata["splits"]["name"], "--split", "all"]
    if find_recipe(name).chosen_options:
        options = options_before_training(name, metadata["options"]).items()
        return shlex.join([*words, *(word for option, value in options for word in ("--option", f"{option}={value}"))])
    usual = _flat(asdict(published(name)))
    flags = ("select", "feature_norm", "epochs", "batch_videos", "learning_rate", "weight_decay")
    for setting, value in _flat(metadata["config"]).items():
        if setting not in ("seed", swept) and setting in usual and value != usual[setting]:
            text = "none" if value is None else str(value)
            flag = f"--{setting.replace('_', '-')}"
            words += [flag, text] if setting in flags else ["--set", f"{setting}={text}"]
    default: Any = models.build(metadata["model"], feature_dim=metadata["feature_dim"]).options
    for option, value in metadata["options"].items():
        if default.get(option) != value:
            words += ["--option", f"{option}={'none' if value is None else value}"]
    words += ["--sweep"] if swept else []
    if threads := (metadata.get("versions") or {}).get("threads"):
        words += ["--threads", str(threads)]
    return shlex.join([*words, "--seeds", ",".join(map(str, seeds))])


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training: those of its procedure beside those that all procedures share."""
    inner = config.get("settings")
    return {**{k: v for k, v in config.items() if k != "settings"}, **(inner if isinstance(inner, dict) else {})}
