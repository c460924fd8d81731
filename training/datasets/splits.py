"""Which videos of a data set are for training and which for the test.

A split file may name several data sets in its keys. The one that is meant is told by the videos: the one whose videos
are all present, and the largest of those. A file that plainly belongs to another data set is refused; the names of
files and folders decide nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsum_runtime.runtime.atomic import sha256
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets.split_files import PARTS, parts_of, read_text
from vsum_runtime.training.datasets.videos import Dataset, ordered, shortened

_log = logging.getLogger(__name__)

_NAMES = ("summe", "tvsum", "ovp", "youtube")
_FRAMES_OF_VIDEO_1 = {"summe": 4494, "tvsum": 10597}
"""By which the field's two data sets are known, whoever extracted the features."""


@dataclass(frozen=True)
class Split:
    """One division of a data set into training and test videos."""

    number: int
    """Position in the file, from 1."""
    train_keys: tuple[str, ...]
    test_keys: tuple[str, ...]
    validation_keys: tuple[str, ...] = ()
    """What the file itself sets apart for choosing the epoch; empty: a rule that needs some draws from training."""


@dataclass(frozen=True)
class Splits:
    """A split file."""

    name: str
    """File name."""
    sha256: str
    """Of the file's bytes."""
    splits: tuple[Split, ...] = field(repr=False)

    def select(self, numbers: Sequence[str]) -> list[Split]:
        """Splits by number, ``["1", "3"]`` or ``["1,3"]``, or all of them, ``["all"]``."""
        return [self.splits[index] for index in _indices(numbers, len(self.splits), self.name)]


def check_numbers(path: str | Path, numbers: Sequence[str]) -> None:
    """Refuse numbers beyond all splits of a file, before the data set is read.

    Raises
    ------
    InputError
        a number that no split has, or no split file
    """
    path = Path(path)
    _indices(numbers, len(parts_of(path, read_text(path))), path.name)


def read_splits(path: str | Path, dataset: Dataset) -> Splits:
    """Read a split file, checked against the data set it divides.

    Raises
    ------
    InputError
        another form, an unknown or repeated key, a video in two parts of a split, or a split of another data set, or of
        several at once
    """
    path = Path(path)
    entries = [_Entry.of(parts) for parts in parts_of(path, read_text(path))]
    splits = []
    for number, entry in enumerate(_of_dataset(path, entries, dataset), start=1):
        for key in entry.keys:
            if key not in dataset.videos:
                have = shortened(list(dataset.videos))
                raise InputError(f"{path}: split {number}: {key} is not in {dataset.name}, which has {have}")
        for name, keys in entry.parts.items():
            if len(set(keys)) != len(keys):
                raise InputError(f"{path}: split {number}: {name} repeats a video")
        for one, other in (("train_keys", "test_keys"), ("train_keys", "val_keys"), ("val_keys", "test_keys")):
            if both := set(entry.parts[one]) & set(entry.parts[other]):
                raise InputError(f"{path}: split {number}: {', '.join(ordered(both))} in both {one} and {other}")
        splits.append(Split(number, *(entry.parts[name] for name in ("train_keys", "test_keys", "val_keys"))))
    used = {
        key for split in splits for keys in (split.train_keys, split.test_keys, split.validation_keys) for key in keys
    }
    if len(used) < len(dataset.videos):
        _log.warning(
            "%s: its splits use %d of the %d videos of %s; is it the split file of this data set?",
            path,
            len(used),
            len(dataset.videos),
            dataset.name,
        )
    return Splits(path.name, sha256(path), tuple(splits))


def _indices(numbers: Sequence[str], n_splits: int, name: str) -> list[int]:
    """Positions of splits by number, ``["1", "3"]`` or ``["1,3"]``, or of all, ``["all"]``."""
    numbers = [number.strip() for text in numbers for number in text.split(",")]
    if numbers == ["all"]:
        return list(range(n_splits))
    for number in numbers:
        if not number.isdecimal() or not 1 <= int(number) <= n_splits:
            raise InputError(f"split: expected 1 .. {n_splits} or 'all' for {name}, got {number!r}")
    return [int(number) - 1 for number in numbers]


@dataclass(frozen=True)
class _Entry:
    """One split as a file has it, its keys taken apart."""

    names: frozenset[str]
    """The data sets that its keys name."""
    parts: dict[str, tuple[str, ...]]
    """Name of ``PARTS`` -> video keys."""

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[str]]) -> _Entry:
        paths = {name: [key.strip().replace("\\", "/").rpartition("/") for key in parts[name]] for name in PARTS}
        names = {_set_name(before) for keys in paths.values() for before, _, _ in keys if before}
        return cls(frozenset(names), {name: tuple(video for _, _, video in keys) for name, keys in paths.items()})

    @property
    def keys(self) -> list[str]:
        return [key for keys in self.parts.values() for key in keys]


def _set_name(before: str) -> str:
    """What the path before a video's key names: one of the field's data sets, or else its last folder or file."""
    match = re.search("|".join(_NAMES), before.lower())
    return match.group() if match else before.rpartition("/")[2]


def _of_dataset(path: Path, entries: Sequence[_Entry], dataset: Dataset) -> list[_Entry]:
    """The splits of one data set, by their keys and the videos that are there."""
    if not entries:
        raise InputError(f"{path}: no splits in this file")
    by_name: dict[str, list[_Entry]] = {}
    for entry in entries:
        if len(entry.names) > 1:
            raise InputError(
                f"{path}: a split takes videos of {', '.join(sorted(entry.names))}; "
                "a run has one data set: use the canonical split file of one set"
            )
        by_name.setdefault("".join(entry.names), []).append(entry)
    videos = {name: {key for entry in group for key in entry.keys} for name, group in by_name.items()}
    really = _known_name(dataset)
    candidates = [name for name in by_name if really is None or name not in _NAMES or name == really]
    if not candidates:
        raise InputError(
            f"{path}: its videos are of {', '.join(sorted(by_name))}, but belong to another data set than "
            f"{dataset.name}, whose videos are those of {really}"
        )
    whole = [name for name in candidates if videos[name] <= dataset.videos.keys()] or candidates
    most = max(len(videos[name]) for name in whole)
    chosen = [name for name in whole if len(videos[name]) == most]
    if len(chosen) > 1:
        raise InputError(
            f"{path}: its splits of {', '.join(sorted(chosen))} fit {dataset.name} equally; keep those of one set"
        )
    return by_name[chosen[0]]


def _known_name(dataset: Dataset) -> str | None:
    """Which of the field's data sets this is, by its first video; None where that does not tell."""
    first = dataset.videos.get("video_1")
    return next((name for name, n in _FRAMES_OF_VIDEO_1.items() if first is not None and first.n_frames == n), None)
