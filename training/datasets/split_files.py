"""The forms of split files -> keys for training, validation and test.

JSON or YAML: a list of objects or a single one, with ``train_keys``, ``test_keys`` and perhaps ``val_keys``; or text
lines ``TVSum/split0/train keys/test keys`` with commas between keys. A key is ``video_3``, or a path that ends in it
(``../datasets/eccv16_dataset_tvsum_google_pool5.h5/video_3``) and so names a data set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.errors import InputError

PARTS = ("train_keys", "val_keys", "test_keys")
_OTHER_NAMES = {
    "train_keys": ("train",),
    "val_keys": ("validation_keys", "valid_keys", "val", "validation", "valid"),
    "test_keys": ("test",),
}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a split file (JSON, YAML or text), cannot read it: {error}") from None


def parts_of(path: Path, content: str) -> list[dict[str, Sequence[str]]]:
    """The splits of a file: name of ``PARTS`` -> keys, for each. Raises ``InputError`` on any other form."""
    entries = _parsed(path, content)
    if isinstance(entries, str):
        return _parts_of_text(entries)
    if isinstance(entries, dict) and entries and all(isinstance(entry, dict) for entry in entries.values()):
        entries = list(entries.values())  # named splits
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: expected a list of {{train_keys, test_keys}} (JSON or YAML), or text lines")
    return [_parts_of_entry(path, entry) for entry in entries]


def _parsed(path: Path, content: str) -> Any:
    """The file's JSON or YAML; text lines are a string of YAML."""
    import yaml  # type: ignore[import-untyped]

    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    if re.match(r"\s*[^\s/:[{-][^/:\n]*(/[^/\n]*){3}\s*$", content, re.MULTILINE):
        return content
    try:
        return yaml.safe_load(content) or []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"{path}: expected a list of {{train_keys, test_keys}} (JSON or YAML), got: {reason}"
        ) from None


def _parts_of_entry(path: Path, entry: dict[Any, Any]) -> dict[str, Sequence[str]]:
    parts: dict[str, Sequence[str]] = {}
    for part, others in _OTHER_NAMES.items():
        keys: Any = next((entry[name] for name in (part, *others) if name in entry), [] if part == "val_keys" else None)
        if keys is None:
            names = ", ".join(map(str, entry))[:200]
            raise InputError(f"{path}: expected a list of {{train_keys, test_keys}}, got an entry of {names}")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(f"{path}: {part}: expected a list of keys that are strings such as 'video_3'")
        parts[part] = keys
    return parts


def _parts_of_text(content: str) -> list[dict[str, Sequence[str]]]:
    entries: list[dict[str, Sequence[str]]] = []
    for line in content.splitlines():
        pieces = [piece.strip() for piece in line.split("/")]
        if len(pieces) == 4:
            named = [[f"{pieces[0]}/{key.strip()}" for key in piece.split(",") if key.strip()] for piece in pieces[2:]]
            entries.append({"train_keys": named[0], "val_keys": [], "test_keys": named[1]})
    return entries
