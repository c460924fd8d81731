"""How each system is trained, where that is more than the squared error of its scores: one file a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from training.datasets import Video


class Procedure(Protocol):
    """One training run of one system.

    All randomness is drawn from torch's global generator, and what an epoch leaves behind is in ``networks`` and
    ``optimizers``, so that a run whose generator is seeded anew for each epoch can be stopped and resumed.
    """

    defaults: ClassVar[Any]
    """The published hyper-parameters: a frozen dataclass, each field documented."""
    labels: ClassVar[tuple[str, ...]]
    """Fields of ``Video`` that are needed besides the features; none where training is unsupervised."""
    networks: nn.ModuleDict
    """Everything that is trained; the scorer that is exported under "model"."""
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, model: nn.Module, config: Any, *, n_epochs: int) -> None: ...

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        """One pass over the videos, ``epoch`` counting from 1: means of named objectives, the headline first."""
        ...
