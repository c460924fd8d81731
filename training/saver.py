"""Writes a run's folder during training, and resumes a run from it. ``training/runs.py`` describes the files."""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.checkpoint import load_training, read_metadata, save_checkpoint, save_training
from vsum_runtime.training.config import TrainConfig
from vsum_runtime.training.procedures import Procedure
from vsum_runtime.training.runs import RunFolder
from vsum_runtime.training.selection import RULES, Epoch, eligible

_WRITING_SHARE = 0.1  # of the time; the largest systems have a gigabyte to write


class Saver:
    """Keeps the weights that the rule may choose, and writes them and the newest epoch from time to time.

    Writing takes a tenth of the time at most. ``last`` is written after everything that it refers to, so a run that is
    killed at any point loses the epochs since then and nothing else.
    """

    def __init__(self, files: RunFolder, identity: dict[str, Any], procedure: Procedure, config: TrainConfig) -> None:
        self._files, self._identity, self._procedure, self._config = files, identity, procedure, config
        self._rule = RULES[config.select]
        self._unwritten: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
        self._due = -math.inf

    def take(self, log: list[Epoch]) -> None:
        """Take in the newest epoch, whose weights the procedure holds."""
        finished = len(log) == self._config.epochs
        kept = eligible(self._rule, log) if finished or self._config.select != "last" else set()
        metadata = self._metadata(log[-1])
        if len(log) in kept:
            self._unwritten[len(log)] = copy.deepcopy(self._procedure.networks["model"]), metadata
        self._unwritten = {epoch: held for epoch, held in self._unwritten.items() if epoch in kept}
        started = time.perf_counter()
        if finished or started >= self._due:
            self._write(log, kept, metadata)
            ended = time.perf_counter()
            self._due = ended + (ended - started) / _WRITING_SHARE

    def _write(self, log: list[Epoch], kept: set[int], metadata: dict[str, Any]) -> None:
        files, networks = self._files, self._procedure.networks
        for epoch, (model, epoch_metadata) in self._unwritten.items():
            save_checkpoint(files.epoch(epoch), model, epoch_metadata)
        self._unwritten = {}
        if kept:
            files.make_best(files.epoch(self._rule.choose(log)))
        lines = [asdict(line) for line in log]
        save_training(files.last, networks, self._procedure.optimizers, metadata | {"log": lines})
        files.write_log(lines)
        files.remove_epochs(keep=kept)

    def _metadata(self, line: Epoch) -> dict[str, Any]:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        selection = {"rule": self._config.select, "value": self._rule.value(line)}
        config = asdict(self._config) | getattr(self._procedure, "record", {})
        about = {"epoch": line.epoch, "selection": selection, "versions": versions}
        return self._identity | {"options": self._procedure.networks["model"].options, "config": config} | about


def resume(path: Path, identity: dict[str, Any], procedure: Procedure) -> list[Epoch]:
    """Load the state of a run into a procedure and return the log; empty where there is no file.

    Raises
    ------
    InputError
        the run has other settings, or the file is not a checkpoint
    """
    if not path.exists():
        return []
    metadata = read_metadata(path)
    wanted = json.loads(json.dumps(identity))
    if not procedure.paced:
        metadata["config"]["epochs"] = wanted["config"]["epochs"]  # a finished run may be lengthened
    if different := _differences(metadata, wanted):
        raise InputError(
            f"{path}: an earlier run has other settings ({'; '.join(different)}); choose another --runs, or --fresh"
        )
    load_training(path, procedure.networks, procedure.optimizers)
    return [Epoch(**line) for line in metadata["log"]]


def _differences(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    differences = []
    for name in wanted:
        if isinstance(wanted[name], dict) and isinstance(earlier.get(name), dict):
            differences += _differences(earlier[name], wanted[name])
        elif earlier.get(name) != wanted[name]:
            differences.append(f"{name} was {earlier.get(name)!r}, now {wanted[name]!r}"[:300])
    return differences
