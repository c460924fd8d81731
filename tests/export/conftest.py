"""Fixture `checkpoint`: files as vsum-train writes them, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vsum_runtime.training import models
from vsum_runtime.training.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> Callable[..., Path]:
    """``checkpoint(path, name="pgl_sum", feature_dim=64, **options)`` writes a file and gives its path."""

    def write(path: Path, *, name: str = "pgl_sum", feature_dim: int = 64, **options: object) -> Path:
        torch.manual_seed(1)
        model = models.build(name, feature_dim=feature_dim, **options)
        metadata = {
            "model": name,
            "options": model.options,
            "feature_dim": feature_dim,
            "feature_norm": "l2",
            "dataset": {"name": "made up", "sha256": "0", "recipe": ""},
            "splits": None,
            "split": None,
            "seed": 1,
            "epoch": 0,
            "selection": {"rule": "last", "value": None},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, model, metadata)
        return path

    return write
