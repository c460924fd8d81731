"""How each system is trained: one file a procedure, and the table of published recipes.

To add one: (1) write ``training/procedures/<name>.py`` with a class that meets ``Procedure``; (2) add its line to
``RECIPES``; (3) let ``tests/training/procedures/test_run_epoch.py`` and ``tests/training/test_smoke.py`` train it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import MODELS, canonical

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vsum_runtime.training.datasets import Video


class Procedure(Protocol):
    """One training run of one system.

    All randomness is drawn from torch's global generator, and what an epoch leaves behind is in ``networks`` and
    ``optimizers``, so that a run whose generator is seeded anew for each epoch can be stopped and resumed.

    A procedure may also have ``score(video) -> [T]``, where scores take more than features; ``validate(videos,
    epoch)``, means of objectives over held-out videos without training; ``optional_labels``, fields that it uses where
    a data set has them; and ``record``, a mapping for JSON that a checkpoint keeps beside the configuration.
    """

    defaults: ClassVar[Any]
    """The published hyper-parameters: a frozen dataclass, each field documented."""
    labels: tuple[str, ...]
    """Fields of ``Video`` that are needed besides the features; none where training is unsupervised."""
    paced: ClassVar[bool]
    """What an epoch does depends on how many there will be: a finished run cannot be lengthened."""
    networks: nn.ModuleDict
    """Everything that is trained; the scorer that is exported under "model"."""
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, model: nn.Module, config: Any, *, n_epochs: int) -> None: ...

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        """One pass over the videos, ``epoch`` counting from 1: means of named objectives, the headline first."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One published way to train one model."""

    procedure: str
    """``file:Class`` in this folder."""
    epochs: int
    seed: int = 0
    """0 where the authors name none."""
    rules: tuple[str, ...] = ("validation", "training-loss", "last")
    """Keys of ``training.selection.RULES`` that make sense; the first is the default. Authors who chose the epoch on
    the test videos have the default ``validation``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the procedure's defaults."""
    model: str = ""
    """Key of ``training.models.MODELS``; empty: that of the recipe."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the model."""
    feature_norm: str = "auto"
    """Default of ``TrainConfig.feature_norm``."""
    chosen_options: tuple[str, ...] = ()
    """Options of the model that training chooses as it solves for the weights; empty where it iterates."""


def _sspvs(epochs: int, stages: int, *settings: float, text: bool = False, seed: int = 12345, **more: Any) -> Recipe:
    """``settings``: learning rate, windows per step, times that a video is drawn in an epoch."""
    named = dict(zip(("learning_rate", "batch_videos", "repeats"), settings, strict=True)) | more
    options = {"iter": stages} | ({"with_info_guide": True} if text else {})
    return Recipe("sspvs:Summarizer", epochs, seed, settings=named, model="sspvs", options=options)


RECIPES: dict[str, Recipe] = {
    "csta": Recipe("regression:Regression", 100, 123456, settings={"learning_rate": 1e-3, "weight_decay": 1e-7}),
    "pgl_sum": Recipe(
        "regression:Regression", 200, 12345, settings={"batch_videos": None, "average": False, "max_grad_norm": 5.0}
    ),
    "vasnet": Recipe("regression:Regression", 300, 12345, settings={"stretch": True}),
    "dsnet_ab": Recipe("dsnet:AnchorBased", 300, 12345),
    "dsnet_af": Recipe("dsnet:AnchorFree", 300, 12345),
    "fcsn": Recipe("fcsn:KeyFrames", 100, rules=("validation", "last")),
    "sspvs": _sspvs(40, 4, 5e-5, 4, 1),
    "sspvs_ts_c_tg": _sspvs(40, 4, 1e-4, 4, 1, text=True, seed=0),
    "sspvs_ts_a": _sspvs(40, 1, 1e-4, 4, 2),
    "sspvs_ts_t": _sspvs(10, 2, 2e-6, 16, 1),
    "sspvs_sm_c": _sspvs(40, 3, 1e-4, 2, 4),
    "sspvs_sm_c_tg": _sspvs(40, 3, 1e-4, 4, 6, text=True, max_title=1),
    "sspvs_sm_a": _sspvs(40, 2, 1e-4, 2, 2),
    "sspvs_sm_t": _sspvs(10, 2, 5e-5, 4, 2),
    "sspvs_pretrain": Recipe(
        "sspvs_pretrain:Pretrainer",
        200,
        rules=("match-accuracy", "last"),
        model="sspvs",
        options={"with_info_guide": True},
    ),
    "vslud": Recipe("vslud:Unpaired", 1000, rules=("last", "validation")),
    "ac_sum_gan": Recipe("ac_sum_gan:ActorCriticGAN", 100, rules=("reward", "validation", "last")),
    "ca_sum": Recipe("ca_sum:Length", 400, 12345, ("least-loss", "validation", "last")),
    "dr_dsn": Recipe("dr_dsn:Reinforcement", 60, 1, ("last", "validation")),
    "nonlocal_ridge": Recipe(
        "nonlocal_ridge:Ridge",
        1,
        rules=("cross-validation",),
        feature_norm="none",
        chosen_options=("sigma_steps", "sharpness"),
    ),
}
"""Name -> recipe. A name that is no model's is another recipe of a model: ``sspvs_<ts|sm>_<c|a|t>`` are for TVSum or
SumMe with canonical (TVSum's is ``sspvs``), augmented or transfer splits; ``_tg``: guided by text."""


SWEPT = ("ca_sum", "ac_sum_gan")
"""Recipes whose authors train with several values of a setting and choose one; ``training.many`` knows how."""


def find_recipe(name: str) -> Recipe:
    """The recipe of a name, however it is spelt; raises ``InputError``."""
    if canonical(name) not in RECIPES:
        raise InputError(f"model: expected one of {', '.join(trainable())}, got {name!r}")
    return RECIPES[canonical(name)]


def options_before_training(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model without those that its recipe's training chooses."""
    recipe = RECIPES.get(canonical(name))
    chosen = () if recipe is None else recipe.chosen_options
    return {option: value for option, value in options.items() if option not in chosen}


def check_swept(name: str) -> None:
    """Refuse ``--sweep`` for a recipe of which nothing is swept."""
    if name not in SWEPT:
        raise InputError(f"--sweep: expected one of {', '.join(SWEPT)}, got {name}, which has nothing to sweep")


def trainable() -> list[str]:
    """All names that ``vsum-train --model`` takes."""
    return sorted({*MODELS, *RECIPES})


def procedure_class(recipe: Recipe) -> type[Procedure]:
    module, _, name = recipe.procedure.partition(":")
    procedure: type[Procedure] = getattr(import_module(f"vsum_runtime.training.procedures.{module}"), name)
    return procedure
