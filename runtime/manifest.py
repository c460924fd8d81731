"""What a bundle's manifest must hold, entry by entry, so that whoever reads it later may trust it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vsum_runtime.runtime.errors import BundleError, InputError
from vsum_runtime.runtime.proposals import Decoder
from vsum_runtime.runtime.recipe import Recipe

_MOST_VALUES = 1 << 28  # of a vector of features, or of all of the example
_AGAIN = "export the bundle again"


def check(manifest: Mapping[str, Any], place: str) -> None:
    """Check every entry but the files themselves; ``place`` names the manifest in messages.

    Raises
    ------
    BundleError
        an entry is missing or of another kind
    """

    def require(path: str, fits: Callable[[Any], bool], expected: str, *, optional: bool = False) -> None:
        *sections, key = path.split(".")
        entry: Any = manifest
        for section in sections:
            entry = entry[section]
        if key not in entry:
            if optional:
                return
            raise BundleError(f"{place}: the entry {path} is missing; {_AGAIN}")
        if not fits(entry[key]):
            raise BundleError(f"{place}: {path}: expected {expected}, got {str(entry[key])[:100]!r}; {_AGAIN}")

    for section in ("model", "graph", "example", "files"):
        require(section, _is_object, "an object")
    require("features", lambda entry: entry is None or _is_object(entry), "a recipe or null")
    require("model.architecture", _is_text, "a name")
    require("model.feature_dim", lambda n: _is_whole(n) and 1 <= n <= _MOST_VALUES, "a number of features")
    _check_output(manifest["model"].get("output", "scores"), manifest.get("decoder"), place)
    require("graph.file", _is_text, "a file name")
    require("graph.precision", lambda name: name in ("fp32", "int8"), "fp32 or int8", optional=True)
    require("graph.batch_tokens", lambda n: _is_whole(n) and n >= 1, "a whole number >= 1", optional=True)
    require("graph.memory_bytes", _is_polynomial, "three numbers", optional=True)
    for path in ("graph.long", "half"):
        require(path, lambda entry: entry is None or _is_object(entry), "an object", optional=True)
    if manifest.get("half") is not None:
        require("half.file", _is_text, "a file name")
    if manifest["graph"].get("long") is not None:
        require("graph.long.file", _is_text, "a file name")
        require("graph.long.above_steps", lambda n: _is_whole(n) and n >= 0, "a whole number >= 0")
        require("graph.long.memory_bytes", _is_polynomial, "three numbers", optional=True)
    _check_example(require, manifest)
    if manifest["features"] is not None:
        require("features.network", _is_text, "a file name")


def check_recipe(manifest: Mapping[str, Any], place: str) -> None:
    """Check that the recipe is one, and gives what the model takes."""
    plain = manifest["features"]
    if plain is None:
        return
    try:
        recipe = Recipe.from_dict(plain)
    except (InputError, TypeError, OverflowError) as error:
        raise BundleError(f"{place}: features: {error}; {_AGAIN}") from None
    if recipe.feature_dim != manifest["model"]["feature_dim"]:
        raise BundleError(
            f"{place}: features: makes {recipe.feature_dim} values, the model takes "
            f"{manifest['model']['feature_dim']}; {_AGAIN}"
        )


def _check_output(output: Any, decoder: Any, place: str) -> None:
    if output == "scores" and decoder is None:
        return
    if output != "proposals" or not isinstance(decoder, dict):
        raise BundleError(f"{place}: expected scores, or proposals with a decoder, got {output!r} with {decoder!r}")
    Decoder.from_dict(decoder)


def _check_example(require: Callable[..., None], manifest: Mapping[str, Any]) -> None:
    def are_lengths(entry: Any) -> bool:
        values = manifest["model"]["feature_dim"]
        return (
            isinstance(entry, list)
            and len(entry) > 0
            and all(_is_whole(n) and n >= 1 for n in entry)
            and len(entry) * max(entry) * values <= _MOST_VALUES
        )

    def are_scores(entry: Any) -> bool:
        lengths = manifest["example"]["lengths"]
        return (
            isinstance(entry, list)
            and [len(row) if isinstance(row, list) else None for row in entry] == lengths
            and all(_is_number(value) for row in entry for value in row)
        )

    require("example.lengths", are_lengths, "a list of lengths, each 1 or more")
    require("example.scores", are_scores, "a list of numbers for each length")


def _is_object(entry: Any) -> bool:
    return isinstance(entry, dict)


def _is_text(entry: Any) -> bool:
    return isinstance(entry, str) and entry != ""


def _is_whole(entry: Any) -> bool:
    return type(entry) is int


def _is_number(entry: Any) -> bool:
    return type(entry) in (int, float) and math.isfinite(entry) and abs(entry) < 1e300


def _is_polynomial(entry: Any) -> bool:
    return entry is None or (isinstance(entry, list) and len(entry) == 3 and all(map(_is_number, entry)))
