"""The configuration of a training: what a recipe publishes, and what a command changes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.declared import parse_settings
from vsum_runtime.training.procedures import find_recipe, procedure_class


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int
    """Passes over the training videos."""
    seed: int
    """Of the initial weights, all that is drawn in training and the choice of validation videos."""
    select: str
    """Rule that chooses the epoch, a key of ``training.selection.RULES``."""
    settings: Any
    """Hyper-parameters of the procedure, the dataclass that it documents."""
    validation_share: float = 0.2
    """Share of the training videos that a rule holds out, if it does."""
    feature_norm: str = "auto"
    """``none``; ``l2``: rows divided by their norm; ``auto``: l2 unless the median norm lies in 0.9 .. 1.1."""


def published(name: str) -> TrainConfig:
    """The settings of a recipe, as its authors published them."""
    recipe = find_recipe(name)
    settings = dataclasses.replace(procedure_class(recipe).defaults, **recipe.settings)
    return TrainConfig(recipe.epochs, recipe.seed, recipe.rules[0], settings, feature_norm=recipe.feature_norm)


def changed(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Replace fields of a configuration, or of its ``settings``, by name; values may be text.

    Raises
    ------
    InputError
        a name that neither has, or a value of another kind
    """
    own = {field.name: str(field.type) for field in dataclasses.fields(config) if field.name != "settings"}
    theirs = {field.name: str(field.type) for field in dataclasses.fields(config.settings)}
    parsed = parse_settings(values, own | theirs)
    settings = dataclasses.replace(config.settings, **{name: parsed[name] for name in parsed if name in theirs})
    return dataclasses.replace(config, settings=settings, **{name: parsed[name] for name in parsed if name in own})


def checked(name: str, config: TrainConfig) -> TrainConfig:
    rules = find_recipe(name).rules
    if config.select not in rules:
        raise InputError(f"select: expected one of {', '.join(rules)} for {name}, got {config.select!r}")
    if config.epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {config.epochs}")
    if not 0 < config.validation_share < 1:
        raise InputError(f"validation_share: expected a share between 0 and 1, got {config.validation_share}")
    if config.seed < 0:
        raise InputError(f"seed: expected 0 or more, got {config.seed}")
    return config
