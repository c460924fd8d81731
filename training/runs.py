"""The folder of a run: where it lies, which files it holds, and how it is found again.

A run is one training of one recipe on one data set::

    <runs>/<data set>/<recipe>/[<setting><value>/][seed<n>/]split<k>/

with ``whole`` instead of ``split<k>`` where the model learned from every video. The files in it:

``last.safetensors``      everything that is trained, optimisers and log included; a stopped run resumes from it
``best.safetensors``      the scorer's weights of the chosen epoch, another name of one of the files below
``epoch<e>.safetensors``  weights of an epoch that is chosen now or may be chosen later
``log.jsonl``             one line per epoch
``peek.jsonl``            agreement with the test videos after each epoch, where ``--peek-test`` asked for it
``tensorboard/``          the log again, where TensorBoard is installed

No other file of this project knows these names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError

_BEST = "best.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @classmethod
    def of(cls, best: Path) -> RunFolder:
        """The run that a checkpoint belongs to."""
        return cls(best.parent)

    @property
    def best(self) -> Path:
        return self.path / _BEST

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def epoch(self, number: int) -> Path:
        """Weights after an epoch, counted from 1."""
        return self.path / f"epoch{number}.safetensors"

    def create(self) -> None:
        """Make the folder, and remove what a killed process left half written."""
        self.path.mkdir(parents=True, exist_ok=True)
        for remnant in self.path.glob(".*.tmp"):
            remnant.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def make_best(self, weights: Path) -> None:
        """Let ``best`` be another name of a file of weights; a copy where the file system has no links."""
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.best) as temporary:
            temporary.unlink()
            try:
                os.link(weights, temporary)
            except OSError:
                shutil.copyfile(weights, temporary)

    def remove_epochs(self, *, keep: set[int]) -> None:
        """Remove the weights of all epochs but these."""
        for weights in self.path.glob("epoch*.safetensors"):
            if int(weights.stem.removeprefix("epoch")) not in keep:
                weights.unlink()

    def read_log(self) -> list[dict[str, Any]]:
        return _read_lines(self.path / "log.jsonl")

    def write_log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _write_lines(self.path / "log.jsonl", lines)

    def read_peek(self) -> list[dict[str, Any]]:
        return _read_lines(self.path / "peek.jsonl")

    def write_peek(self, lines: Iterable[Mapping[str, Any]]) -> None:
        _write_lines(self.path / "peek.jsonl", lines)

    def tries_a_value_of(self, setting: str) -> bool:
        """Whether the run tried one value of a swept setting."""
        return any(re.fullmatch(rf"{setting}[\d.]+", part) for part in self.path.parts[-3:])

    def chosen_among_values_of(self, setting: str) -> bool:
        """Whether runs that tried values of a swept setting lie beside this one."""
        places = list(self.path.parents)[:2]
        return any(next(place.glob(f"{setting}[0-9]*"), None) is not None for place in places)


def recipe_folder(runs: Path, dataset: str, recipe: str) -> Path:
    """The folder of all runs of a recipe on a data set."""
    return runs / dataset / recipe


@dataclass(frozen=True)
class Run:
    """What tells the runs of one recipe apart."""

    split: int | None
    """Number of the split, from 1. None: the model learns from every video."""
    seed: int | None = None
    """None: the recipe's, and no part of the folder's name."""
    swept: tuple[str, float] | None = None
    """Setting and value, where a sweep tries several."""

    @property
    def name(self) -> str:
        """Path below the folder of the recipe: ``[sigma0.5/][seed0/]split1``."""
        parts = [] if self.swept is None else [f"{self.swept[0]}{self.swept[1]:g}"]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return "/".join([*parts, "whole" if self.split is None else f"split{self.split}"])

    def folder(self, recipe: Path) -> RunFolder:
        """The run's folder below that of its recipe."""
        return RunFolder(recipe / self.name)

    @property
    def title(self) -> str:
        """``split 1 seed 0 sigma 0.5``."""
        words = ["whole" if self.split is None else f"split {self.split}"]
        words += [] if self.seed is None else [f"seed {self.seed}"]
        words += [] if self.swept is None else [f"{self.swept[0]} {self.swept[1]:g}"]
        return " ".join(words)


def all_best(folders: Sequence[Path]) -> list[Path]:
    """The chosen weights of every run below some folders: folder by folder, sorted in each."""
    return [path for folder in folders for path in sorted(folder.rglob(_BEST))]


def find_best(runs: Path, recipe: str, run: Run, *, dataset: str | None = None) -> Path:
    """The chosen weights of one run.

    Parameters
    ----------
    dataset
        None: whichever data set has the run, if only one has

    Raises
    ------
    InputError
        no such run, or one on each of several data sets
    """
    place = f"{recipe}/{run.name}"
    candidates = sorted(runs.glob(f"{dataset or '*'}/{place}/{_BEST}"))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(path.relative_to(runs).parts[0] for path in candidates)
        raise InputError(f"--dataset: runs of several data sets match ({names}); name one")
    trained = sorted(path.relative_to(runs).as_posix() for path in runs.glob(f"*/*/**/{_BEST}"))
    advice = ", name its --seed," if run.seed is None else f" --seeds {run.seed}"
    raise InputError(
        f"no finished run {runs}/{dataset or '<dataset>'}/{place}; train it with vsum-train --model {recipe} "
        f"--split {run.split}{advice} or pass --checkpoint (there are: {', '.join(trained) or 'none'})"
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects, one to a line; none where there is no file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
